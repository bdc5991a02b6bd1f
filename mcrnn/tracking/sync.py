"""Keep the runs in MLflow up to date with the folders of runs on disk.

A training writes what it is (`record.json`) and how it goes (`metrics.jsonl`) into its own folder. The command that
started it sends what is new there to MLflow, in a thread. So training never waits for MLflow, its workers need not know
MLflow, and what a server misses while it is away is sent when it is back, or by the same command later.

A run that a user deletes in MLflow is left alone from then on, unless the command needs it: the run of a search, for
those below it, and the run of the champion, from which its model is registered. Those are recorded anew, in another
experiment if theirs was deleted as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mcrnn.config.paths import flatten
from mcrnn.errors import DamagedFileError, UserError
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.retry import PATIENCE, RefusedError, ServiceUnavailableError
from mcrnn.tracking.experiment import KEY_TAG, PROCESS_TAG, Tracker
from mcrnn.tracking.mlflow_client import REFUSALS, Run, all_pages, client_of, find_deletion, summarize_error
from mcrnn.tracking.run_folder import ORIGIN_FILE, RunFolder

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FINAL = ("FINISHED", "FAILED")
"""Statuses after which a run does not go on."""
NOT_METRICS = ("epoch", "time")
"""Entries of a line of metrics that MLflow gets as the step and the time of the others."""
METRICS_PER_CALL = 900
"""MLflow refuses a call with more than 1,000 metrics."""
PARENT_TAG = "mlflow.parentRunId"
"""Tag with the id of the run that a run is below."""


def is_synced(folder: RunFolder) -> bool:
    """Return whether MLflow has everything of a training that ended, or somebody deleted the run there."""
    try:
        state, epochs = folder.read_sync_state(), folder.read_metrics()
    except DamagedFileError:  # whoever sends the run says so
        return False
    return "deleted" in state or (state.get("status") in FINAL and state.get("sent", 0) >= len(epochs))


@dataclass
class _SyncedRun:
    """One folder and its run in MLflow."""

    sync: RunSync
    folder: RunFolder
    parent: RunFolder | None
    """Folder of the run that this one is below."""
    state: dict[str, Any] = field(default_factory=dict)
    """How much of the folder MLflow has: the content of `run.json`, empty until it has been read."""
    status: str | None = None
    """The status that the run should have; None leaves it unchanged."""
    is_needed: bool = False
    """Whether the run is recorded anew where it was deleted in MLflow."""

    def update(self) -> None:
        """Send everything that MLflow does not have yet.

        Raises:
            ServiceUnavailableError: MLflow or the storage of the folder does not answer; a later try may succeed.
            RefusedError: MLflow refuses what is sent, or a file of the folder is damaged.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._update_or_leave()
        except MlflowException as error:
            raise ServiceUnavailableError(summarize_error(str(error))) from None
        except RefusedError:
            raise
        except DamagedFileError as error:
            raise RefusedError(f"the run of '{self.folder.url}' ({error})") from None
        except (OSError, UserError) as error:
            raise ServiceUnavailableError(str(error)) from None

    def _update_or_leave(self) -> None:
        """Send everything, or note that the run was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            self._update()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            deletion = find_deletion(self._client, self.state["run_id"]) if "run_id" in self.state else None
            if deletion is None:
                raise RefusedError(f"the run of '{self.folder.url}' ({summarize_error(str(error))})") from None
            self._keep(deleted=True)
            self.sync.warn_of_deletion(deletion, self.folder, "it is left alone")

    def _update(self) -> None:
        self.state = self.state or self.folder.read_sync_state()
        if self.is_needed:
            self._renew_if_deleted()
        if self.state.get("deleted"):
            return
        if "run_id" not in self.state or not self.state.get("described"):
            record = self.folder.read_record()
            if record is None:
                return  # the training has not started
            if "run_id" not in self.state:
                self._keep(run_id=self._find(record["key"]) or self._create(record), sent=0, status="RUNNING")
            self._describe(record)
            if self.state.get("replaces"):
                self._adopt_children(self.state["replaces"])
            self._keep(described=True)
        epochs, sent = self.folder.read_metrics(), self.state.get("sent", 0)
        if len(epochs) > sent:
            self._send(epochs[sent:])
            self._keep(sent=len(epochs))
        if (status := self.status) is not None and status != self.state.get("status"):
            self._set_status(status)
            self._keep(status=status)

    def _renew_if_deleted(self) -> None:
        """Forget a run that was deleted, so that the folder gets a new one, with all that it holds."""
        run_id = self.state.get("run_id")
        deletion = find_deletion(self._client, run_id) if run_id else None
        if deletion is None and not self.state.get("deleted"):
            return
        if deletion == "run":  # else there is a warning of the experiment
            self.sync.warn_of_deletion(deletion, self.folder, "it is recorded anew")
        self.status = self.status or self.state.get("status")
        self.state = {"replaces": run_id}
        self.folder.write_sync_state(self.state)

    def _adopt_children(self, replaced: str) -> None:
        """Put the runs that were below a run which was deleted below this one."""
        experiments = [self.sync.tracker.experiment_id]
        for child in all_pages(self._client.search_runs, experiments, f"tags.`{PARENT_TAG}` = '{replaced}'"):
            self._client.set_tag(child.info.run_id, PARENT_TAG, self.state["run_id"])

    def _parent_id(self) -> str | None:
        """Return the id of the run that this one is below, which is recorded anew if it was deleted."""
        if self.parent is None:
            return None
        parent = self.sync.run_of(self.parent)
        parent._update()
        return parent.state.get("run_id")

    @property
    def _client(self) -> MlflowClient:
        return client_of(self.sync.tracker.tracking_uri)

    def _keep(self, **changes: Any) -> None:
        self.state |= changes
        self.folder.write_sync_state(self.state)

    def _find(self, key: str) -> str | None:
        """Return the id of a run that was created just before its command was killed, so not written down here."""
        experiments = [self.sync.tracker.experiment_id]
        found = self._client.search_runs(experiments, f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else None

    def _create(self, record: dict[str, Any]) -> str:
        from mlflow.exceptions import MlflowException

        tracker = self.sync.usable_tracker()
        tags = {
            "mlflow.source.name": tracker.origin["command"],
            "mlflow.source.type": "LOCAL",
            "mlflow.user": tracker.origin["user"],
            KEY_TAG: record["key"],
            PROCESS_TAG: json.dumps(tracker.origin["process"]),
        }
        if parent := self._parent_id():
            tags[PARENT_TAG] = parent
        started = int(record["time"] * 1000)
        try:
            run = self._client.create_run(tracker.experiment_id, start_time=started, run_name=record["name"], tags=tags)
        except MlflowException as error:
            if error.error_code not in REFUSALS or not tracker.is_deleted():
                raise
            return self._create(record)  # the experiment was deleted since it was looked for
        return run.info.run_id

    def _describe(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        run_id, origin = self.state["run_id"], self.sync.tracker.origin
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
        self.sync.tracker.run(run_id, patience=0).log_json(record["files"] | {ORIGIN_FILE: origin})

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
            self._client.set_tag(self.state["run_id"], PROCESS_TAG, json.dumps(self.sync.tracker.origin["process"]))
            self._client.update_run(self.state["run_id"], status=status)
        else:
            self._client.set_terminated(self.state["run_id"], status)


class RunSync:
    """Keeps the runs of a command in MLflow up to date with their folders, in a thread of its own.

    Args:
        tracker: the experiment of the runs.
        warn: takes a line when MLflow does not answer, when it answers again, when it refuses something and when
            something was deleted there; by default to stderr.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], None] | None = None) -> None:
        self.tracker = tracker
        self.parent: RunFolder | None = None
        """Folder of the run that runs seen for the first time from now on are below."""
        self._runs: dict[str, _SyncedRun] = {}
        self._has_warned_of_experiment = False
        self._outbox = Outbox("MLflow", warn)

    def update(self, folder: RunFolder, status: str | None = None) -> None:
        """Send what is new in a folder, without waiting for it.

        Args:
            folder: folder of the run.
            status: the run's status: RUNNING, SCHEDULED while it is paused, FINISHED, FAILED or KILLED; None leaves it.
        """
        run = self.run_of(folder)
        run.status = status or run.status
        self._outbox.put(folder.url, run.update)

    def update_now(self, folder: RunFolder, status: str | None = None) -> Run:
        """Send what is new in a folder, wait until everything has been sent, and return the run.

        A run that was deleted in MLflow is recorded anew, now and whenever it is updated again.

        Args:
            folder: folder of the run.
            status: the run's status: RUNNING, SCHEDULED while it is paused, FINISHED, FAILED or KILLED; None leaves it.

        Raises:
            UserError: MLflow does not answer, or refuses the run.
        """
        run = self.run_of(folder)
        run.is_needed = True
        self.update(folder, status)
        self.wait()
        if "run_id" not in run.state or run.state.get("deleted"):
            raise UserError(f"there is no run of '{folder.url}' in MLflow; the same command tries to record it again")
        return self.tracker.run(run.state["run_id"])

    def run_of(self, folder: RunFolder) -> _SyncedRun:
        """Return the run of a folder."""
        if folder.url not in self._runs:
            self._runs[folder.url] = _SyncedRun(self, folder, self.parent)
        return self._runs[folder.url]

    def usable_tracker(self) -> Tracker:
        """Return the experiment in which new runs are created; another one in place of one that was deleted."""
        if self.tracker.is_deleted():
            self._has_warned_of_experiment = True
            self.tracker = self.tracker.in_place_of_deleted(self._outbox.warn)
        return self.tracker

    def warn_of_deletion(self, what: Literal["run", "experiment"], folder: RunFolder, consequence: str) -> None:
        """Warn that a run was deleted in MLflow; once for all runs of an experiment that was deleted.

        Args:
            what: what was deleted.
            folder: folder of the run.
            consequence: what becomes of the run.
        """
        if what == "run":
            self._outbox.warn(f"the run of '{folder.url}' was deleted in MLflow; {consequence}")
        elif not self._has_warned_of_experiment:
            self._has_warned_of_experiment = True
            self._outbox.warn(f"the experiment '{self.tracker.name}' was deleted in MLflow; its runs are left alone")

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
