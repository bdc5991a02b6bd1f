"""Loading a trained model by any of its names: a registry URI, a run in MLflow, or a folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from mcrnn.errors import UserError, did_you_mean
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import _silent, client_of, quiet_mlflow, reachable, tracking_uri


@dataclass(frozen=True)
class Loaded:
    """A model and where it came from."""

    model: TrainedModel
    run_id: str | None


def load_model(uri: str, storage: Storage | None = None) -> TrainedModel:
    """Load a model, whose `predict` takes and returns NumPy arrays, tensors or xarray's, in the field's units.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN_ID/model`, or a folder.
        storage: the root; by default MCRNN_STORAGE, or the current folder.

    Raises:
        UserError: there is no such model.
    """
    return find(uri, storage or Storage.open()).model


def find(uri: str, storage: Storage) -> Loaded:
    """Load a model by its registry URI, by a run's URI, or from a folder, and say which run it is of.

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
        found = [each for each in (folder.child("model"), folder) if trained_model.CONFIG in each.sizes()]
        if not found and not folder.sizes():
            raise UserError(f"there is no model '{uri}': neither a registry URI (models:/NAME@champion) nor a folder")
        return Loaded(trained_model.load(found[0] if found else folder), None)

    import mlflow
    from mlflow.exceptions import MlflowException

    quiet_mlflow()
    logging.getLogger("mlflow.tracking").setLevel(logging.ERROR)
    with reachable(tracking_uri(storage)):
        client = client_of(tracking_uri(storage))
        client.search_registered_models(max_results=1)
    mlflow.set_tracking_uri(tracking_uri(storage))
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
    folders = [path.parent for path in local.rglob(trained_model.WEIGHTS)]
    if not folders:
        raise UserError(f"'{uri}' is not a model of this project")
    return Loaded(trained_model.load(LocalFolder(folders[0])), run_id)


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
