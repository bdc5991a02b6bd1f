"""Register models in MLflow's model registry, and keep track of which version is in use.

Aliases say what a version is: `champion` is in use, `previous` was in use before it, and `candidate` is to be compared
with the champion (`python -m mcrnn.promote`). Each change of the champion is a tag of the registered model that says
who made it, when and why.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.storage.location import Location
from mcrnn.tracking.mlflow_client import Run, all_pages, client_of, quiet_mlflow, silenced
from mcrnn.tracking.model_card import card

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

REQUIREMENTS = ("torch", "numpy", "safetensors", "pydantic", "pyyaml", "mlflow")
"""Packages that a registered model needs where it is loaded. The modules that it imports may need no others.

A model whose inputs follow from dates needs cftime, too.
"""
TEST_METRICS = ("rmse_teacher_forced", "rmse_closed_loop", "rmse_closed_loop_normalized")
"""Metrics of the test split that are shown with a version. Where channels differ in units, only the last one is."""
CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"
CHANGE_TAG = "mcrnn.move."
"""Start of the names of the tags that record changes of the champion; the time of the change follows."""
LOCK_SECONDS = 60.0
"""Age at which a lock is taken to be left by a process that was killed. A change itself takes a second or two."""


def register(
    run: Run,
    folder: Location,
    name: str,
    *,
    found: dict[str, Any],
    test_metrics: dict[str, Any] | None,
    origin: dict[str, Any],
) -> tuple[int, str]:
    """Log a model directory to a run and register it. The first version of a name becomes the champion.

    A model that is registered already, because the command was killed just after, is not registered twice.

    Args:
        run: the run in which the model was trained.
        folder: its model directory.
        name: name of the registered model.
        found: how the model was found: `search`, `trial`, `best` (the validation error) and, where it was confirmed
            with several seeds, `mean`, `std`, `seeds`, `interval` (the bounds or None), `configurations` (how many of
            them competed), `trials` and `statement` (all this in a sentence). They become tags of the version.
        test_metrics: metrics of the test split; None where the model could not be evaluated on it.
        origin: the command that registers it; see `mcrnn.tracking.provenance.origin`.

    Returns:
        The version, and the alias that it has now: `champion` or `candidate`.
    """
    quiet_mlflow()
    client = client_of(run.tracking_uri)
    earlier = [v for v in all_pages(client.search_model_versions, f"run_id = '{run.run_id}'") if v.name == name]
    number = int(earlier[0].version) if earlier else _log_and_register(run, folder, name)
    model = trained_model.load(folder)
    text = card(model, name, number, run.run_id, found, test_metrics)
    client.update_model_version(name, str(number), description=text)
    tags = {f"mcrnn.{key}": _tag(value) for key, value in found.items() if value is not None}
    tags |= {f"test.{key}": f"{value:.6g}" for key, value in test_errors(test_metrics or {}).items()}
    tags |= {
        "mcrnn.architecture": model.architecture,
        "mcrnn.store": model.config.data.store,
        "mcrnn.store_digest": model.field.store_digest,
        **({"mcrnn.commit": origin["commit"]} if "commit" in origin else {}),
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, str(number), key, value)
    with alias_lock(client, name):
        if champion(client, name) is None:
            set_champion(client, name, number, before=None, reason="the first version of this name", origin=origin)
            return number, CHAMPION
        if champion(client, name) == number:
            return number, CHAMPION
        client.set_registered_model_alias(name, CANDIDATE, str(number))
        return number, CANDIDATE


def test_errors(metrics: dict[str, Any]) -> dict[str, float]:
    """Return those of `TEST_METRICS` that an evaluation has."""
    return {key: metrics[key] for key in TEST_METRICS if metrics.get(key) is not None}


def _tag(value: Any) -> str:
    """Return a value as the text of a tag; the bounds of an interval as `0.12 to 0.34`."""
    if isinstance(value, tuple | list):
        return " to ".join(map(_tag, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _log_and_register(run: Run, folder: Location, name: str) -> int:
    """Log the model and the code of this package as a pyfunc model of MLflow, and return its new version."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    model = trained_model.load(folder)
    channels, height, width = model.field.frame_shape
    grid = (-1, -1) if model.network.takes_any_grid else (height, width)

    def frames(channels: int) -> Schema:
        return Schema([TensorSpec(np.dtype(np.float32), (-1, -1, channels, *grid))])

    needs_dates = bool(model.field.forcings)
    params = [ParamSpec("steps", "long", 1), *([ParamSpec("start", "string", "")] if needs_dates else [])]
    signature = ModelSignature(frames(channels), frames(model.network.channels_out), ParamSchema(params))
    packages = (*REQUIREMENTS, *(("cftime",) if needs_dates else ()))
    package = Path(__file__).parents[1]  # mcrnn/, which travels with the model
    mlflow.set_tracking_uri(run.tracking_uri)
    with tempfile.TemporaryDirectory(prefix="mcrnn-model-") as temporary:
        local = Path(temporary) / "model"
        local.mkdir()
        for file in (trained_model.WEIGHTS, trained_model.CONFIG):
            (local / file).write_bytes(folder.read(file))
        with silenced(), _active(run):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"model": str(local)},
                code_paths=[str(package)],
                signature=signature,
                pip_requirements=[f"{p}=={version(p).split('+')[0]}" for p in packages],
                registered_model_name=name,
            )
    return int(info.registered_model_version)


