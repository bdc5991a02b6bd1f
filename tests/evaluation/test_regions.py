"""Errors in regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mcrnn.config.sections import Configuration
from mcrnn.data.region import Region
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation.result import evaluate_model
from mcrnn.models.trained_model import TrainedModel, network_of
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.data.test_masks import built, configuration
from tests.data_prep.test_odd_inputs import LATITUDE, LONGITUDE

__all__ = ["built"]


def test_scores_that_are_kept_belong_to_their_region_in_any_order(built: Path, tmp_path: Path) -> None:
    config = configuration()
    field = FieldData.load(FieldStore.open(LocalFolder(built / "z.zarr")), config.data).field
    model = TrainedModel(config, field, network_of(config, field).eval())
    regions = {"north": Region(90, 0, 10, 360), "south": Region(-10, 0, -90, 360)}
    storage, cache = Storage.open(str(built)), LocalFolder(tmp_path)
    found = [
        evaluate_model("m", model, storage, regions=each, cache=cache).metrics["regions"]
        for each in (regions, dict(reversed(regions.items())))
    ]
    assert found[0] == found[1]
    assert found[0]["north"] != found[0]["south"]


def test_a_region_needs_values_of_the_predicted_channels_only(built: Path) -> None:
    store, storage = FieldStore.open(LocalFolder(built / "z.zarr")), Storage.open(str(built))
    (north, south), (west, east) = sorted(LATITUDE[2:4], reverse=True), LONGITUDE[2:4]
    regions = {"land": Region(north, west, south, east)}  # where z has no value, and t has one at all points

    def model(*variables: str) -> TrainedModel:
        raw = configuration(variables=list(variables)).model_dump()
        raw["model"]["channels_out"] = 1
        config = Configuration.model_validate(raw)
        field = FieldData.load(store, config.data).field
        return TrainedModel(config, field, network_of(config, field).eval())

    inside = evaluate_model("m", model("t", "z"), storage, regions=regions)
    assert np.isfinite(inside.scores.regions["land"].squared).all()
    assert "land" in inside.metrics["regions"]
    with pytest.raises(UserError, match="region land lies outside of the mask"):
        evaluate_model("m", model("z", "t"), storage, regions=regions)
