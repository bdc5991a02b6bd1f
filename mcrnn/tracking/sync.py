"""Keep the runs in MLflow up to date with the folders of runs on disk.

A training writes what it is (`record.json`) and how it goes (`metrics.jsonl`) into its own folder. The command that
started it sends what is new there to MLflow, in a thread. So training never waits for MLflow, its workers need not know
MLflow, and what a server misses while it is away is sent when it is back, or by the same command later.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mcrnn.config.paths import flatten
from mcrnn.errors import UserError
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.retry import PATIENCE, ServiceUnavailableError
from mcrnn.tracking.mlflow_client import KEY_TAG, PROCESS_TAG, Run, Tracker, client_of, summarize_error
from mcrnn.tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FINAL = ("FINISHED", "FAILED")
"""Statuses after which a run does not go on."""
NOT_METRICS = ("epoch", "time")
"""Entries of a line of metrics that MLflow gets as the step and the time of the others."""
METRICS_PER_CALL = 900
"""MLflow refuses a call with more than 1,000 metrics."""


def is_synced(folder: RunFolder) -> bool:
    """Return whether MLflow has everything of a training that ended, or somebody deleted the run there."""
    state = folder.read_sync_state()
    return "deleted" in state or (state.get("status") in FINAL and state.get("sent", 0) >= len(folder.read_metrics()))


@dataclass
class _SyncedRun:
    """One folder and its run in MLflow."""

    tracker: Tracker
    folder: RunFolder
    parent: str | None
    """Id of the run in MLflow that this one is below."""
    state: dict[str, Any] = field(default_factory=dict)
    """How much of the folder MLflow has: the content of `run.json`, empty until it has been read."""
    status: str | None = None
    """The status that the run should have; None leaves it unchanged."""

    def update(self) -> None:
        """Send everything that MLflow does not have yet.

        Raises:
            ServiceUnavailableError: MLflow or the storage of the folder does not answer; a later try may succeed.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._update(self.status)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise ServiceUnavailableError(summarize_error(str(error))) from None
            self._keep(deleted=True)  # somebody has deleted the run in the UI: do not create it again
        except (OSError, UserError) as error:
            raise ServiceUnavailableError(str(error)) from None

    def _update(self, status: str | None) -> None:
        self.state = self.state or self.folder.read_sync_state()
        if self.state.get("deleted"):
            return
        if "run_id" not in self.state or not self.state.get("described"):
            record = self.folder.read_record()
            if record is None:
                return  # the training has not started
            if "run_id" not in self.state:
                self._keep(run_id=self._find(record["key"]) or self._create(record), sent=0, status="RUNNING")
            self._describe(record)
            self._keep(described=True)
        epochs, sent = self.folder.read_metrics(), self.state.get("sent", 0)
        if len(epochs) > sent:
            self._send(epochs[sent:])
            self._keep(sent=len(epochs))
        if status is not None and status != self.state.get("status"):
            self._set_status(status)
            self._keep(status=status)

    @property
    def _client(self) -> MlflowClient:
        return client_of(self.tracker.tracking_uri)

    def _keep(self, **changes: Any) -> None:
        self.state |= changes
        self.folder.write_sync_state(self.state)

    def _find(self, key: str) -> str | None:
        """Return the id of a run that was created just before its command was killed, so not written down here."""
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

        run_id, origin = self.state["run_id"], self.tracker.origin
        tags = dict(record["tags"])
        if "commit" in origin:
            tags |= {"mlflow.source.git.commit": origin["commit"], "mcrnn.code_changed": str(origin["dirty"]).lower()}
        values = flatten(record["params"])
        self._client.log_batch(
            run_id,
            params=[Param(key, str(value)) for key, value in values.items() if value is not None],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        if record["dataset"] is not None:
            self._log_dataset(record["dataset"])
        self.tracker.run(run_id, patience=0).log_json(record["files"] | {"origin.json": origin})

    def _log_dataset(self, described: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=described["name"][:500],
            digest=described["digest"][:36],  # MLflow refuses longer ones; the profile has all of it
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
        for start in range(0, len(rows), METRICS_PER_CALL):
            self._client.log_batch(self.state["run_id"], metrics=rows[start : start + METRICS_PER_CALL])

    def _set_status(self, status: str) -> None:
        if status in ("RUNNING", "SCHEDULED"):
            self._client.set_tag(self.state["run_id"], PROCESS_TAG, json.dumps(self.tracker.origin["process"]))
            self._client.update_run(self.state["run_id"], status=status)
        else:
            self._client.set_terminated(self.state["run_id"], status)


class RunSync:
    """Keeps the runs of a command in MLflow up to date with their folders, in a thread of its own.

    Args:
        tracker: the experiment of the runs.
        warn: takes a line when MLflow does not answer, and one when it answers again; by default to stderr.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], None] | None = None) -> None:
        self.tracker = tracker
        self.parent: str | None = None
        """Id of the run that runs seen for the first time from now on are below."""
        self._runs: dict[str, _SyncedRun] = {}
        self._outbox = Outbox("MLflow", warn)

    def update(self, folder: RunFolder, status: str | None = None) -> None:
        """Send what is new in a folder, without waiting for it.

        Args:
            folder: folder of the run.
            status: the run's status: RUNNING, SCHEDULED while it is paused, FINISHED, FAILED or KILLED; None leaves it.
        """
        run = self._run(folder)
        run.status = status or run.status
        self._outbox.put(folder.url, run.update)

    def update_now(self, folder: RunFolder, status: str | None = None) -> Run:
        """Send what is new in a folder, wait until everything has been sent, and return the run.

        Args:
            folder: folder of the run.
            status: the run's status: RUNNING, SCHEDULED while it is paused, FINISHED, FAILED or KILLED; None leaves it.

        Raises:
            UserError: MLflow does not answer, or the run was deleted there.
        """
        self.update(folder, status)
        self.wait()
        state = self._run(folder).state
        if "run_id" not in state or state.get("deleted"):
            raise UserError(f"the run of '{folder.url}' was deleted in MLflow; start a new one beside it with --new")
        return self.tracker.run(state["run_id"])

    def _run(self, folder: RunFolder) -> _SyncedRun:
        if folder.url not in self._runs:
            self._runs[folder.url] = _SyncedRun(self.tracker, folder, self.parent)
        return self._runs[folder.url]

    def wait(self, patience: float = PATIENCE) -> None:
        """Wait until everything has been sent.

        Args:
            patience: seconds to wait for an MLflow that does not answer.

        Raises:
            UserError: MLflow did not answer for that long.
        """
        self._outbox.wait(patience)

    def close(self) -> None:
        """Send what can be sent within seconds, and end the thread. The same command sends the rest later."""
        self._outbox.close()
