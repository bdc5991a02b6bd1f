"""Runs in MLflow as mirrors of what is on disk.

A training writes down what it is (`record.json`) and how it goes (`metrics.jsonl`) in its own folder; the command that
started it brings its run in MLflow up to that, in a thread. So training never waits for MLflow, its workers need not
know it, and what a server misses while it is away is sent when it is back, or by the same command later.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mcrnn.config.paths import flatten
from mcrnn.errors import UserError
from mcrnn.storage.location import Location
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.retry import PATIENCE, ServiceUnavailableError
from mcrnn.tracking.mlflow_client import KEY_TAG, PROCESS_TAG, Run, Tracker, client_of, short
from mcrnn.tracking.run_folder import RECORD_FILE, read_json, read_metrics

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_FILE = "run.json"
"""how much of it is in MLflow, and in which run"""

FINAL = ("FINISHED", "FAILED")
NOT_METRICS = ("epoch", "time")
METRICS_OF_A_CALL = 900
"""MLflow takes at most 1,000"""


def is_synced(folder: Location) -> bool:
    """Whether the run of a training that ended has all of it."""
    state = read_json(folder, RUN_FILE) or {}
    return "deleted" in state or (state.get("status") in FINAL and state.get("sent", 0) >= len(read_metrics(folder)))


@dataclass
class _SyncedRun:
    """Brings the run of one folder up to what the folder says."""

    tracker: Tracker
    folder: Location
    parent: str | None
    state: dict[str, Any] = field(default_factory=dict)
    """what MLflow has, as far as is known"""
    status: str | None = None
    """that it is to have; None where it stays as it is"""

    def update(self) -> None:
        """Send what is new.

        Raises:
            ServiceUnavailableError: MLflow does not answer, or the folder's storage.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._update(self.status)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise ServiceUnavailableError(short(str(error))) from None
            self._keep(deleted=True)  # by somebody, in the UI
        except (OSError, UserError) as error:
            raise ServiceUnavailableError(str(error)) from None

    def _update(self, status: str | None) -> None:
        self.state = self.state or read_json(self.folder, RUN_FILE) or {}
        if self.state.get("deleted"):
            return
        if "run_id" not in self.state or not self.state.get("described"):
            record = read_json(self.folder, RECORD_FILE)
            if record is None:
                return  # it has not begun
            if "run_id" not in self.state:
                self._keep(run_id=self._find(record["key"]) or self._create(record), sent=0, status="RUNNING")
            self._describe(record)
            self._keep(described=True)
        lines, sent = read_metrics(self.folder), self.state.get("sent", 0)
        if len(lines) > sent:
            self._send(lines[sent:])
            self._keep(sent=len(lines))
        if status is not None and status != self.state.get("status"):
            self._set_status(status)
            self._keep(status=status)

    @property
    def _client(self) -> MlflowClient:
        return client_of(self.tracker.tracking_uri)

    def _keep(self, **changes: Any) -> None:
        self.state |= changes
        self.folder.write(RUN_FILE, json.dumps(self.state).encode())

    def _find(self, key: str) -> str | None:
        """The run that was created a moment before its command was killed."""
        found = self._client.search_runs([self.tracker.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else None

    def _create(self, record: dict[str, Any]) -> str:
        tags = {
            "mlflow.source.name": self.tracker.origin["command"],
            "mlflow.source.type": "LOCAL",
            "mlflow.user": self.tracker.origin["user"],
            KEY_TAG: record["key"],
            PROCESS_TAG: json.dumps(self.tracker.origin["process"]),
        }
        if self.parent:
            tags["mlflow.parentRunId"] = self.parent
        started = int(record["time"] * 1000)
        run = self._client.create_run(
            self.tracker.experiment_id, start_time=started, run_name=record["name"], tags=tags
        )
        return run.info.run_id

    def _describe(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        run_id, of = self.state["run_id"], self.tracker.origin
        tags = dict(record["tags"])
        if "commit" in of:
            tags |= {"mlflow.source.git.commit": of["commit"], "mcrnn.code_changed": str(of["dirty"]).lower()}
        values = flatten(record["params"])
        self._client.log_batch(
            run_id,
            params=[Param(key, str(value)) for key, value in values.items() if value is not None],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        if record["dataset"] is not None:
            self._log_dataset(record["dataset"])
        self.tracker.run(run_id, patience=0).log_json(record["files"] | {"origin.json": of})

    def _log_dataset(self, described: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=described["name"][:500],
            digest=described["digest"][:36],  # the longest that MLflow takes
            source_type="zarr",
            source=json.dumps({"uri": described["source"]}),
            profile=json.dumps({"digest": described["digest"], "recipe": described["recipe"]}),
            schema=json.dumps(described["schema"]),
        )
        context = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(self.state["run_id"], [DatasetInput(dataset, context)])

    def _send(self, epochs: list[dict[str, float]]) -> None:
        from mlflow.entities import Metric

        rows = [
            Metric(name, float(value), int(epoch["time"] * 1000), int(epoch["epoch"]))
            for epoch in epochs
            for name, value in epoch.items()
            if name not in NOT_METRICS
        ]
        for start in range(0, len(rows), METRICS_OF_A_CALL):
            self._client.log_batch(self.state["run_id"], metrics=rows[start : start + METRICS_OF_A_CALL])

    def _set_status(self, status: str) -> None:
        if status == "RUNNING":
            self._client.set_tag(self.state["run_id"], PROCESS_TAG, json.dumps(self.tracker.origin["process"]))
            self._client.update_run(self.state["run_id"], status=status)
        else:
            self._client.set_terminated(self.state["run_id"], status)


class RunSync:
    """Keeps the runs of a command up to what their folders say, in a thread of its own.

    Args:
        tracker: where.
        warn: takes a line when MLflow does not answer.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], None] | None = None) -> None:
        self.tracker = tracker
        self.parent: str | None = None
        """the run that those begun from now on are below"""
        self._mirrors: dict[str, _SyncedRun] = {}
        self._outbox = Outbox("MLflow", warn)

    def update(self, folder: Location, status: str | None = None) -> None:
        """Bring a run up to its folder, soon.

        Args:
            folder: of the training.
            status: RUNNING, FINISHED, FAILED or KILLED, where it has changed.
        """
        mirror = self._mirror(folder)
        mirror.status = status or mirror.status
        self._outbox.put(folder.url, mirror.update)

    def now(self, folder: Location, status: str | None = None) -> Run:
        """The same, at once, after what is to be sent already.

        Raises:
            UserError: MLflow does not answer, or the run was deleted there.
        """
        self.update(folder, status)
        self.wait()
        run_id = self._mirror(folder).state.get("run_id")
        if run_id is None or self._mirror(folder).state.get("deleted"):
            raise UserError(f"the run of '{folder.url}' was deleted in MLflow; start a new one beside it with --new")
        return self.tracker.run(run_id)

    def _mirror(self, folder: Location) -> _SyncedRun:
        if folder.url not in self._mirrors:
            self._mirrors[folder.url] = _SyncedRun(self.tracker, folder, self.parent)
        return self._mirrors[folder.url]

    def wait(self, patience: float = PATIENCE) -> None:
        """Until all is sent.

        Raises:
            UserError: MLflow stays away.
        """
        self._outbox.wait(patience)

    def close(self) -> None:
        """Send what can still be sent, and end; the rest is sent when the command is given again."""
        self._outbox.close()
