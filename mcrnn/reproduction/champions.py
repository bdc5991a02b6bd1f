"""The champions in the registry, which may stand beside the networks of the paper."""

from __future__ import annotations

from mcrnn.evaluation.selection import SelectedModel, select_models
from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import all_pages, client_of, quiet_mlflow, reachable, tracking_uri
from mcrnn.tracking.registry import CHAMPION


def champions(digest: str, storage: Storage) -> list[SelectedModel]:
    """Return the champions in the registry that were trained on a store and can be loaded.

    Args:
        digest: digest of the store.
        storage: the storage root.

    Raises:
        UserError: MLflow is out of reach.
    """
    quiet_mlflow()
    with reachable(tracking_uri(storage)):
        client = client_of(tracking_uri(storage))
        models = all_pages(client.search_registered_models)
        names = sorted(model.name for model in models if CHAMPION in model.aliases)
        found = {name: client.get_model_version_by_alias(name, CHAMPION) for name in names}
    uris = [
        f"models:/{name}@{CHAMPION}" for name, each in found.items() if each.tags.get("mcrnn.store_digest") == digest
    ]
    return select_models(uris, storage)[0]
