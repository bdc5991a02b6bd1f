"""MLflow: where its data are, requests to it, and one run of it. `mcrnn.tracking.sync` keeps runs up to date.

Nothing here uses MLflow's global state: tracking URI, experiment and parent run are passed as arguments.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mcrnn.errors import UserError
from mcrnn.passwords import mask_passwords
from mcrnn.storage.retry import PATIENCE, Outage, ServiceUnavailableError, with_retries
from mcrnn.storage.root import Storage
from mcrnn.storage.s3_errors import translate_errors

if TYPE_CHECKING:
    from mlflow.store.entities import PagedList
    from mlflow.tracking import MlflowClient


Result = TypeVar("Result")

UNAVAILABLE = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
"""MLflow error codes that mean "temporarily unavailable"; its client uses them where there is no answer at all."""
REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
)
"""MLflow error codes that mean "never": what the request is about was deleted, or something is wrong with it."""

for _name, _value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),  # `mlflow_request` repeats what fails, and says so
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
):
    os.environ.setdefault(_name, _value)


def quiet_mlflow() -> None:
    """Log only errors of MLflow and of its database migrations, which otherwise report each step."""
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


@contextlib.contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Turn an error of MLflow into one line that says what is wrong with the server or the database.

    Args:
        uri: tracking URI of the requests made within the context.

    Raises:
        UserError: MLflow cannot be used.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        message, reason = str(error), summarize_error(str(error))
        setting = f"MLFLOW_TRACKING_URI is {mask_passwords(uri)}"
        if any(code in message for code in ("401", "Unauthorized")):
            raise UserError(
                f"the tracking server does not know you: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                f"({setting})"
            ) from None
        if any(code in message for code in ("403", "Forbidden", "PERMISSION_DENIED")):
            raise UserError(f"the tracking server refuses this host or user ({setting}): {reason}") from None
        if not uri.startswith("http"):
            raise UserError(f"MLflow's database '{mask_passwords(uri)}' cannot be used: {reason}") from None
        raise UserError(f"the tracking server cannot be reached ({setting}): {reason}") from None


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
            if not patience or (isinstance(error, MlflowException) and error.error_code not in UNAVAILABLE):
                raise
            raise ServiceUnavailableError(summarize_error(str(error))) from None

    outage = Outage("MLflow", meanwhile="waiting for it", afterwards="work goes on")
    try:
        return with_retries(translated, outage, patience)
    except ServiceUnavailableError as error:
        if not patience:
            raise
        raise UserError(
            f"MLflow does not answer ({error}). Nothing is lost: when it is back, the same command goes on"
        ) from None


@contextlib.contextmanager
def refusals_explained() -> Iterator[None]:
    """Turn a refusal of MLflow into one line: what a user deletes there is made anew when the command is given again.

    Raises:
        UserError: MLflow refuses a request made within the context.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        raise UserError(
            f"MLflow refuses a request ({summarize_error(str(error))}). What was deleted there meanwhile is recorded "
            "anew by the same command"
        ) from None


def find_deletion(client: MlflowClient, run_id: str) -> Literal["run", "experiment"] | None:
    """Return what was deleted in MLflow: a run, or its whole experiment and the run with it; None where neither was."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return "run"
    if info.lifecycle_stage == "active":
        return None
    return "experiment" if is_experiment_deleted(client, info.experiment_id) else "run"


def is_experiment_deleted(client: MlflowClient, experiment_id: str) -> bool:
    """Return whether an experiment was deleted in MLflow, for good or not."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(experiment_id).lifecycle_stage != "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True


def summarize_error(message: str) -> str:
    """Return what a user needs to read of an error of MLflow: one line of at most 200 characters, no passwords."""
    line = mask_passwords(message.strip().splitlines()[0]) if message.strip() else "no reason given"
    for known in ("Connection refused", "Name or service not known", "timed out", "No route to host"):
        if known in message:
            return known
    return line if len(line) < 200 else line[:200] + "..."


@dataclass(frozen=True)
class Run:
    """One run in MLflow, and what is added to it beyond the content of its folder."""

    tracking_uri: str
    run_id: str
    patience: float = PATIENCE
    """Seconds that a request waits for an MLflow that does not answer."""

    def is_deleted(self) -> bool:
        """Return whether the run was deleted in MLflow, so that nothing can be added to it."""
        return self._request(lambda client: find_deletion(client, self.run_id)) is not None

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Add metrics in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        self._request(lambda client: client.log_batch(self.run_id, metrics=rows))

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Add files as artifacts.

        Args:
            paths: the files.
            folder: folder of the artifacts; by default the top one.
        """
        for path in paths:
            self._request(lambda client: client.log_artifact(self.run_id, str(path), folder))  # noqa: B023

    def log_json(self, contents: dict[str, Any]) -> None:
        """Add JSON artifacts.

        Args:
            contents: content by file name.
        """
        with tempfile.TemporaryDirectory() as folder:
            for name, content in contents.items():
                path = Path(folder) / name
                path.write_text(json.dumps(content, indent=1))
                self.log_files([path])

    def set_tags(self, tags: dict[str, str]) -> None:
        """Set tags, and replace those of the same names."""
        from mlflow.entities import RunTag

        self._request(lambda client: client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()]))

    def _request(self, request: Callable[[MlflowClient], Result]) -> Result:
        return mlflow_request(lambda: request(client_of(self.tracking_uri)), self.patience)


_clients: dict[str, MlflowClient] = {}


def client_of(uri: str) -> MlflowClient:
    """Return the client of a tracking URI; there is one in a process, because making one costs more than a call.

    A database gets its tables when its first client is made. Of processes of this machine that start at the same
    moment, one makes them, and the others wait for it.
    """
    if uri not in _clients:
        from filelock import FileLock
        from mlflow.tracking import MlflowClient

        quiet_mlflow()
        name = f"mcrnn-mlflow-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
        with contextlib.nullcontext() if uri.startswith("http") else FileLock(Path(tempfile.gettempdir()) / name):
            _clients[uri] = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return _clients[uri]


def all_pages(search: Callable[..., PagedList[Result]], *arguments: Any) -> list[Result]:
    """Return everything that a search of MLflow's client finds: one call of it returns a page, such as 100 models.

    Args:
        search: a method of the client, such as `search_registered_models`.
        arguments: its arguments.
    """
    page = search(*arguments)
    found = list(page)
    while page.token:
        page = search(*arguments, page_token=page.token)
        found += page
    return found


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep all output off the terminal, for MLflow's progress bars and success messages."""
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
