"""MLflow as a mirror of what is on disk: a run for a search, below it one for each training.

A training writes down what it is (`record.json`) and how it goes (`metrics.jsonl`) in its own folder; the command that
started it brings its run in MLflow up to that, in a thread. So training never waits for MLflow, its workers need not
know it, and what a server misses while it is away is sent when it is back, or by the same command later.

Nothing here uses MLflow's global state: tracking URI, experiment and parent run are passed on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcrnn.errors import UserError
from mcrnn.lineage import is_gone, masked, origin
from mcrnn.outbox import PATIENCE, NotSent, Outbox
from mcrnn.storage import Location, Storage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RECORD_FILE = "record.json"
"""what a training is; its run in MLflow is found by the key in it"""
METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
"""how much of it is in MLflow, and in which run"""
FINAL = ("FINISHED", "FAILED")
CONFIGURATION_FILE = "configuration.json"
"""among the artifacts of a training's run"""
KEY_TAG, PROCESS_TAG = "mcrnn.key", "mcrnn.process"
NOT_METRICS = ("epoch", "time")
METRICS_OF_A_CALL = 900
"""MLflow takes at most 1,000"""

for _name, _value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),  # a server that is away is tried again here
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
):
    os.environ.setdefault(_name, _value)


def quiet_mlflow() -> None:
    """MLflow and its database migrations report to the log what a user of ours need not see."""
    for name in ("mlflow", "alembic", "alembic.runtime.migration", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Tracker:
    """Where runs are recorded."""

    tracking_uri: str
    experiment_id: str
    origin: dict[str, Any] = field(default_factory=dict)
    """of the command that records them"""

    @classmethod
    def open(cls, storage: Storage, experiment: str) -> Tracker:
        """Find the experiment or create it, and MLflow's database with it; runs whose process is gone are ended.

        Raises:
            UserError: the tracking server cannot be used; says why.
        """
        quiet_mlflow()
        uri = storage.tracking_uri
        with reachable(uri):
            client = client_of(uri)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                identifier = client.create_experiment(experiment, artifact_location=storage.artifact_root)
            else:
                identifier = found.experiment_id
                _end_abandoned(client, [identifier])
        return cls(uri, identifier, origin())

    def run(self, run_id: str) -> Run:
        """One of its runs."""
        return Run(self.tracking_uri, run_id)


@contextlib.contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line that says what is wrong with the server.

    Raises:
        UserError: it cannot be used.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        message = str(error)
        place = f"MLFLOW_TRACKING_URI is {masked(uri)}"
        if any(code in message for code in ("401", "Unauthorized")):
            raise UserError(
                f"the tracking server does not know you: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                f"({place})"
            ) from None
        if any(code in message for code in ("403", "Forbidden", "PERMISSION_DENIED")):
            raise UserError(f"the tracking server refuses this host or user ({place}): {_short(message)}") from None
        if not uri.startswith("http"):
            raise UserError(f"MLflow's database '{masked(uri)}' cannot be used: {_short(message)}") from None
        raise UserError(f"the tracking server cannot be reached ({place}): {_short(message)}") from None


def _short(message: str) -> str:
    """The part of an error that a person reads."""
    line = masked(message.strip().splitlines()[0]) if message.strip() else "no reason given"
    for known in ("Connection refused", "Name or service not known", "timed out", "No route to host"):
        if known in message:
            return known
    return line if len(line) < 200 else line[:200] + "..."


def recorded(storage: Storage, run_id: str) -> tuple[dict[str, Any], str]:
    """The configuration of a run, and the digest of the store that it trained on.

    Raises:
        UserError: there is no such run, or it is not of a training.
    """
    from mlflow.exceptions import MlflowException

    quiet_mlflow()
    uri = storage.tracking_uri
    try:
        with reachable(uri):
            client_of(uri).search_experiments(max_results=1)
        run = client_of(uri).get_run(run_id)
        digest = run.data.tags["mcrnn.store_digest"]
        with tempfile.TemporaryDirectory(prefix="mcrnn-run-") as place:
            path = client_of(uri).download_artifacts(run_id, CONFIGURATION_FILE, place)
            return json.loads(Path(path).read_bytes()), digest
    except KeyError:
        raise UserError(f"the run {run_id} is not of a training: it has no record of what it trained on") from None
    except (MlflowException, OSError) as error:
        raise UserError(f"there is no run {run_id} with a configuration: {_short(str(error))}") from None


def end_abandoned(uri: str) -> None:
    """End the runs, of all experiments, whose process was killed; they go on when their command is given again.

    Raises:
        UserError: the tracking server cannot be used.
    """
    quiet_mlflow()
    with reachable(uri):
        client = client_of(uri)
        _end_abandoned(client, [experiment.experiment_id for experiment in client.search_experiments()])


def _end_abandoned(client: MlflowClient, experiments: list[str]) -> None:
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000):
        process = run.data.tags.get(PROCESS_TAG)
        if process and is_gone(json.loads(process)):
            client.set_terminated(run.info.run_id, "KILLED")


