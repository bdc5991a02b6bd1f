"""Load a trained model by any of its names: a registry URI, a run in MLflow, or a folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcrnn.errors import UserError, did_you_mean, first_line
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.passwords import mask_passwords
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import all_pages, client_of, quiet_mlflow, reachable, silenced, tracking_uri
from mcrnn.tracking.provenance import code_version
from mcrnn.tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from."""

    model: TrainedModel
    run_id: str | None
    """Id of the run in MLflow that trained it; None for a model of a folder."""
    version: int | None = None
    """Version of the registered model; None for a model that was not named by the registry."""

    def identity(self, uri: str) -> dict[str, str]:
        """Return what says for good which model it is, by the name that it was asked for.

        Returns:
            `model`, `model_digest` (SHA-256 of its weights), `store_digest` (of the data that it was trained on),
            `version` (of this package) and, where they are known, `model_version` and `run_id`.
        """
        known = {"model_version": self.version, "run_id": self.run_id, "store_digest": self.model.field.store_digest}
        return {
            "model": mask_passwords(uri),
            "model_digest": self.model.digest,
            **{key: str(value) for key, value in known.items() if value},
            "version": code_version(),
        }


def load_model(uri: str, storage: Storage | None = None) -> TrainedModel:
    """Load a trained model; see `mcrnn.load_model`."""
    return find(uri, storage or Storage.open()).model


def find(uri: str, storage: Storage) -> LoadedModel:
    """Load a model and find out which run trained it.

    Only weights and configuration are read; no code of the model is run.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN_ID/model`, or a folder: a model directory or the
            folder of a run, relative to the storage root.
        storage: the storage root.

    Raises:
        UserError: there is no such model.
    """
    if not uri.startswith(("models:/", "runs:/")):
        folder = storage.location(uri)
        found = [each for each in (RunFolder(folder).model, folder) if trained_model.CONFIG in each.sizes()]
        if not found and not folder.sizes():
            raise UserError(f"there is no model '{uri}': neither a registry URI (models:/NAME@champion) nor a folder")
        return LoadedModel(trained_model.load(found[0] if found else folder), None)

    import mlflow
    from mlflow.exceptions import MlflowException

    quiet_mlflow()
    logging.getLogger("mlflow.tracking").setLevel(logging.ERROR)
    with reachable(tracking_uri(storage)):
        client = client_of(tracking_uri(storage))
        client.search_registered_models(max_results=1)
    mlflow.set_tracking_uri(tracking_uri(storage))
    run_id: str | None = None
    version: int | None = None
    try:
        with silenced():
            address = uri
            if uri.startswith("models:/"):
                found_version = find_version(client, uri)
                run_id, version = found_version.run_id, int(found_version.version)
                address = f"models:/{found_version.name}/{version}"  # an alias may move before it is read again
            else:
                run_id = uri.removeprefix("runs:/").split("/")[0]
            local = Path(mlflow.artifacts.download_artifacts(artifact_uri=address))
    except (MlflowException, OSError) as error:
        raise UserError(_explain(client, uri, error)) from None
    folders = [path.parent for path in local.rglob(trained_model.WEIGHTS)]
    if not folders:
        raise UserError(f"'{uri}' is not a model of this project")
    return LoadedModel(trained_model.load(LocalFolder(folders[0])), run_id, version)


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """Return the version that a registry URI names.

    Raises:
        UserError: the URI names no version.
        MlflowException: there is no such version.
    """
    name = uri.removeprefix("models:/")
    if "@" in name:
        return client.get_model_version_by_alias(*name.rsplit("@", 1))
    if "/" in name:
        return client.get_model_version(*name.rsplit("/", 1))
    raise UserError(f"'{uri}' names no version; write models:/{name}@champion or models:/{name}/1")


def _explain(client: MlflowClient, uri: str, error: Exception) -> str:
    """Return in words why there is no such model, with the nearest name that exists."""
    message = first_line(error)
    if uri.startswith("models:/"):
        name = uri.removeprefix("models:/").replace("@", "/").split("/")[0]
        names = [m.name for m in all_pages(client.search_registered_models)]
        if name not in names:
            known = did_you_mean(name, names) if names else "; the registry is empty"
            return f"there is no model '{name}' in the registry{known}"
        return f"the model '{name}' has no such version or alias: '{uri}'"
    return f"there is no model '{uri}': {message}"
