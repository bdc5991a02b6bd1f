"""Whether two models, or a model and a store, are of the same data."""

from __future__ import annotations

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.models.trained_model import TrainedModel


def check_store(model: TrainedModel, store: FieldStore, name: str) -> None:
    """Refuse a store that is not the one that a model was trained on.

    Raises:
        UserError: its digest, units or grid are others; says both.
    """
    differences = store_differences(model, store)
    if differences:
        raise UserError(
            f"'{name}' was trained on other data than '{store.name}': {'; '.join(differences)}. Build the store anew "
            "with its old parameters, or evaluate it with --other-data"
        )


def store_differences(model: TrainedModel, store: FieldStore) -> list[str]:
    """In what a store differs from the one that a model was trained on."""
    field, data = model.field, model.config.data
    found = []
    if field.store_digest and store.digest != field.store_digest:
        found.append(f"its digest is {store.digest[:12]}, that of the training {field.store_digest[:12]}")
    if store.attributes["units"] != field.units:
        found.append(f"its units are {store.attributes['units']}, those of the training {field.units}")
    grid = store.grid(data.coarsen)
    if grid != field.frame_shape[1:] and not model.network.takes_any_grid:
        shown = [" x ".join(map(str, each)) for each in (grid, field.frame_shape[1:])]
        found.append(f"its grid is {shown[0]} after coarsening, that of the training {shown[1]}")
    return found
