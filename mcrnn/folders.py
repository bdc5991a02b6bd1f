"""The folder of a search or run: a name continues what is unfinished, `--new` starts beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcrnn.errors import UserError
from mcrnn.storage import write_atomically
from mcrnn.tracking import flatten

CONTENT_FILE = "configuration.json"


def choose(parent: Path, name: str, *, new: bool) -> Path:
    """NAME, or with `new` the first free one of NAME, NAME-2, NAME-3, ..."""
    folder, number = parent / name, 1
    while new and folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def claim(folder: Path, content: dict[str, Any], budgets: tuple[str, ...] = ()) -> None:
    """Write down what the folder is for, or check that it is for the same.

    Args:
        folder: of the search or run.
        content: what determines its results.
        budgets: dotted paths that may differ from what is there.

    Raises:
        UserError: the folder is for something else; names what differs.
    """
    file = folder / CONTENT_FILE
    if file.exists():
        old, new = flatten(json.loads(file.read_bytes())), flatten(json.loads(json.dumps(content)))
        missing = object()
        changed = [
            f"{key} is {new.get(key, 'not given')}, was {old.get(key, 'not given')}"
            for key in sorted(old | new)
            if key not in budgets and old.get(key, missing) != new.get(key, missing)
        ]
        if changed:
            raise UserError(
                f"'{folder.name}' was started with another configuration: {'; '.join(changed)}. "
                "Start a new one beside it with --new"
            )
    write_atomically(file, json.dumps(content, indent=1).encode())
