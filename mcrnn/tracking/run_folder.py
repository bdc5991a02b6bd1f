"""What a training, search or evaluation writes down of itself in its folder, for its run in MLflow."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from mcrnn.config.paths import flatten
from mcrnn.errors import UserError
from mcrnn.storage.location import Location

CHECKPOINT_FOLDER = "checkpoints"


MODEL_FOLDER = "model"


END_FILE = "end.json"
"""how the training ended, where it has: not after an interruption"""

SEARCH_FILE = "configuration.json"

RECORD_FILE = "record.json"
"""what a training is; its run in MLflow is found by the key in it"""


METRICS_FILE = "metrics.jsonl"


CONFIGURATION_FILE = "configuration.json"
"""among the artifacts of a training's run"""


def write_record(
    folder: Location,
    name: str,
    *,
    tags: dict[str, str],
    params: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
) -> None:
    """Write down what a run is, unless it is there already.

    Args:
        folder: of the training or search.
        name: of the run.
        tags: of the run.
        params: nested; become parameters with dotted names.
        files: content of JSON artifacts by name.
        dataset: what it trains on: name, source, digest and recipe.
    """
    if read_json(folder, RECORD_FILE) is not None:
        return
    record = {
        "key": uuid.uuid4().hex,
        "name": name,
        "tags": tags,
        "params": params or {},
        "files": files or {},
        "dataset": dataset,
        "time": time.time(),
    }
    folder.write(RECORD_FILE, json.dumps(record, indent=1).encode())


def read_json(folder: Location, name: str) -> Any:
    """Content of a JSON file, None where there is none."""
    try:
        return json.loads(folder.read(name))
    except FileNotFoundError:
        return None


def read_metrics(folder: Location) -> list[dict[str, Any]]:
    """The metrics of a training's epochs so far."""
    try:
        return [json.loads(line) for line in folder.read(METRICS_FILE).splitlines()]
    except FileNotFoundError:
        return []


def free_name(parent: Location, name: str, *, new: bool) -> str:
    """NAME, or with `new` the first free one of NAME, NAME-2, NAME-3, ..."""
    chosen, number = name, 1
    while new and _content(parent.child(chosen)) is not None:
        number += 1
        chosen = f"{name}-{number}"
    return chosen


def _content(folder: Location) -> dict[str, Any] | None:
    try:
        return json.loads(folder.read(SEARCH_FILE))
    except FileNotFoundError:
        return None


def claim_folder(folder: Location, content: dict[str, Any], budgets: tuple[str, ...] = ()) -> None:
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
    folder.write(SEARCH_FILE, json.dumps(content, indent=1).encode())
