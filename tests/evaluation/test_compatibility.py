"""Errors are compared only where they refer to the same data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation.compatibility import (
    DataIdentity,
    check_same_data,
    check_store,
    data_differences,
    store_differences,
)
from mcrnn.models.forecaster import build_model
from mcrnn.models.trained_model import TrainedModel

IDENTITY = DataIdentity("a" * 64, "K", ("t", "q"), (8, 16), 2)


def trained_model(store: FieldStore, **model: object) -> TrainedModel:
    config = Configuration.model_validate(
        {
            "name": "small",
            "data": {"store": "data/tiny.zarr", "coarsen": 2},
            "model": {"architecture": "minconvgru", "hidden_size": 4, "layers": 1} | model,
        }
    )
    field = FieldDescription.of(store, config.data)
    return TrainedModel(config, field, build_model(config.model, field.frame_shape, field.padding))


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"store_digest": "b" * 64}, "digest bbbbbbbbbbbb instead of aaaaaaaaaaaa"),
        ({"store_digest": ""}, "digest unknown instead of aaaaaaaaaaaa"),
        ({"units": "m"}, "units m instead of K"),
        ({"channels": ("t",)}, "channels t instead of t, q"),
        ({"grid": (4, 8)}, "a grid of 4 x 8 instead of 8 x 16"),
        ({"predicted_channels": 1}, "1 predicted channels instead of 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_difference_is_named_with_both_values(change: dict[str, object], phrase: str) -> None:
    other = replace(IDENTITY, **change)  # type: ignore[arg-type]
    assert data_differences(other, IDENTITY) == [phrase]
    with pytest.raises(UserError, match=f"x cannot be compared: it has {phrase}. Evaluate it by itself"):
        check_same_data(other, IDENTITY, "x cannot be compared", "Evaluate it by itself")


def test_the_same_data_have_no_differences(store: FieldStore) -> None:
    assert data_differences(IDENTITY, replace(IDENTITY)) == []
    check_same_data(IDENTITY, IDENTITY, "x", "y")
    assert store_differences(trained_model(store), store) == []


def test_another_store_is_refused_and_an_unknown_digest_is_not_compared(store: FieldStore) -> None:
    model = trained_model(store)
    other = replace(model, field=replace(model.field, store_digest="b" * 64, units="K"))
    message = r"'m' was trained on other data than '.*', which has digest .*; units 1 instead of K"
    with pytest.raises(UserError, match=message):
        check_store(other, store, "m")
    unknown = replace(model, field=replace(model.field, store_digest=""))
    check_store(unknown, store, "m")


def test_grid_is_compared_only_where_the_network_is_bound_to_it(store: FieldStore) -> None:
    for norm, differences in (("layer", ["a grid of 8 x 8 instead of 4 x 4"]), ("group", [])):
        model = trained_model(store, norm=norm)
        coarser = replace(model, field=replace(model.field, frame_shape=(1, 4, 4)))
        assert model.network.takes_any_grid == (norm == "group")
        assert store_differences(coarser, store) == differences
