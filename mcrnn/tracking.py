"""MLflow runs: one for a search, below it one for each trial; one for a single training.

A small tracker of our own rather than Ray's callback, which logs from the driver only and is refused by Ray
Train. Nothing here uses MLflow's global state: tracking URI, experiment and parent run are passed on.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcrnn.config import Configuration
from mcrnn.models.sizing import Summary
from mcrnn.storage import Storage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def quiet_mlflow() -> None:
    """MLflow and its database migrations report to the log what a user of ours need not see."""
    for name in ("mlflow", "alembic", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Tracker:
    """Where runs are recorded; small enough to be sent to a worker."""

    tracking_uri: str
    experiment_id: str

    @classmethod
    def open(cls, storage: Storage, experiment: str) -> Tracker:
        """Find the experiment or create it, and MLflow's database with it."""
        from mlflow.tracking import MlflowClient

        quiet_mlflow()
        client = MlflowClient(tracking_uri=storage.tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return cls(storage.tracking_uri, found.experiment_id)
        created = client.create_experiment(experiment, artifact_location=storage.artifact_root)
        return cls(storage.tracking_uri, created)

    def start(self, name: str, *, parent: str | None = None, tags: dict[str, str] | None = None) -> Run:
        """A new run, below a parent where there is one."""
        all_tags = {"mlflow.source.name": "mcrnn", "mlflow.source.type": "LOCAL", **(tags or {})}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        run = _client(self).create_run(self.experiment_id, run_name=name, tags=all_tags)
        return Run(self, run.info.run_id)


@dataclass(frozen=True)
class Run:
    """One MLflow run."""

    tracker: Tracker
    run_id: str

    def log_configuration(self, config: Configuration, costs: Summary) -> None:
        """The configuration as flat parameters with the names of the YAML, and whole as an artifact; its costs."""
        from mlflow.entities import Param

        values = flatten(config.model_dump()) | flatten({"costs": asdict(costs)})
        params = [Param(key, str(value)) for key, value in values.items() if value is not None]
        _client(self.tracker).log_batch(self.run_id, params=params)
        self.log_json("configuration.json", config.model_dump())

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Metrics of an epoch, in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        _client(self.tracker).log_batch(self.run_id, metrics=rows)

    def log_json(self, name: str, content: Any) -> None:
        """A JSON artifact."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_text(json.dumps(content, indent=1))
            self.log_files([path], str(Path(name).parent) if "/" in name else None)

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Files as artifacts."""
        for path in paths:
            _client(self.tracker).log_artifact(self.run_id, str(path), folder)

    def set_tags(self, tags: dict[str, str]) -> None:
        """Tags, replacing those of the same name."""
        for key, value in tags.items():
            _client(self.tracker).set_tag(self.run_id, key, value)

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        _client(self.tracker).set_terminated(self.run_id, status)


_clients: dict[str, MlflowClient] = {}


def _client(tracker: Tracker) -> MlflowClient:
    """One client a process and server: making one costs more than a call."""
    if tracker.tracking_uri not in _clients:
        from mlflow.tracking import MlflowClient

        quiet_mlflow()
        _clients[tracker.tracking_uri] = MlflowClient(tracking_uri=tracker.tracking_uri)
    return _clients[tracker.tracking_uri]


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted paths to values, as the space of a search names them."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
