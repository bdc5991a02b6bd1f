"""Forecasts of a user's own data: their numbers, their labels, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from mcrnn.data.field_reader import coarsened
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.time_step import TimeStep
from mcrnn.errors import UserError
from mcrnn.evaluation.result import evaluate_model
from mcrnn.forecasting.given import fit
from mcrnn.forecasting.source import Source, opened
from mcrnn.forecasting.starts import find_starts
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.reports.forecasts import write_forecasts
from mcrnn.storage.root import Storage
from tests.conftest import CommandRunner
from tests.support.registered_models import describe, save
from tests.support.s3_server import S3Server

LATITUDE, LONGITUDE = np.linspace(75, -75, 16), np.arange(16) * 22.5
UNITS = "m**2 s**-2"


def geopotential(times: int = 16, calendar: str = "standard", freq: str = "6h", **variables: Any) -> xr.Dataset:
    """Frames of z as a NetCDF file has them."""
    generator = np.random.default_rng(3)
    values = generator.normal(1.0, 2.0, (times, 16, 16)).astype(np.float32)
    dates = xr.date_range("2001-02-20T06:00", periods=times, freq=freq, calendar=calendar, use_cftime=True)
    coordinates = {
        "time": ("time", dates, {"standard_name": "time", "long_name": "valid time"}),
        "lat": ("lat", LATITUDE, {"units": "degrees_north", "standard_name": "latitude"}),
        "lon": ("lon", LONGITUDE, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    z = (("time", "lat", "lon"), values, {"units": UNITS, "standard_name": "geopotential"})
    return xr.Dataset({"z": z} | variables, coordinates, {"institution": "here", "history": "made"})


@pytest.fixture
def model(root: Path) -> TrainedModel:
    """A model of z every 6 h in models/z, whose grid is that of `geopotential` after coarsening by 2."""
    return saved_model(root)


def saved_model(root: Path, **changes: Any) -> TrainedModel:
    config, field = describe(root)
    field = replace(
        field,
        **{
            "variable": "z",
            "channels": ("z",),
            "units": UNITS,
            "channel_units": (),
            "time_step": "6 h",
            "rows": tuple(LATITUDE.reshape(-1, 2).mean(1).tolist()),
            "columns": tuple(LONGITUDE.reshape(-1, 2).mean(1).tolist()),
        }
        | changes,
    )
    channels = len(field.channels)
    field = replace(field, frame_shape=(channels, 8, 8), mean=field.mean * channels, std=field.std * channels)
    return trained_model.load(save(root / "models/z", config, field))


def blocks(values: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 grid points of the last two axes."""
    *rest, height, width = values.shape
    return values.reshape(*rest, height // 2, 2, width // 2, 2).mean((-3, -1))


@pytest.mark.parametrize("calendar", ["standard", "360_day"])
def test_forecast_of_a_file_continues_its_times_grid_and_attributes(
    command: CommandRunner, root: Path, model: TrainedModel, calendar: str
) -> None:
    given = geopotential(calendar=calendar)
    units = {"time": {"units": "hours since 1900-01-01", "dtype": "i4"}}
    given.to_netcdf(root / "recent.nc", encoding=units)
    animated = calendar == "standard"
    options = ("--steps", "40", "--out", "f.nc", *(("--animate", "f.gif") if animated else ()))
    done = command("mcrnn.forecast", "models/z", "recent.nc", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "f.nc: a forecast of 40 frames after 4 given ones"
    found = xr.open_dataset(root / "f.nc", decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))
    expected = model.predict(blocks(given.z.values[None, -4:, None]), 40)[0, :, 0]
    assert found.z.dims == ("time", "lat", "lon")
    assert np.abs(found.z.values - expected).max() <= 1e-6
    assert found.z.attrs == given.z.attrs
    assert np.array_equal(found.lat, LATITUDE.reshape(-1, 2).mean(1))
    assert found.lon.attrs == given.lon.attrs
    times = given.time.values
    assert found.time.values.tolist() == [times[-1] + (times[-1] - times[-2]) * lead for lead in range(1, 41)]
    assert (found.time.encoding["units"], found.time.encoding["calendar"]) == ("hours since 1900-01-01", calendar)
    assert found.forecast_reference_time.item() == times[-1]
    assert found.forecast_period.values[:2].tolist() == [6.0, 12.0]
    weights = (root / "models/z/model.safetensors").read_bytes()
    assert found.attrs["mcrnn_model_digest"] == hashlib.sha256(weights).hexdigest()
    assert found.attrs["institution"] == "here"
    assert found.attrs["history"].splitlines()[1] == "made"
    assert not animated or (root / "f.gif").read_bytes()[:6] == b"GIF89a"
    again = command("mcrnn.forecast", "models/z", "recent.nc", "--out", "f.nc")
    assert again.returncode == 2
    assert "there is a 'f.nc' already" in again.stderr


def test_forecasts_of_a_store_equal_those_of_its_evaluation(command: CommandRunner, root: Path) -> None:
    config, field = describe(root)
    model = trained_model.load(save(root / "models/ns", config, field))
    evaluated = evaluate_model("ns", model, Storage(str(root)))
    write_forecasts(root / "report/forecasts.zarr", {"ns": evaluated}, None)
    done = command("mcrnn.forecast", "models/ns", "data/tiny.zarr", "--from", "4", "--out", "f.zarr")
    assert (done.returncode, done.stderr) == (0, "")
    expected = xr.open_zarr(root / "report/forecasts.zarr").forecast[0, :, :, 0]
    found = xr.open_zarr(root / "f.zarr")
    assert found.vorticity.dims == ("sample", "t", "row", "column")
    assert found.vorticity.shape == expected.shape == (4, 6, 8, 8)
    assert np.abs(found.vorticity.values - expected.values).max() <= 1e-6
    assert found.t.values.tolist() == [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert found.attrs["mcrnn_model"] == "models/ns"
    assert found.attrs["mcrnn_store_digest"] == field.store_digest


def test_many_starts_from_s3_to_s3_equal_single_forecasts(
    command: CommandRunner, root: Path, model: TrainedModel, s3: S3Server
) -> None:
    geopotential().to_netcdf(root / "recent.nc")
    s3.client().upload_file(str(root / "recent.nc"), "lab", "in/recent.nc")
    forecast = ("mcrnn.forecast", "models/z", "s3://lab/in/recent.nc", "--steps", "3")
    for out in ("s3://lab/out/all.zarr", "s3://lab/out/all.nc"):
        done = command(*forecast, "--from", "every 2", "--out", out)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == f"{out}: 7 forecasts of 3 frames after 4 given ones"
    s3.client().download_file("lab", "out/all.nc", str(root / "all.nc"))
    with (
        opened("s3://lab/out/all.zarr", Storage(str(root)), "test") as zarr,
        xr.open_dataset(root / "all.nc") as netcdf,
    ):
        assert zarr.dataset.z.dims == netcdf.z.dims == ("forecast_reference_time", "forecast_period", "lat", "lon")
        assert np.array_equal(zarr.dataset.z.values, netcdf.z.values)
        one = command(*forecast, "--from", "2001-02-22T12:00", "--out", "one.nc")
        assert one.returncode == 0, one.stderr
        single = xr.open_dataset(root / "one.nc")
        same = netcdf.sel(forecast_reference_time="2001-02-22T12:00").squeeze()
        assert np.abs(same.z.values - single.z.values).max() <= 1e-6
        assert np.array_equal(same.time.values, single.time.values)
    assert "there is a 's3://lab/out/all.zarr' already" in command(*forecast, "--out", "s3://lab/out/all.zarr").stderr


def test_variable_is_not_taken_for_its_logarithm(root: Path) -> None:
    recipe = {"variables": ["z"], "channels": ["log_z"]}
    logarithms = {"log_z": "log(1 + z / 0.5 m)"}
    model = saved_model(root, channels=("log_z",), units="1", recipe=recipe, logarithms=logarithms)
    data = geopotential(5)
    data.z.attrs["units"] = "1"
    with pytest.raises(UserError, match=r"has no variable 'log_z', which the model takes: it is log\(1 \+ z / 0.5 m\)"):
        fit(Source("x.nc", data), model)
    assert fit(Source("x.nc", data.rename(z="log_z")), model).channels[0].name == "log_z"


@pytest.mark.parametrize(
    "recipe",
    [
        {"variables": ["z", "z", "t"], "levels": [500, 850]},  # as version 0.1.0 wrote it
        {"variables": ["z@500", "z@850", "t"], "channels": ["z500", "z850", "t"]},
    ],
)
def test_levels_samples_and_any_order_of_dimensions(root: Path, recipe: dict[str, Any]) -> None:
    model = saved_model(root, channels=("z500", "z850", "t"), units=f"{UNITS}, K", recipe=recipe)
    generator = np.random.default_rng(0)
    z = generator.normal(size=(2, 16, 3, 5, 16)).astype(np.float32)
    levels = xr.concat([geopotential(5).z] * 3, xr.Variable("level", [300, 500, 850], {"axis": "Z"}))
    data = levels.expand_dims(member=2).transpose("member", "lon", "level", "time", "lat").to_dataset(name="z")
    data["z"] = data.z.copy(data=z)
    data["t"] = data.z.isel(level=0, drop=True).assign_attrs(units="K")
    given = fit(Source("x.nc", data), model)
    assert (given.sample, given.time, given.grid) == ("member", "time", ("lat", "lon"))
    frames = given.read([1, 0], [4, 3], 2)
    assert frames.shape == (2, 2, 3, 8, 8)
    for channel, level in enumerate((1, 2, 0)):
        expected = blocks(z[:, :, level].transpose(0, 2, 3, 1))
        assert np.allclose(frames[0, :, channel], expected[1, 3:5], atol=1e-6)
        assert np.allclose(frames[1, :, channel], expected[0, 2:4], atol=1e-6)

    from mcrnn.forecasting import result

    starts = find_starts(given, [], 2)
    values = result.forecast(model, given, starts, warm_up=2, steps=3)
    labelled = result.label(values, model, given, starts, warm_up=2, identity={}, command="")
    assert labelled.z.dims == ("member", "time", "level", "lat", "lon")
    assert labelled.level.values.tolist() == [500, 850]
    assert np.array_equal(labelled.z.values, values[:, 0, :, :2])
    assert np.array_equal(labelled.t.values, values[:, 0, :, 2])


@pytest.mark.parametrize("recipe", [{"variables": ["z"], "levels": [500]}, {"variables": ["z@500"], "channels": ["z"]}])
def test_only_level_is_selected_from_several(root: Path, recipe: dict[str, Any]) -> None:
    levels = [geopotential(4).z * scale for scale in (1, 2)]
    data = xr.concat(levels, xr.Variable("level", [850, 500])).transpose("time", "level", ...).to_dataset(name="z")
    data["z"].attrs["units"] = UNITS
    frames = fit(Source("x.nc", data), saved_model(root, recipe=recipe)).read([0], [3], 1)
    assert np.allclose(frames[0, 0, 0], blocks(2 * geopotential(4).z.values[3]), atol=1e-5)
    with pytest.raises(UserError, match="has the levels 850, 500, and the model takes only one"):
        fit(Source("x.nc", data), saved_model(root))


def test_rows_are_weighted_as_in_the_coarsening_of_the_store(root: Path) -> None:
    values = geopotential(4).z.values
    plain = fit(Source("x.nc", geopotential(4)), saved_model(root)).read([0], [3], 2)
    assert np.allclose(plain[0, :, 0], blocks(values[2:]), atol=1e-5)
    by_area = fit(Source("x.nc", geopotential(4)), saved_model(root, coarsened_by_area=True)).read([0], [3], 2)
    expected = coarsened(values[2:], 2, latitude_weights(LATITUDE))
    assert np.array_equal(by_area[0, :, 0], expected)
    assert not np.allclose(by_area, plain, atol=1e-3)
    with pytest.raises(UserError, match="no latitudes along lat"):
        fit(Source("x.nc", geopotential(4).drop_vars("lat")), saved_model(root, coarsened_by_area=True))


def without(dataset: xr.Dataset, *frames: int) -> xr.Dataset:
    return dataset.isel(time=[i for i in range(dataset.sizes["time"]) if i not in frames])


def missing_value(dataset: xr.Dataset) -> xr.Dataset:
    dataset.z[15, 3, 4] = np.nan
    return dataset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.rename(z="q"), "'x.nc' has no variable 'z', which the model takes; known: q"),
        (lambda d: d.assign(z=d.z.assign_attrs(units="K")), "has the units K, the model takes m\\*\\*2 s\\*\\*-2"),
        (lambda d: d.isel(lat=slice(0, 12)), "a grid of 12 x 16, .*the model takes 16 x 16 or 8 x 8"),
        (lambda d: d.isel(lat=slice(None, None, -1)), "lat from -75 to 75.*; the model takes .*rows from 70 to -70"),
        (lambda d: d.assign_coords(lon=d.lon - 180), "lon from -180 to 157.5"),
        (lambda d: d.isel(time=slice(0, None, 2)), "has a frame of .* followed by one of .* 6 h apart"),
        (lambda d: without(d, 13), "2001-02-23 06:00 followed by one of 2001-02-23 18:00"),
        (lambda d: d.isel(time=slice(0, 3)), "has 3 frames, and a forecast is given 4"),
        (
            lambda d: d.assign_coords(time=np.arange(16.0)),
            "has times without dates .*; the model takes frames 6 h apart",
        ),
        (missing_value, "missing values in z at 2001-02-24 00:00"),
        (lambda d: d.isel(time=0), "forecasts need time, rows and columns"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    model: TrainedModel, change: Callable[[xr.Dataset], xr.Dataset], message: str
) -> None:
    def read() -> None:
        given = fit(Source("x.nc", change(geopotential())), model)
        given.read([0], find_starts(given, [], 4), 4)

    with pytest.raises(UserError, match=message):
        read()


def test_wrong_starts_files_and_outputs_are_refused(
    command: CommandRunner, root: Path, model: TrainedModel, tmp_path: Path
) -> None:
    geopotential().to_netcdf(root / "recent.nc")
    (root / "text.nc").write_text("no NetCDF")
    given = fit(Source("x.nc", geopotential()), model)
    for start, message in (
        ("2001-02-20T12:00", "has 2 frames up to 2001-02-20 12:00, and a forecast is given 4"),
        ("2002-01-01", "has no frame of this time; its 16 frames are from 2001-02-20 06:00 to 2001-02-24 00:00"),
        ("soon", "a start is a date such as"),
    ):
        with pytest.raises(UserError, match=message):
            find_starts(given, [start], 4)
    for arguments, message in (
        (("recent.nc", "--out", "f.png"), "--out ends with .nc or .zarr"),
        (("recent.nc", "--out", "nowhere/f.nc"), "there is no folder"),
        (("nothing.nc", "--out", "f.nc"), "there is no 'nothing.nc': neither a NetCDF file nor a Zarr group"),
        (("text.nc", "--out", "f.nc"), "'text.nc' cannot be read as NetCDF"),
        (("data/tiny.zarr", "--split", "tset", "--out", "f.nc"), "did you mean 'test'?"),
    ):
        done = command("mcrnn.forecast", "models/z", *arguments)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not list(root.glob("*f.nc*"))


@pytest.mark.parametrize(
    ("text", "calendar", "first", "after_two"),
    [
        ("6 h", "noleap", (2000, 2, 28, 18), (2000, 3, 1, 6)),
        ("1 month", "standard", (1999, 12, 31), (2000, 2, 29)),
        ("1 year", "360_day", (2000, 2, 30), (2002, 2, 30)),
    ],
)
def test_steps_follow_the_calendar(
    text: str, calendar: str, first: tuple[int, ...], after_two: tuple[int, ...]
) -> None:
    import cftime

    step = TimeStep.parse(text)
    start = cftime.datetime(*first, calendar=calendar)
    assert step.after(start, 2) == cftime.datetime(*after_two, calendar=calendar)
    assert step.leads_to(start, step.after(start, 1))
    assert not step.leads_to(start, step.after(start, 2))
