from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder


def test_coarsening_is_the_mean_over_blocks(store: FieldStore) -> None:
    fine, coarse = store.load("val"), store.load("val", 4)
    assert coarse.shape == (3, 14, 1, 4, 4)
    assert coarse[1, 2, 0, 3, 1] == pytest.approx(fine[1, 2, 0, 12:16, 4:8].mean(), rel=1e-6)


def test_coarsening_weights_latitudes_by_area_in_stores_that_ask_for_it(store: FieldStore) -> None:
    latitude = np.linspace(-84.375, 84.375, 16)
    attributes = store.attributes | {"latitude": latitude.tolist()}
    as_before = dataclasses.replace(store, attributes=attributes)
    assert np.array_equal(as_before.load("val", 4), store.load("val", 4))
    by_area = dataclasses.replace(store, attributes=attributes | {"coarsening": "area"}).load("val", 4)
    # the area of rows of 11.25 degrees, and their mean over the southernmost 45 degrees
    edges = np.sin(np.deg2rad(np.linspace(-90, -45, 5)))
    cap = (store.load("val")[1, 2, 0, :4, 4:8].mean(1, dtype=np.float64) * np.diff(edges)).sum() / (
        edges[-1] - edges[0]
    )
    assert by_area[1, 2, 0, 0, 1] == pytest.approx(cap, rel=1e-6)


def test_blocks_that_do_not_divide_the_grid_are_refused(store: FieldStore) -> None:
    with pytest.raises(UserError, match=r"data\.coarsen 3 does not divide the grid"):
        store.load("val", 3)


def test_periodic_field_asks_for_circular_padding(store: FieldStore) -> None:
    assert store.padding == "circular"


def field_objects(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("*/field/c/**/*") if p.is_file())


def test_missing_object_is_refused_at_open(store_path: Path) -> None:
    field_objects(store_path)[0].unlink()
    with pytest.raises(UserError, match=r"damaged: .*field/c/0.* is missing"):
        FieldStore.open(LocalFolder(store_path))


def test_truncated_object_is_refused_at_open(store_path: Path) -> None:
    victim = field_objects(store_path)[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(UserError, match="another size"):
        FieldStore.open(LocalFolder(store_path))


@pytest.mark.parametrize("place", [10, 0.3, 0.6, 0.999])
def test_flipped_byte_of_a_field_is_refused_when_read(store_path: Path, place: float) -> None:
    victim = store_path / "train/field/c/0/0/0/0/0"
    content = bytearray(victim.read_bytes())
    content[int(place if place >= 1 else place * len(content))] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        FieldStore.open(LocalFolder(store_path)).load("train")


@pytest.mark.parametrize("name", ["train/field/zarr.json", "train/time/c/0", "train/zarr.json"])
def test_changed_metadata_is_refused_at_open(store_path: Path, name: str) -> None:
    content = bytearray((store_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (store_path / name).write_bytes(content)
    with pytest.raises(UserError, match="has changed"):
        FieldStore.open(LocalFolder(store_path))


def test_changed_attributes_are_refused_at_open(store_path: Path) -> None:
    root = json.loads((store_path / "zarr.json").read_text())
    root["attributes"]["statistics"]["std"] = [2.0]
    (store_path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(UserError, match="attributes have changed"):
        FieldStore.open(LocalFolder(store_path))


def test_removed_or_changed_manifest_is_refused_at_open(store_path: Path) -> None:
    manifest = store_path / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b"1", b"2", 1))
    with pytest.raises(UserError, match=r"manifest.json is missing or has changed"):
        FieldStore.open(LocalFolder(store_path))
    manifest.unlink()
    with pytest.raises(UserError, match=r"manifest.json is missing or has changed"):
        FieldStore.open(LocalFolder(store_path))


def test_newer_format_is_refused(store_path: Path) -> None:
    root = json.loads((store_path / "zarr.json").read_text())
    root["attributes"]["format_version"] = 99
    (store_path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(UserError, match="format version 99"):
        FieldStore.open(LocalFolder(store_path))


def test_missing_and_foreign_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no store"):
        FieldStore.open(LocalFolder(tmp_path / "nowhere.zarr"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text("{}")
    with pytest.raises(UserError, match="is not a field store"):
        FieldStore.open(LocalFolder(tmp_path / "other"))