@contextlib.contextmanager
def _active(run: Run) -> Iterator[None]:
    """Make a run MLflow's active run, as `log_model` needs it. At the end MLflow sets its status to FINISHED again."""
    import mlflow

    with mlflow.start_run(run_id=run.run_id):
        yield


def champion(client: MlflowClient, name: str) -> int | None:
    """Return the version in use, None where there is none."""
    return aliases(client, name).get(CHAMPION)


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """Return the versions of a registered model by their aliases."""
    return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}


@contextlib.contextmanager
def alias_lock(client: MlflowClient, name: str) -> Iterator[None]:
    """Let only one process at a time, on any machine, change the aliases of a model.

    A change reads the champion and then writes several aliases, which MLflow cannot do in one transaction. So that two
    commands do not both replace the same champion, they need a lock, and all that their machines have in common is the
    MLflow server. Of everything that MLflow creates, a registered model is the one whose name must be unique: its
    database lets exactly one of several processes create it. So the lock is an empty registered model with the name
    NAME.moving, and whoever has created it holds the lock until deleting it.

    A process that is killed leaves the lock behind. A lock older than `LOCK_SECONDS` is therefore deleted by the next
    process that waits for it. (Should two do so at the same moment, the slower one may delete the lock that the faster
    one has just created. Both then find the champion as it is, so that at worst one change is overwritten, and both are
    in the history.)

    Args:
        client: client of the server.
        name: name of the registered model whose aliases are to be changed.

    Raises:
        UserError: other processes held the lock for two minutes.
    """
    from mlflow.exceptions import MlflowException

    lock = f"{name}.moving"
    deadline = time.monotonic() + 2 * LOCK_SECONDS
    while True:
        try:
            client.create_registered_model(lock, description="A lock, held while aliases are moved.")
            break
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with contextlib.suppress(MlflowException):  # the lock may have been released since
            if time.time() - client.get_registered_model(lock).creation_timestamp / 1000 > LOCK_SECONDS:
                client.delete_registered_model(lock)
        if time.monotonic() > deadline:
            raise UserError(f"'{name}' is being promoted by others; try again")
        time.sleep(0.2)
    try:
        yield
    finally:
        with contextlib.suppress(MlflowException):
            client.delete_registered_model(lock)


def set_champion(
    client: MlflowClient,
    name: str,
    version: int,
    *,
    before: int | None,
    reason: str,
    origin: dict[str, Any],
    comparison: dict[str, Any] | None = None,
) -> None:
    """Make a version the champion and the one before it `previous`, and record the change. Call it in `alias_lock`.

    Args:
        client: client of the server.
        name: name of the registered model.
        version: the new champion.
        before: the champion until now, None where there was none.
        reason: why it is changed.
        origin: the command that changes it; see `mcrnn.tracking.provenance.origin`.
        comparison: errors of both versions, which are added to the record.
    """
    now = datetime.datetime.now(datetime.UTC)
    record = {
        "from": before,
        "to": version,
        "when": now.isoformat(timespec="seconds"),
        "who": f"{origin['user']} on {origin['process']['host']}",
        "why": reason,
        **(comparison or {}),
    }
    client.set_registered_model_tag(name, CHANGE_TAG + now.strftime("%Y%m%dT%H%M%S.%fZ"), json.dumps(record))
    client.set_registered_model_alias(name, CHAMPION, str(version))
    client.update_registered_model(name, description=client.get_model_version(name, str(version)).description)
    if before is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(before))
    if aliases(client, name).get(CANDIDATE) == version:
        client.delete_registered_model_alias(name, CANDIDATE)


def champion_history(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """Return the records of all changes of the champion, the oldest first; see `set_champion`."""
    tags = client.get_registered_model(name).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(CHANGE_TAG)]
