"""Errors in regions."""

from __future__ import annotations

from pathlib import Path

from mcrnn.data.region import Region
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.result import evaluate_model
from mcrnn.models.trained_model import TrainedModel, network_of
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.data.test_masks import built, configuration

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
