"""MLflow: a run for a search, below it one for each training; see `mirrors` for how they come about.

Nothing here uses MLflow's global state: tracking URI, experiment and parent run are passed on.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mcrnn.errors import UserError
from mcrnn.storage.lease import is_gone
from mcrnn.storage.retry import PATIENCE, Outage, ServiceUnavailableError, with_retries
from mcrnn.storage.root import Storage
from mcrnn.storage.s3_errors import translate_errors
from mcrnn.tracking.provenance import mask_passwords, origin
from mcrnn.tracking.run_folder import CONFIGURATION_FILE

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


Result = TypeVar("Result")

KEY_TAG, PROCESS_TAG = "mcrnn.key", "mcrnn.process"

PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
"""codes of what MLflow answers, or its client where there is no answer, when it is away"""

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


def tracking_uri(storage: Storage) -> str:
    """Return the URI of MLflow's runs and models.

    It is MLFLOW_TRACKING_URI if that is set, else the SQLite database `mlflow.db` under a local root, or in the current
    folder if the root is on S3.
    """
    folder = Path(storage.name) if storage.is_local else Path.cwd()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"


def artifact_root(storage: Storage) -> str | None:
    """Return the URI under which new experiments keep their artifacts; None if the tracking server decides that."""
    is_database = re.match("(sqlite|postgresql|mysql|mssql)[+:]", tracking_uri(storage))
    return artifact_folder(storage) if is_database else None


def artifact_folder(storage: Storage) -> str:
    """Return the URI of the folder `mlartifacts` under the storage root."""
    return (Path(storage.name) / "mlartifacts").as_uri() if storage.is_local else f"{storage.name}/mlartifacts"


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
        uri = tracking_uri(storage)
        with reachable(uri):
            client = client_of(uri)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                identifier = client.create_experiment(experiment, artifact_location=artifact_root(storage))
            else:
                identifier = found.experiment_id
                _end_abandoned(client, [identifier])
        return cls(uri, identifier, origin())

    def run(self, run_id: str, patience: float = PATIENCE) -> Run:
        """One of its runs."""
        return Run(self.tracking_uri, run_id, patience)


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
        place = f"MLFLOW_TRACKING_URI is {mask_passwords(uri)}"
        if any(code in message for code in ("401", "Unauthorized")):
            raise UserError(
                f"the tracking server does not know you: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                f"({place})"
            ) from None
        if any(code in message for code in ("403", "Forbidden", "PERMISSION_DENIED")):
            raise UserError(f"the tracking server refuses this host or user ({place}): {short(message)}") from None
        if not uri.startswith("http"):
            raise UserError(f"MLflow's database '{mask_passwords(uri)}' cannot be used: {short(message)}") from None
        raise UserError(f"the tracking server cannot be reached ({place}): {short(message)}") from None


def mlflow_request(request: Callable[[], Result], patience: float = PATIENCE) -> Result:
    """Make a request to MLflow, and wait for MLflow, or the service that keeps its artifacts, while it is away.

    Args:
        request: Makes the request. It may be called several times; if it consists of several requests, it must be
            possible to make them again from the beginning.
        patience: Seconds to wait; with 0 the first failure is raised as it is.

    Returns:
        The result of the request.

    Raises:
        MlflowException: MLflow refuses the request, or does not answer and `patience` is 0.
        UserError: MLflow, or the service that keeps its artifacts, stays away.
    """
    from mlflow.exceptions import MlflowException

    def translated() -> Result:
        try:
            with translate_errors("the artifacts of MLflow"):
                return request()
        except (MlflowException, ServiceUnavailableError) as error:
            if not patience or (isinstance(error, MlflowException) and error.error_code not in PASSING):
                raise
            raise ServiceUnavailableError(short(str(error))) from None

    outage = Outage("MLflow", meanwhile="waiting for it", afterwards="work goes on")
    try:
        return with_retries(translated, outage, patience)
    except ServiceUnavailableError as error:
        if not patience:
            raise
        raise UserError(
            f"MLflow does not answer ({error}). Nothing is lost: when it is back, the same command goes on"
        ) from None


def short(message: str) -> str:
    """The part of an error that a person reads."""
    line = mask_passwords(message.strip().splitlines()[0]) if message.strip() else "no reason given"
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
    uri = tracking_uri(storage)
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
        raise UserError(f"there is no run {run_id} with a configuration: {short(str(error))}") from None


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
    patience: float = PATIENCE
    """with MLflow, in seconds"""

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Metrics, in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        self._ask(lambda client: client.log_batch(self.run_id, metrics=rows))

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Files as artifacts."""
        for path in paths:
            self._ask(lambda client: client.log_artifact(self.run_id, str(path), folder))  # noqa: B023

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

        self._ask(lambda client: client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()]))

    def _ask(self, ask: Callable[[MlflowClient], Result]) -> Result:
        return mlflow_request(lambda: ask(client_of(self.tracking_uri)), self.patience)


_clients: dict[str, MlflowClient] = {}


def client_of(uri: str) -> MlflowClient:
    """One client a process and server: making one costs more than a call."""
    if uri not in _clients:
        from mlflow.tracking import MlflowClient

        quiet_mlflow()
        _clients[uri] = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return _clients[uri]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep MLflow's progress bars and success messages off the terminal."""
    before = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = before
