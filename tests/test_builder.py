from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from data_prep import builder
from data_prep.builder import Statistics, StorePlan, build
from mcrnn.errors import UserError
from mcrnn.fields import FieldStore


def plan(**changes: object) -> StorePlan:
    arguments: dict = {
        "samples": {"train": 5, "val": 1, "test": 2},
        "frames": 3,
        "channels": ["a", "b"],
        "height": 4,
        "width": 6,
        "samples_per_shard": 2,
        "coordinates": {
            "sample": (("sample",), np.empty(0), {}),
            "time": (("time",), np.arange(3.0), {}),
            "channel": (("channel",), np.array(["a", "b"], dtype=np.dtypes.StringDType()), {}),
            "height": (("height",), np.arange(4.0), {}),
            "width": (("width",), np.arange(6.0), {}),
        },
        "attributes": {"variable": "a, b", "units": "m", "boundary": "zeros", "time_step": "1"},
        "recipe": {"seed": 0},
    }
    return StorePlan(**arguments | changes)


def values(split: str, start: int, stop: int) -> np.ndarray:
    seed = {"train": 0, "val": 1, "test": 2}[split]
    rows = [np.random.default_rng((seed, i)).normal(3, 2, (3, 2, 4, 6)) for i in range(start, stop)]
    return np.stack(rows).astype(np.float32)


def compute(split: str, start: int, stop: int) -> dict[str, np.ndarray]:
    return {"field": values(split, start, stop)}


def objects(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_xarray_reads_names_and_values(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    build(tmp_path / "s.zarr", plan(), compute)
    dataset = xr.open_zarr(tmp_path / "s.zarr", group="train")
    assert not [w for w in recwarn if w.category is RuntimeWarning]
    assert dataset.field.dims == ("sample", "time", "channel", "height", "width")
    assert dataset.channel.values.tolist() == ["a", "b"]
    assert np.array_equal(dataset.field.values, values("train", 0, 5))


def test_statistics_are_of_the_training_split_in_float64(tmp_path: Path) -> None:
    build(tmp_path / "s.zarr", plan(), compute)
    expected = values("train", 0, 5).astype(np.float64)
    store = FieldStore.open(tmp_path / "s.zarr")
    assert store.mean == pytest.approx(expected.mean(), rel=1e-12)
    assert store.std == pytest.approx(expected.std(), rel=1e-12)
    assert store.attributes["statistics"]["min"] == expected.min()
    assert store.attributes["statistics"]["max"] == expected.max()


def test_merged_statistics_do_not_suffer_from_a_large_mean() -> None:
    parts = [np.random.default_rng(i).normal(54_000, 3_000, 10_000).astype(np.float32) for i in range(5)]
    merged = Statistics.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Statistics.of(part))
    truth = np.concatenate(parts).astype(np.float64)
    assert merged.summary()["mean"] == pytest.approx(truth.mean(), rel=1e-13)
    assert merged.summary()["std"] == pytest.approx(truth.std(), rel=1e-12)


def test_interrupted_build_continues_with_the_missing_shards_only(tmp_path: Path) -> None:
    build(tmp_path / "whole.zarr", plan(), compute)
    done: list[tuple[str, int]] = []

    def failing(split: str, start: int, stop: int) -> dict[str, np.ndarray]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((split, start))
        return compute(split, start, stop)

    path = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        build(path, plan(), failing)
    with pytest.raises(UserError, match="unfinished"):
        FieldStore.open(path)

    def rest(split: str, start: int, stop: int) -> dict[str, np.ndarray]:
        assert (split, start) not in done
        return compute(split, start, stop)

    assert build(path, plan(), rest)
    assert objects(path) == objects(tmp_path / "whole.zarr")


def test_build_killed_before_its_first_attributes_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    (path / builder.BUILD_FOLDER).mkdir(parents=True)
    zarr.open_group(path, mode="a")
    assert build(path, plan(), compute)
    FieldStore.open(path)


def test_complete_store_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    build(path, plan(), compute)
    before = objects(path)
    assert not build(path, plan(), lambda *_: pytest.fail("computed again"))
    assert objects(path) == before


def test_other_recipe_is_refused_by_name_unless_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    build(path, plan(), compute)
    with pytest.raises(UserError, match="seed is 0, not 7"):
        build(path, plan(recipe={"seed": 7}), compute)
    assert build(path, plan(recipe={"seed": 7}), compute, overwrite=True)
    assert FieldStore.open(path).attributes["recipe"] == {"seed": 7}


def test_what_is_not_a_store_is_never_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("words")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not a store"):
            build(precious, plan(), compute, overwrite=overwrite)
    assert (precious / "chapter1.tex").read_text() == "words"


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def broken(split: str, start: int, stop: int) -> dict[str, np.ndarray]:
        arrays = compute(split, start, stop)
        arrays["field"][0, 0, 0, 0, 0] = np.nan
        return arrays

    with pytest.raises(UserError, match="not finite"):
        build(tmp_path / "s.zarr", plan(), broken)


def test_manifest_lists_every_object(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    build(path, plan(), compute)
    listed = set(json.loads((path / "manifest.json").read_text())["objects"])
    assert listed == set(objects(path)) - {"zarr.json", "manifest.json"}
    assert len([key for key in listed if "/field/c/" in key]) == 3 + 1 + 1


def test_same_numbers_make_the_same_store_elsewhere(tmp_path: Path) -> None:
    build(tmp_path / "a.zarr", plan(), compute)
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    build(tmp_path / "c.zarr", plan(), compute)
    digests = {FieldStore.open(tmp_path / name).digest for name in ("a.zarr", "b.zarr", "c.zarr")}
    assert len(digests) == 1
