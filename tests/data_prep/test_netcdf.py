from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from mcrnn.data.store import FieldStore
from mcrnn.storage.local import LocalFolder
from tests.commands.test_commands import refused
from tests.conftest import CommandRunner

LATITUDE, LONGITUDE = np.linspace(-75, 75, 6), np.arange(0, 360, 45.0)


def field(times: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(54_000, 3_000, (times, len(LATITUDE), len(LONGITUDE))).astype(np.float32)


def write(
    path: Path,
    values: np.ndarray,
    times: np.ndarray,
    *,
    name: str = "z",
    units: str = "hours since 1979-01-01",
    calendar: str = "standard",
    dims: tuple[str, ...] = ("time", "lat", "lon"),
    levels: list[float] | None = None,
    **attributes: Any,
) -> None:
    """A file such as WeatherBench's, or with what a test wants to be different."""
    with netCDF4.Dataset(path, "a" if path.exists() else "w") as file:
        sizes = dict(zip(dims, values.shape, strict=True))
        coordinates = {dims[0]: times, dims[-2]: LATITUDE, dims[-1]: LONGITUDE}
        if levels is not None:
            coordinates["level"] = np.array(levels)
        for dim, size in sizes.items():
            if dim in file.dimensions:
                continue
            file.createDimension(dim, size)
            if dim in coordinates:
                file.createVariable(dim, "f8", (dim,))[:] = coordinates[dim]
        if dims[0] in file.variables:
            file[dims[0]].units, file[dims[0]].calendar = units, calendar
        variable = file.createVariable(name, "f4", dims, fill_value=attributes.pop("fill_value", None))
        variable.units = attributes.pop("field_units", "m**2 s**-2")
        variable.setncatts(attributes)
        variable[:] = values


@pytest.fixture
def yearly(root: Path) -> tuple[Path, np.ndarray]:
    """Three years of six-hourly values in a file each, as WeatherBench has them; 1980 is a leap year."""
    folder = root / "z"
    folder.mkdir()
    values = field(1096 * 4)
    hours = 6.0 * np.arange(len(values))
    for year, (start, stop) in {1979: (0, 365), 1980: (365, 731), 1981: (731, 1096)}.items():
        part = slice(4 * start, 4 * stop)
        write(folder / f"geopotential_{year}.nc", values[part], hours[part])
    return folder, values


SPLITS = ("--train", "1979:1980", "--val", "1981-01:1981-06", "--test", "1981-07-01:1981-12-31")


def convert(command: CommandRunner, *arguments: str, workers: int = 1) -> str:
    result = command("data_prep.netcdf", *arguments, "--workers", str(workers))
    assert result.returncode == 0, result.stderr
    return result.stdout


def open_store(root: Path, name: str = "out.zarr") -> FieldStore:
    return FieldStore.open(LocalFolder(root / name))


def test_yearly_files_become_a_series_split_by_whole_days(
    command: CommandRunner, root: Path, yearly: tuple[Path, np.ndarray], shared_ray: str
) -> None:
    folder, values = yearly
    how = ("--variable", "z", *SPLITS, "--boundary", "cylinder")
    shown = convert(command, f"{folder}/*.nc", "out.zarr", *how, workers=2)
    assert shown.strip() == "out.zarr: z, 2924 + 724 + 736 frames every 6 h, 6 x 8"
    store = open_store(root)
    ends = (0, 731 * 4, (731 + 181) * 4, 1096 * 4)
    for split, start, stop in zip(("train", "val", "test"), ends[:-1], ends[1:], strict=True):
        assert np.array_equal(store.load(split)[0, :, 0], values[start:stop])
    assert store.is_series
    assert store.padding == "cylinder"
    assert store.attributes["units"] == "m**2 s**-2"
    assert store.attributes["latitude"] == LATITUDE.tolist()
    assert store.attributes["time_step"] == "6 h"
    truth = values[: ends[1]].astype(np.float64)
    assert store.statistic("mean") == pytest.approx([truth.mean()], rel=1e-12)
    assert store.statistic("std") == pytest.approx([truth.std()], rel=1e-12)

    dataset = xr.open_zarr(root / "out.zarr", group="test")
    assert dataset.time.values[0] == np.datetime64("1981-07-01T00:00")
    assert dataset.time.values[-1] == np.datetime64("1981-12-31T18:00")  # the last day is whole
    assert dataset.height.attrs["standard_name"] == "latitude"

    again = convert(command, f"{folder}/*.nc", "out.zarr", *how)
    assert "complete already" in again
    described = command("data_prep.inspect", "out.zarr", "--verify")
    assert "verified: all" in described.stdout
    assert "1981-07-01 00:00 to 1981-12-31 18:00" in described.stdout


def test_several_variables_and_levels_become_channels(command: CommandRunner, root: Path) -> None:
    hours = np.arange(48.0)
    levels = np.stack([field(48, seed) for seed in (1, 2, 3)], axis=1)
    write(root / "a.nc", levels, hours, dims=("time", "level", "lat", "lon"), levels=[500, 700, 850])
    surface = field(48, 4)
    days = ("--train", "1979-01-01", "--val", "1979-01-02", "--test", "1979-01-02")
    assert "select with --level one or more of 500, 700, 850" in refused(
        command, "data_prep.netcdf", "a.nc", "out.zarr", *days, "--boundary", "cylinder"
    )
    hours = np.arange(72.0)
    (root / "a.nc").unlink()
    levels = np.stack([field(72, seed) for seed in (1, 2, 3)], axis=1)
    write(root / "a.nc", levels, hours, dims=("time", "level", "lat", "lon"), levels=[500, 700, 850])
    days = ("--train", "1979-01-01", "--val", "1979-01-02", "--test", "1979-01-03")
    arguments = ("a.nc", "out.zarr", "--variable", "z", "--level", "850", "--level", "500", *days)
    convert(command, *arguments, "--boundary", "cylinder")
    store = open_store(root)
    assert store.channels == ["z850", "z500"]
    assert np.array_equal(store.load("val")[0, :, 0], levels[24:48, 2])
    assert np.array_equal(store.load("val", variables=["z500"])[0, :, 0], levels[24:48, 0])

    surface = field(72, 4)
    write(root / "b.nc", surface, hours, name="t2m", field_units="K")
    write(root / "c.nc", surface[:, None] + 1, hours, name="msl", dims=("time", "level", "lat", "lon"), levels=[0])
    both = ("b.nc", "c.nc", "two.zarr", "--variable", "t2m", "--variable", "msl", *days, "--boundary", "cylinder")
    convert(command, *both)
    two = open_store(root, "two.zarr")
    assert two.channels == ["t2m", "msl"]
    assert np.array_equal(two.load("test")[0, :, 1], surface[48:] + 1)


def test_any_order_and_names_of_dimensions(command: CommandRunner, root: Path) -> None:
    values = field(3)
    write(root / "a.nc", values, np.arange(3.0), units="days since 2000-01-01", dims=("step", "south", "east"))
    days = ("--train", "2000-01-01", "--val", "2000-01-02", "--test", "2000-01-03", "--boundary", "zeros")
    line = refused(command, "data_prep.netcdf", "a.nc", "out.zarr", *days)
    assert "cannot tell which dimension of z" in line
    assert "--time-dimension and --row-dimension and --column-dimension" in line
    named = ("--time-dimension", "step", "--row-dimension", "east", "--column-dimension", "south")
    convert(command, "a.nc", "out.zarr", *days, *named)
    assert np.array_equal(open_store(root).load("val")[0, 0, 0], values[1].T)
    line = refused(command, "data_prep.netcdf", "a.nc", "out.zarr", *days, "--time-dimension", "tme")
    assert "has no dimension 'tme'" in line


def test_calendar_of_360_days(command: CommandRunner, root: Path) -> None:
    values = field(1080)
    write(root / "a.nc", values, np.arange(1080.0), units="days since 2000-01-01", calendar="360_day")
    splits = ("--train", "2000", "--val", "2001-01:2001-02-30", "--test", "2001-03:2002-12")
    convert(command, "a.nc", "out.zarr", *splits, "--boundary", "cylinder")
    store = open_store(root)
    assert [store.shape(split)[1] for split in ("train", "val", "test")] == [360, 60, 660]
    assert store.attributes["calendar"] == "360_day"
    assert xr.open_zarr(root / "out.zarr", group="val").time.values[-1].strftime("%Y-%m-%d") == "2001-02-30"


def test_monthly_means_are_regular(command: CommandRunner, root: Path) -> None:
    middles = np.array([np.datetime64(f"{2000 + m // 12}-{m % 12 + 1:02}-16", "h") for m in range(36)])
    hours = (middles - np.datetime64("1979-01-01", "h")).astype(float)
    write(root / "a.nc", field(36), hours)
    splits = ("--train", "2000", "--val", "2001", "--test", "2002", "--boundary", "cylinder")
    assert "12 + 12 + 12 frames every 1 month" in convert(command, "a.nc", "out.zarr", *splits)


@pytest.mark.parametrize(
    ("hours", "message"),
    [
        (
            [*range(30), 30.5, *range(31, 72)],
            "an irregular step in time: 1979-01-02 05:00 is followed by 1979-01-02 06:30",
        ),
        ([*range(30), 29, *range(30, 71)], "a repeat or a step back in time: 1979-01-02 05:00 is followed by"),
        ([*range(30), *range(29, 71)], "a repeat or a step back in time: 1979-01-02 05:00"),
    ],
)
def test_irregular_steps_and_repeats_in_time_are_refused_with_where(
    command: CommandRunner, root: Path, hours: list[float], message: str
) -> None:
    write(root / "a.nc", field(len(hours)), np.array(hours, float))
    days = ("--train", "1979-01-01", "--val", "1979-01-02", "--test", "1979-01-03", "--boundary", "cylinder")
    assert message in refused(command, "data_prep.netcdf", "a.nc", "out.zarr", *days)


DAYS = ("--train", "1979-01-01", "--val", "1979-01-02", "--test", "1979-01-03", "--boundary", "cylinder")


def test_missing_values_are_refused_with_where_unless_filled(command: CommandRunner, root: Path) -> None:
    values = field(72)
    values[30, 2, 3] = -999.0
    values[31, 4, 5] = np.nan
    write(root / "a.nc", values, np.arange(72.0), fill_value=-999.0)
    line = refused(command, "data_prep.netcdf", "a.nc", "out.zarr", *DAYS)
    assert "missing values, the first of 2 here: z at 1979-01-02 06:00, lat -15, lon 135" in line
    assert "--fill" in line
    convert(command, "a.nc", "zero.zarr", *DAYS, "--fill", "0")
    loaded = open_store(root, "zero.zarr").load("val")[0, :, 0]
    assert loaded[6, 2, 3] == loaded[7, 4, 5] == 0
    convert(command, "a.nc", "mean.zarr", *DAYS, "--fill", "mean")
    loaded = open_store(root, "mean.zarr").load("val")[0, :, 0]
    valid = np.delete(values[30].ravel(), 2 * 8 + 3).astype(np.float64)
    assert loaded[6, 2, 3] == pytest.approx(valid.mean(), rel=1e-6)
    assert loaded[6, 0, 0] == values[30, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--val": "1979-01-01"}, "--train and --val overlap"),
        ({"--test": "1979-01-03:1979-01-05"}, "is not covered by the data, which has 1979-01-01 00:00 to 1979-01-03"),
        ({"--train": "1978"}, "--train 1978 is not covered by the data"),
        ({"--train": "1979-01-02:1979-01-01"}, "ends before it starts"),
        ({"--train": "1979-02-30"}, "is not a year, month or day"),
        ({"--train": "soon"}, "is not a year, month or day"),
        ({"--boundary": "torus"}, "--boundary is one of periodic, cylinder, zeros, not 'torus'"),
        ({"--variable": "q"}, "no file has a variable 'q'"),
        ({"--level": "500"}, "z has no levels to select by --level"),
        ({"--fill": "much"}, "--fill is a number or 'mean'"),
    ],
)
def test_wrong_options_are_refused(command: CommandRunner, root: Path, changes: dict[str, str], message: str) -> None:
    write(root / "a.nc", field(72), np.arange(72.0))
    options = dict(zip(DAYS[::2], DAYS[1::2], strict=True)) | changes
    flat = [part for pair in options.items() for part in pair]
    assert message in refused(command, "data_prep.netcdf", "a.nc", "out.zarr", *flat)


def test_wrong_files_are_refused(command: CommandRunner, root: Path) -> None:
    assert "no file matches 'nothing/*.nc'" in refused(command, "data_prep.netcdf", "nothing/*.nc", "out.zarr", *DAYS)
    (root / "a.nc").write_text("not NetCDF")
    assert "cannot be read as NetCDF" in refused(command, "data_prep.netcdf", "a.nc", "out.zarr", *DAYS)
    (root / "a.nc").unlink()
    write(root / "a.nc", field(72), np.arange(72.0))
    write(root / "b.nc", field(24), 72 + np.arange(24.0), dims=("time", "y", "lon"))
    assert "another grid" in refused(command, "data_prep.netcdf", "a.nc", "b.nc", "out.zarr", *DAYS)
    grid = {"lat": LATITUDE, "lon": LONGITUDE}
    xr.Dataset({"z": (("time", "lat", "lon"), np.zeros((3, 6, 8)))}, grid).to_netcdf(root / "c.nc")
    assert "has no variable 'time'" in refused(command, "data_prep.netcdf", "c.nc", "out.zarr", *DAYS)
