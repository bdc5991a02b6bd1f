"""The folder of a search or run: a name continues what is unfinished, `--new` starts beside it."""

from __future__ import annotations

import json
from typing import Any

from mcrnn.config.paths import flatten
from mcrnn.errors import UserError
from mcrnn.storage.location import Location

CONTENT_FILE = "configuration.json"


def choose(parent: Location, name: str, *, new: bool) -> str:
    """NAME, or with `new` the first free one of NAME, NAME-2, NAME-3, ..."""
    chosen, number = name, 1
    while new and _content(parent.child(chosen)) is not None:
        number += 1
        chosen = f"{name}-{number}"
    return chosen


def _content(folder: Location) -> dict[str, Any] | None:
    try:
        return json.loads(folder.read(CONTENT_FILE))
    except FileNotFoundError:
        return None


def claim(folder: Location, content: dict[str, Any], budgets: tuple[str, ...] = ()) -> None:
    """Write down what the folder is for, or check that it is for the same.

    Args:
        folder: of the search or run.
        content: what determines its results.
        budgets: dotted paths that may differ from what is there.

    Raises:
        UserError: the folder is for something else; names what differs.
    """
    before = _content(folder)
    if before is not None:
        old, new = flatten(before), flatten(json.loads(json.dumps(content)))
        missing = object()
        changed = [
            f"{key} is {new.get(key, 'not given')}, was {old.get(key, 'not given')}"
            for key in sorted(old | new)
            if key not in budgets and old.get(key, missing) != new.get(key, missing)
        ]
        if changed:
            raise UserError(
                f"'{folder.url}' was started with another configuration: {'; '.join(changed)}. "
                "Start a new one beside it with --new"
            )
    folder.write(CONTENT_FILE, json.dumps(content, indent=1).encode())
