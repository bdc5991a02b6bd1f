"""The model in MLflow's registry: packaged, registered under an alias, loaded again."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mcrnn import model_directory
from mcrnn.errors import UserError, did_you_mean
from mcrnn.model_directory import TrainedModel
from mcrnn.storage import LocalFolder, Storage
from mcrnn.tracking import Run, quiet_mlflow

REQUIREMENTS = ("torch", "numpy", "safetensors", "pydantic", "pyyaml", "mlflow")
CHAMPION = "champion"


def register(run: Run, folder: Path, name: str, alias: str = CHAMPION) -> int:
    """Log a model directory to a run, register it under a name and point the alias to it.

    Returns:
        The version it was given.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    quiet_mlflow()
    model = model_directory.load(LocalFolder(folder))
    channels, height, width = model.field.frame_shape

    def frames(channels: int) -> Schema:
        return Schema([TensorSpec(np.dtype(np.float32), (-1, -1, channels, height, width))])

    signature = ModelSignature(
        frames(channels), frames(model.network.channels_out), ParamSchema([ParamSpec("steps", "long", 1)])
    )
    package = Path(__file__).parent
    mlflow.set_tracking_uri(run.tracker.tracking_uri)
    with mlflow.start_run(run_id=run.run_id), _silent():
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "pyfunc_model.py"),
            artifacts={"model": str(folder)},
            code_paths=[str(package)],
            signature=signature,
            pip_requirements=[f"{p}=={version(p).split('+')[0]}" for p in REQUIREMENTS],
            registered_model_name=name,
        )
    client = mlflow.MlflowClient(tracking_uri=run.tracker.tracking_uri)
    number = int(info.registered_model_version)
    client.set_registered_model_alias(name, alias, str(number))
    return number


@contextlib.contextmanager
def _silent():  # type: ignore[no-untyped-def]
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


@dataclass(frozen=True)
class Loaded:
    """A model and where it came from."""

    model: TrainedModel
    run_id: str | None


def load(uri: str, storage: Storage) -> Loaded:
    """Load a model by its registry URI, by a run's URI, or from a folder.

    Only weights and configuration are read; no code of the model is run.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN_ID/model`, or a model directory or the
            folder of a run, relative to the storage root.
        storage: the root.

    Raises:
        UserError: there is no such model.
    """
    if not uri.startswith(("models:/", "runs:/")):
        folder = storage.location(uri)
        found = [each for each in (folder.child("model"), folder) if model_directory.CONFIG in each.sizes()]
        if not found and not folder.sizes():
            raise UserError(f"there is no model '{uri}': neither a registry URI (models:/NAME@champion) nor a folder")
        return Loaded(model_directory.load(found[0] if found else folder), None)

    import mlflow
    from mlflow.exceptions import MlflowException

    quiet_mlflow()
    logging.getLogger("mlflow.tracking").setLevel(logging.ERROR)
    client = mlflow.MlflowClient(tracking_uri=storage.tracking_uri)
    mlflow.set_tracking_uri(storage.tracking_uri)
    run_id: str | None = None
    try:
        with _silent():
            if uri.startswith("models:/"):
                run_id = _find_version(client, uri).run_id
            else:
                run_id = uri.removeprefix("runs:/").split("/")[0]
            local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise UserError(_explain(client, uri, error)) from None
    folders = [path.parent for path in local.rglob(model_directory.WEIGHTS)]
    if not folders:
        raise UserError(f"'{uri}' is not a model of this project")
    return Loaded(model_directory.load(LocalFolder(folders[0])), run_id)


def _find_version(client, uri: str):  # type: ignore[no-untyped-def]
    name = uri.removeprefix("models:/")
    if "@" in name:
        return client.get_model_version_by_alias(*name.rsplit("@", 1))
    if "/" in name:
        return client.get_model_version(*name.rsplit("/", 1))
    raise UserError(f"'{uri}' names no version; write models:/{name}@champion or models:/{name}/1")


def _explain(client, uri: str, error: Exception) -> str:  # type: ignore[no-untyped-def]
    message = str(error).splitlines()[0]
    if uri.startswith("models:/"):
        name = uri.removeprefix("models:/").replace("@", "/").split("/")[0]
        names = [m.name for m in client.search_registered_models()]
        if name not in names:
            known = did_you_mean(name, names) if names else "; the registry is empty"
            return f"there is no model '{name}' in the registry{known}"
        return f"the model '{name}' has no such version or alias: '{uri}'"
    return f"there is no model '{uri}': {message}"
