"""Whether two errors refer to the same data, which is what makes them comparable."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.models.trained_model import TrainedModel


@dataclass(frozen=True)
class DataIdentity:
    """What must be equal in two evaluations before their errors may be compared.

    Attributes:
        store_digest: digest of the field store; empty for a converted model whose training data are not known.
        units: units of the field.
        channels: names of the channels that the model takes.
        grid: height and width after coarsening.
        predicted_channels: how many channels, the first ones, the model predicts.
        masked: how many values of a frame are outside of the mask.
    """

    store_digest: str
    units: str
    channels: tuple[str, ...]
    grid: tuple[int, int]
    predicted_channels: int
    masked: int = 0

    @classmethod
    def of_training(cls, model: TrainedModel) -> DataIdentity:
        """Return the data that a model was trained on."""
        field = model.field
        _, height, width = field.frame_shape
        predicted, masked = model.network.channels_out, _count_masked(field.model_mask)
        return cls(field.store_digest, field.units, field.channels, (height, width), predicted, masked)

    def as_part_of(self, store: FieldStore) -> DataIdentity:
        """Return the same data with the digest of a store that has them, where only frames were appended since."""
        return replace(self, store_digest=store.digest) if self.store_digest in store.digests else self

    @classmethod
    def of_evaluation(cls, model: TrainedModel, store: FieldStore) -> DataIdentity:
        """Return the data of a store as a model takes them: the channels it was trained on, coarsened as it was.

        Raises:
            UserError: the coarsening does not divide the store's grid.
        """
        grid = store.grid(model.config.data.coarsen)
        units = ", ".join(dict.fromkeys(store.units_of(model.field.predicted)))
        if model.field.units == store.attributes["units"]:  # a model of before has those of all channels of the store
            units = model.field.units
        masked = _count_masked(store.mask(model.config.data.coarsen, list(model.field.channels)))
        return cls(store.digest, units, model.field.channels, grid, model.network.channels_out, masked)


def _count_masked(mask_CHW: np.ndarray | None) -> int:
    return 0 if mask_CHW is None else int((~mask_CHW).sum())


def data_differences(found: DataIdentity, expected: DataIdentity) -> list[str]:
    """Name what differs between two identities, so that it reads on after "it has".

    Returns:
        A phrase for each difference, such as "units K instead of m"; empty where the data are the same.
    """
    compared = (
        ("digest {}", found.store_digest[:12], expected.store_digest[:12]),
        ("units {}", found.units, expected.units),
        ("channels {}", ", ".join(found.channels), ", ".join(expected.channels)),
        ("a grid of {}", "{} x {}".format(*found.grid), "{} x {}".format(*expected.grid)),
        ("{} predicted channels", found.predicted_channels, expected.predicted_channels),
        ("{} masked values", found.masked, expected.masked),
    )
    return [f"{phrase.format(_word(a))} instead of {_word(b)}" for phrase, a, b in compared if a != b]


def _word(value: str | int) -> str | int:
    return "unknown" if value == "" else value


def store_differences(model: TrainedModel, store: FieldStore) -> list[str]:
    """Name in what a store differs from the data that a model was trained on.

    A digest that the model does not know is not compared, nor is the grid where the network takes any. A store to which
    frames were appended since is no other store.
    """
    found, expected = DataIdentity.of_evaluation(model, store), DataIdentity.of_training(model)
    if not expected.store_digest or expected.store_digest in store.digests:
        found = replace(found, store_digest=expected.store_digest)
    if model.network.takes_any_grid:
        found = replace(found, grid=expected.grid)
    return data_differences(found, expected)


def check_store(model: TrainedModel, store: FieldStore, name: str) -> None:
    """Refuse a store that is not the one that a model was trained on.

    Args:
        model: the model to be evaluated.
        store: the store to evaluate it on.
        name: name of the model in the message.

    Raises:
        UserError: digest, units or grid differ; the message gives both values of each.
    """
    if differences := store_differences(model, store):
        raise UserError(
            f"'{name}' was trained on other data than '{store.name}', which has {'; '.join(differences)}. Build the "
            "store anew with its old parameters, or evaluate it with --other-data"
        )


def check_same_data(found: DataIdentity, expected: DataIdentity, refusal: str, advice: str) -> None:
    """Refuse to compare errors on different data.

    Args:
        found: the data of the one that is refused.
        expected: the data that it is compared with.
        refusal: first part of the message: what cannot be done.
        advice: last part of the message: what to do instead.

    Raises:
        UserError: the data differ; the message gives both values of each difference.
    """
    if differences := data_differences(found, expected):
        raise UserError(f"{refusal}: it has {'; '.join(differences)}. {advice}")
