"""The climatology is computed once for a store, kept with it, and the same whether it fits in memory or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.store import FieldStore
from mcrnn.evaluation import climatology as module
from mcrnn.evaluation.climatology import Climatology, Slabs
from mcrnn.storage.local import LocalFolder
from tests.conftest import CommandRunner
from tests.data_prep.test_netcdf import SPLITS, convert, yearly  # noqa: F401  a fixture

DATA = DataConfig(store="data/z.zarr", coarsen=2)
STARTS, FRAMES = torch.tensor([0, 5, 600]), slice(3, 9)


@pytest.fixture
def series(command: CommandRunner, root: Path, yearly: tuple[Path, np.ndarray]) -> FieldStore:  # noqa: F811
    convert(command, f"{yearly[0]}/*.nc", "data/z.zarr", "--variable", "z", "--boundary", "cylinder", *SPLITS)
    return FieldStore.open(LocalFolder(root / "data/z.zarr"))


def test_kept_climatology_is_the_mean_over_31_days_and_is_not_computed_again(
    series: FieldStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLAB_BYTES", 4 * 12 * 4 * 10)  # ten days in a file
    first = Climatology.of(series, "test", DATA)
    assert isinstance(first.means, Slabs)
    found = first.at(STARTS, FRAMES).numpy()
    dates, values = series.dates("train"), series.load("train", 2)[0]
    asked = series.dates("test")
    assert dates is not None
    assert asked is not None
    day_T, hour_T = np.array([d.dayofyr for d in dates]), np.array([d.hour for d in dates])
    for row, start in zip(found, STARTS.tolist(), strict=True):
        for mean_CHW, time in zip(row, range(start + 3, start + 9), strict=True):
            apart = np.abs(day_T - asked[time].dayofyr)
            near = (np.minimum(apart, 366 - apart) <= 15) & (hour_T == asked[time].hour)
            assert np.allclose(mean_CHW, values[near].mean(0, dtype=np.float64), rtol=1e-6)

    def not_again(*arguments: object) -> None:
        raise AssertionError("the climatology is computed again")

    monkeypatch.setattr(FieldStore, "blocks", not_again)
    again = Climatology.of(series, "test", DATA)
    assert np.array_equal(again.at(STARTS, FRAMES).numpy(), found)
    series.verify()  # the store itself is as it was built
    with pytest.raises(AssertionError, match="computed again"):
        Climatology.of(series, "test", DataConfig(store="data/z.zarr"))

    # little memory: sums in a scratch file, one slab at a time
    monkeypatch.undo()
    monkeypatch.setattr(module, "SLAB_BYTES", 4 * 12 * 4 * 10)
    monkeypatch.setenv("MCRNN_MEMORY", "1e-6")
    LocalFolder(root / "data/z.zarr/climatology").clear()
    small = Climatology.of(series, "test", DATA)
    assert isinstance(small.means, Slabs)
    assert np.array_equal(small.at(STARTS, FRAMES).numpy(), found)
    assert len(small.means.loaded) == 1


def test_climatology_of_a_store_that_cannot_be_written_is_kept_elsewhere(store: FieldStore, root: Path) -> None:
    (root / "data/tiny.zarr/climatology").write_text("in the way")
    elsewhere = LocalFolder(root / "cache")
    data = DataConfig(store="data/tiny.zarr")
    found = Climatology.of(store, "test", data, elsewhere)
    assert isinstance(found.means, Slabs)
    assert found.means.location.url.startswith(elsewhere.url)
    expected = store.load("train").mean((0, 1), dtype=np.float64)
    assert np.allclose(found.at(torch.tensor([0]), slice(0, 2))[0, 1].numpy(), expected, rtol=1e-6, atol=1e-6)
    nowhere = Climatology.of(store, "test", data)
    assert isinstance(nowhere.means, np.ndarray)
    assert np.allclose(nowhere.at(torch.tensor([0]), slice(0, 2))[0, 1].numpy(), expected, rtol=1e-6, atol=1e-6)
