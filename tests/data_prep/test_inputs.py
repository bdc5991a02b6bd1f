"""Static fields and forcings as channels of a store, after the predicted ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_prep.convert import convert
from mcrnn.config.sections import Configuration
from mcrnn.data.checks import check_store_serves
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from tests.data_prep.test_odd_inputs import DAYS, LATITUDE, LONGITUDE, VALUES, dataset
from tests.support.store_inputs import HEIGHTS, with_orography

Change = Callable[[xr.Dataset], xr.Dataset]


def run(folder: Path, **options: Any) -> FieldStore:
    with_orography().to_netcdf(folder / "a.nc")
    wanted = {"variable": ["z"], "workers": 1, "storage": str(folder)} | DAYS | options
    convert([str(folder / "a.nc")], "out.zarr", **wanted)
    return FieldStore.open(LocalFolder(folder / "out.zarr"))


def test_inputs_are_channels_after_the_predicted_ones(tmp_path: Path) -> None:
    mask = (HEIGHTS > 500).astype(np.int8)
    lsm = xr.Dataset({"lsm": (("time", "latitude", "longitude"), mask[None])})
    lsm.assign_coords(latitude=LATITUDE, longitude=LONGITUDE).to_netcdf(tmp_path / "lsm.nc")
    store = run(
        tmp_path,
        static=["orography", str(tmp_path / "lsm.nc") + ":lsm"],
        forcing=["day-of-year", "solar-angle"],
    )
    assert store.channels == ["z", *store.inputs]
    assert store.inputs == {
        "orography": "static",
        "lsm": "static",
        "sin_day_of_year": "day-of-year",
        "cos_day_of_year": "day-of-year",
        "cos_solar_zenith": "solar-angle",
    }
    assert store.attributes["variable"] == "z"
    assert store.units_of(store.channels) == ["m**2 s**-2", "m", "1", "1", "1", "1"]
    val = store.load("val")[0]
    assert np.array_equal(val[:, 0], VALUES[24:48])
    assert np.array_equal(val[:, 1], np.broadcast_to(HEIGHTS, (24, 6, 8)))
    assert np.array_equal(val[:, 2], np.broadcast_to(mask, (24, 6, 8)))
    angle = 2 * np.pi * (1 + np.arange(24) / 24) / 365  # of 2 January
    assert np.abs(val[:, 3] - np.sin(angle)[:, None, None]).max() < 1e-6
    # The sun is over the longitude of 180 - 15 hour degrees, and over a southern latitude in January.
    assert val[0, 5].argmax() == np.ravel_multi_index((2, 4), (6, 8))
    assert val[18, 5].argmax() == np.ravel_multi_index((2, 6), (6, 8))
    statistics = store.attributes["statistics"]
    assert statistics["mean"][1] == pytest.approx(HEIGHTS.mean(dtype=np.float64), rel=1e-6)
    assert statistics["std"][3] > 0


def test_static_fields_are_averaged_by_area_as_the_field_is(tmp_path: Path) -> None:
    moving = with_orography().assign(z=dataset(np.broadcast_to(HEIGHTS, (72, 6, 8))).z)
    moving.to_netcdf(tmp_path / "moving.nc")
    options = {"variable": ["z"], "static": ["orography"], "workers": 1, "storage": str(tmp_path), "regrid": "3x4"}
    convert([str(tmp_path / "moving.nc")], "out.zarr", area="80/0/-80/360", **options, **DAYS)
    test = FieldStore.open(LocalFolder(tmp_path / "out.zarr")).load("test")[0]
    assert test.shape[1:] == (2, 3, 4)
    assert np.array_equal(test[:, 0], test[:, 1])


@pytest.mark.parametrize(
    ("change", "options", "named"),
    [
        (
            None,
            {"static": ["orogaphy"]},
            "no variable of this name, and there is no such file; did you mean 'orography'",
        ),
        (None, {"static": ["z"]}, "it has 72 times in"),
        (lambda d: d.assign(orography=d.orography * 0 + 7), {"static": ["orography"]}, "it is 7 at all points"),
        (
            lambda d: d.assign(orography=d.orography.where(d.orography < 900)),
            {"static": ["orography"]},
            "values are missing in .* --fill",
        ),
        (lambda d: d.rename(orography="z500"), {"static": ["z500"], "forcing": ["sun"]}, "not 'sun'"),
        (None, {"static": ["orography", "orography"]}, "the channel orography is asked for twice"),
        (
            lambda d: d.rename(lat="y", lon="x"),
            {"forcing": ["solar-angle"], "boundary": "zeros"},
            "needs a grid of latitudes and longitudes",
        ),
        (lambda d: d.isel(lat=slice(5)), {"static": ["a.nc:orography"]}, "has another grid than the field"),
    ],
)
def test_inputs_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change | None, options: dict[str, Any], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = with_orography()
    (change(source) if change else source).to_netcdf("a.nc")
    dataset().to_netcdf("z.nc")
    own = "z.nc" if any(":" in text for text in options.get("static", [])) else "a.nc"
    with pytest.raises(UserError, match=named):
        convert([own], "out.zarr", **({"variable": ["z"], "workers": 1, "storage": "."} | DAYS | options))


def test_inputs_come_last_and_are_not_predicted(tmp_path: Path) -> None:
    store = run(tmp_path, static=["orography"], forcing=["solar-angle"])

    def config(variables: list[str] | None, **model: Any) -> Configuration:
        network = {"architecture": "convgru", "hidden_size": 2, "layers": 1}
        data = {"store": "out.zarr", "variables": variables, "sequence_length": 4}
        validation = {"warm_up": 2, "horizon": 3}
        content = {"name": "x", "data": data, "model": network | model, "validation": validation}
        return Configuration.model_validate(content | {"train": {"teacher_forcing_steps": 2}})

    check_store_serves(store, config(None))
    field = FieldDescription.of(store, config(["z", "cos_solar_zenith"]).data)
    assert (field.predicted, field.inputs) == (("z",), {"cos_solar_zenith": "solar-angle"})
    assert field.units == "m**2 s**-2"
    with pytest.raises(
        UserError, match=re.escape("model.channels_out (2) is above the number of variables that are no")
    ):
        check_store_serves(store, config(None, channels_out=2))
    with pytest.raises(UserError, match=r"orography of .* is an input only: name it after what is predicted"):
        FieldDescription.of(store, config(["orography", "z"]).data)
    with pytest.raises(UserError, match="so nothing is predicted"):
        FieldDescription.of(store, config(["orography"]).data)
