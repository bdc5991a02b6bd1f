"""What a training, search or evaluation writes down of itself in its folder, for its run in MLflow."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from mcrnn.storage.location import Location

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
