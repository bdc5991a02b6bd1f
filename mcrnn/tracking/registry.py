"""The model in MLflow's registry: packaged, registered, loaded again; and which version is the one in use.

Aliases say what a version is: `champion` is in use, `previous` was before it, `candidate` waits to be judged
(`python -m mcrnn.promote`). Every move of the champion is a tag of the registered model, with who, when and why.
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

import mcrnn
from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.storage.location import Location
from mcrnn.tracking.mlflow_client import Run, _silent, client_of, quiet_mlflow
from mcrnn.tracking.model_card import card

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

REQUIREMENTS = ("torch", "numpy", "safetensors", "pydantic", "pyyaml", "mlflow")
TEST_METRICS = ("rmse_teacher_forced", "rmse_closed_loop", "rmse_closed_loop_normalized")
CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"
MOVE_TAG = "mcrnn.move."
SECONDS_OF_A_MOVE = 60.0
"""after which the lock of a move whose process was killed is broken"""


def register(
    run: Run,
    folder: Location,
    name: str,
    *,
    found: dict[str, Any],
    judged: dict[str, Any] | None,
    origin: dict[str, Any],
) -> tuple[int, str]:
    """Log a model directory to a run and register it under a name, once; the first of a name is the champion.

    Args:
        run: in which the model was trained.
        folder: its model directory.
        name: of the registered model.
        found: how it was found: search, trial, best and, of several seeds, mean and std.
        judged: metrics of the test split, where it could be judged.
        origin: of the command that registers it.

    Returns:
        Its version, and the alias that it has now.
    """
    quiet_mlflow()
    client = client_of(run.tracking_uri)
    earlier = [v for v in client.search_model_versions(f"run_id = '{run.run_id}'") if v.name == name]
    number = int(earlier[0].version) if earlier else _log_and_register(run, folder, name)
    model = trained_model.load(folder)
    text = card(model, name, number, run.run_id, found, judged)
    client.update_model_version(name, str(number), description=text)
    tags = {f"mcrnn.{key}": f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in found.items()}
    tags |= {f"test.{key}": f"{judged[key]:.6g}" for key in TEST_METRICS} if judged else {}
    tags |= {
        "mcrnn.architecture": model.config.model.architecture,
        "mcrnn.store": model.config.data.store,
        "mcrnn.store_digest": model.field.store_digest,
        **({"mcrnn.commit": origin["commit"]} if "commit" in origin else {}),
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, str(number), key, value)
    with alias_lock(client, name):
        if champion(client, name) is None:
            set_champion(client, name, to=number, before=None, why="the first version of this name", origin=origin)
            return number, CHAMPION
        if champion(client, name) == number:
            return number, CHAMPION
        client.set_registered_model_alias(name, CANDIDATE, str(number))
        return number, CANDIDATE


def _log_and_register(run: Run, folder: Location, name: str) -> int:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    model = trained_model.load(folder)
    channels, height, width = model.field.frame_shape
    grid = (-1, -1) if model.network.takes_any_grid else (height, width)

    def frames(channels: int) -> Schema:
        return Schema([TensorSpec(np.dtype(np.float32), (-1, -1, channels, *grid))])

    signature = ModelSignature(
        frames(channels), frames(model.network.channels_out), ParamSchema([ParamSpec("steps", "long", 1)])
    )
    package = Path(mcrnn.__file__).parent
    mlflow.set_tracking_uri(run.tracking_uri)
    with tempfile.TemporaryDirectory(prefix="mcrnn-model-") as place:
        local = Path(place) / "model"
        local.mkdir()
        for file in (trained_model.WEIGHTS, trained_model.CONFIG):
            (local / file).write_bytes(folder.read(file))
        with _silent(), _status_kept(run):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(package / "pyfunc_model.py"),
                artifacts={"model": str(local)},
                code_paths=[str(package)],
                signature=signature,
                pip_requirements=[f"{p}=={version(p).split('+')[0]}" for p in REQUIREMENTS],
                registered_model_name=name,
            )
    return int(info.registered_model_version)


@contextlib.contextmanager
def _status_kept(run: Run) -> Iterator[None]:
    """Inside a run, as MLflow's fluent functions ask for, whose status stays FINISHED."""
    import mlflow

    with mlflow.start_run(run_id=run.run_id):
        yield


def champion(client: MlflowClient, name: str) -> int | None:
    """The version in use, None where there is none."""
    return aliases(client, name).get(CHAMPION)


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """Versions by alias."""
    return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}


@contextlib.contextmanager
def alias_lock(client: MlflowClient, name: str) -> Iterator[None]:
    """Let one process at a time move the aliases of a model, on any machine.

    The lock is a registered model of another name, which only one can create.

    Raises:
        UserError: others move it for too long.
    """
    from mlflow.exceptions import MlflowException

    lock = f"{name}.moving"
    deadline = time.monotonic() + 2 * SECONDS_OF_A_MOVE
    while True:
        try:
            client.create_registered_model(lock, description="A lock, held while aliases are moved.")
            break
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with contextlib.suppress(MlflowException):  # given back a moment ago
            if time.time() - client.get_registered_model(lock).creation_timestamp / 1000 > SECONDS_OF_A_MOVE:
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
    *,
    to: int,
    before: int | None,
    why: str,
    origin: dict[str, Any],
    figures: dict[str, Any] | None = None,
) -> None:
    """Make a version the champion, and the one before it `previous`, and write down the move.

    Call it inside `moving`.
    """
    now = datetime.datetime.now(datetime.UTC)
    record = {
        "from": before,
        "to": to,
        "when": now.isoformat(timespec="seconds"),
        "who": f"{origin['user']} on {origin['process']['host']}",
        "why": why,
        **(figures or {}),
    }
    client.set_registered_model_tag(name, MOVE_TAG + now.strftime("%Y%m%dT%H%M%S.%fZ"), json.dumps(record))
    client.set_registered_model_alias(name, CHAMPION, str(to))
    client.update_registered_model(name, description=client.get_model_version(name, str(to)).description)
    if before is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(before))
    if aliases(client, name).get(CANDIDATE) == to:
        client.delete_registered_model_alias(name, CANDIDATE)


def champion_history(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """All moves of the champion, the first one first."""
    tags = client.get_registered_model(name).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(MOVE_TAG)]