@dataclass(frozen=True)
class Run:
    """One MLflow run, for what is added to it when it has ended."""

    tracking_uri: str
    run_id: str

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Metrics, in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        client_of(self.tracking_uri).log_batch(self.run_id, metrics=rows)

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Files as artifacts."""
        for path in paths:
            client_of(self.tracking_uri).log_artifact(self.run_id, str(path), folder)

    def log_json(self, contents: dict[str, Any]) -> None:
        """JSON artifacts by file name."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in contents.items():
                path = Path(folder) / name
                path.write_text(json.dumps(content, indent=1))
                self.log_files([path])

    def set_tags(self, tags: dict[str, str]) -> None:
        """Tags, replacing those of the same name."""
        from mlflow.entities import RunTag

        client_of(self.tracking_uri).log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()])


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
    if _read(folder, RECORD_FILE) is not None:
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


def _read(folder: Location, name: str) -> Any:
    try:
        return json.loads(folder.read(name))
    except FileNotFoundError:
        return None


def _read_metrics(folder: Location) -> list[dict[str, float]]:
    try:
        return [json.loads(line) for line in folder.read(METRICS_FILE).splitlines()]
    except FileNotFoundError:
        return []


def settled(folder: Location) -> bool:
    """Whether the run of a training that ended has all of it."""
    state = _read(folder, RUN_FILE) or {}
    return "deleted" in state or (state.get("status") in FINAL and state.get("sent", 0) >= len(_read_metrics(folder)))


@dataclass
class _Mirror:
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
            NotSent: MLflow does not answer, or the folder's storage.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._update(self.status)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise NotSent(_short(str(error))) from None
            self._keep(deleted=True)  # by somebody, in the UI
        except (OSError, UserError) as error:
            raise NotSent(str(error)) from None

    def _update(self, status: str | None) -> None:
        self.state = self.state or _read(self.folder, RUN_FILE) or {}
        if self.state.get("deleted"):
            return
        if "run_id" not in self.state or not self.state.get("described"):
            record = _read(self.folder, RECORD_FILE)
            if record is None:
                return  # it has not begun
            if "run_id" not in self.state:
                self._keep(run_id=self._find(record["key"]) or self._create(record), sent=0, status="RUNNING")
            self._describe(record)
            self._keep(described=True)
        lines, sent = _read_metrics(self.folder), self.state.get("sent", 0)
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
        self.tracker.run(run_id).log_json(record["files"] | {"origin.json": of})

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


class Mirrors:
    """Keeps the runs of a command up to what their folders say, in a thread of its own.

    Args:
        tracker: where.
        warn: takes a line when MLflow does not answer.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], None] | None = None) -> None:
        self.tracker = tracker
        self.parent: str | None = None
        """the run that those begun from now on are below"""
        self._mirrors: dict[str, _Mirror] = {}
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

    def _mirror(self, folder: Location) -> _Mirror:
        if folder.url not in self._mirrors:
            self._mirrors[folder.url] = _Mirror(self.tracker, folder, self.parent)
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


_clients: dict[str, MlflowClient] = {}


def client_of(tracking_uri: str) -> MlflowClient:
    """One client a process and server: making one costs more than a call."""
    if tracking_uri not in _clients:
        from mlflow.tracking import MlflowClient

        quiet_mlflow()
        _clients[tracking_uri] = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    return _clients[tracking_uri]


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted paths to values, as the space of a search names them."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
