"""Forecasts from what conversion takes: other units, levels, groups and plain variables of logarithms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import xarray as xr

from data_prep.convert import convert
from mcrnn.config.sections import Configuration
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.forecast import forecast
from mcrnn.forecasting import result
from mcrnn.forecasting.given import fit
from mcrnn.forecasting.source import Source, opened
from mcrnn.forecasting.starts import find_starts
from mcrnn.models import trained_model
from mcrnn.models.sizing import with_resolved_sizes
from mcrnn.models.trained_model import TrainedModel
from mcrnn.serving import bodies
from mcrnn.serving.bodies import NETCDF, Limits
from mcrnn.serving.served_model import ServedModel
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.training.session import CallbackSession
from mcrnn.training.trainer import fit as train
from tests.data_prep.test_convert import write_hdf5
from tests.data_prep.test_odd_inputs import DAYS, HOURS, LATITUDE, LONGITUDE, OTHER
from tests.forecasting.test_forecast import geopotential, saved_model
from tests.support.store_inputs import HEIGHTS

RAIN = np.random.default_rng(5).exponential(0.002, OTHER.shape).astype(np.float32)
GIVEN, STEPS, LAST = 4, 5, 23


def sources(first: int, count: int) -> xr.Dataset:
    """Temperature at two levels and rain, as the model's data had them in the group obs, and orography."""
    hours = slice(first, first + count)
    t = np.stack([OTHER[hours] - 40, OTHER[hours]], 1)
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {
            "t": (("time", "plev", "lat", "lon"), t, {"units": "K"}),
            "tp": (dims, RAIN[hours], {"units": "m", "long_name": "rain", "GRIB_units": "m"}),
            "orography": (("lat", "lon"), HEIGHTS, {"units": "m"}),
        },
        {
            "time": ("time", np.arange(first, first + count), {"units": HOURS}),
            "plev": ("plev", [500.0, 850.0], {"units": "hPa", "axis": "Z"}),
            "lat": ("lat", LATITUDE, {"units": "degrees_north"}),
            "lon": ("lon", LONGITUDE, {"units": "degrees_east"}),
        },
    )


def in_units(data: xr.Dataset, name: str, units: str, scale: float, offset: float = 0.0) -> xr.Dataset:
    values = data[name].values.astype(np.float64) * scale + offset
    return data.assign({name: (data[name].dims, values, data[name].attrs | {"units": units})})


def elsewhere(data: xr.Dataset) -> xr.Dataset:
    """The same values in the units of another provider."""
    data = in_units(in_units(data, "t", "degC", 1, -273.15), "tp", "mm", 1000)
    return in_units(data, "orography", "km", 0.001).assign_coords(
        plev=("plev", [50_000.0, 85_000.0], {"units": "Pa", "axis": "Z"})
    )


def write(path: Path, data: xr.Dataset, group: str | None = None) -> None:
    """Write a file, with t and tp in a group whose coordinates are in the root, where one is named."""
    if group is None:
        data.to_netcdf(path)
        return
    data.drop_vars(["t", "tp"]).to_netcdf(path)
    fields = data[["t", "tp"]].drop_vars(["time", "plev", "lat", "lon"])
    fields.to_netcdf(path, mode="a", group=group)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with out.zarr of temperature at 850 hPa and the logarithm of rain, and a model trained on it."""
    root = tmp_path_factory.mktemp("lab")
    write(root / "a.nc", sources(0, 72), "obs")
    convert(
        [str(root / "a.nc")],
        "out.zarr",
        variable=["obs/t@850", "obs/tp"],
        log=["tp:0.001"],
        static=["orography"],
        workers=1,
        storage=str(root),
        **DAYS,
    )
    config = Configuration.model_validate(
        {
            "name": "test",
            "data": {"store": "out.zarr", "normalize": True, "coarsen": 2, "sequence_length": 6},
            "model": {"architecture": "minconvgru", "hidden_size": 4, "layers": 1},
            "train": {"epochs": 1, "batch_size": 2, "teacher_forcing_steps": 2},
            "validation": {"warm_up": GIVEN, "horizon": 5},
        }
    )
    data = FieldData.load(FieldStore.open(LocalFolder(root / "out.zarr")), config.data)
    states: list[dict[str, torch.Tensor]] = []
    train(config, data, CallbackSession(lambda _, state: states.append(state["model"])))
    resolved = with_resolved_sizes(config, data.field.frame_shape, len(data.field.inputs))
    trained_model.save(LocalFolder(root / "model"), resolved, data.field, states[-1])
    return root


@pytest.fixture
def model(lab: Path, monkeypatch: pytest.MonkeyPatch) -> TrainedModel:
    monkeypatch.chdir(lab)
    return trained_model.load(LocalFolder(lab / "model"))


def from_store(lab: Path, model: TrainedModel) -> tuple[np.ndarray, np.ndarray]:
    """The given frames at the end of the store, and the forecast from them, (S, L, C, H, W)."""
    with opened("out.zarr", Storage.open(str(lab)), "test") as source:
        given = fit(source, model)
        values = result.forecast(model, given, [LAST], warm_up=GIVEN, steps=STEPS)
        return given.read([0], [LAST], GIVEN), values[0]


@pytest.mark.parametrize(
    ("group", "option"), [(None, None), ("obs", None), ("new/fields", "new/fields"), ("obs", "/obs/")]
)
def test_file_in_other_units_and_groups_gives_the_forecast_of_the_store(
    lab: Path, model: TrainedModel, capsys: pytest.CaptureFixture[str], group: str | None, option: str | None
) -> None:
    data = sources(68, 4)
    if option is not None:  # variables of a group that is named are all in it
        data = data.drop_vars("orography")
    write(Path("given.nc"), elsewhere(data) if option is None else in_units(data, "t", "degC", 1, -273.15), group)
    if option is not None:
        xr.Dataset({"orography": sources(0, 1)["orography"].drop_vars(["lat", "lon"])}).to_netcdf(
            "given.nc", mode="a", group=group
        )
    frames, values = from_store(lab, model)
    with opened("given.nc", Storage.open(str(lab)), "test", option or "") as source:
        assert np.array_equal(fit(source, model).read([0], [3], GIVEN), frames)
    forecast("model", "given.nc", "f.nc", steps=STEPS, group=option, overwrite=True, storage=str(lab))
    found = xr.open_dataset("f.nc")
    said = "t is converted from degC to K; "
    said += "" if option else "tp is converted from mm to m; orography is converted from km to m; "
    said += "log_tp is log(1 + tp / 0.001 m) of tp"
    assert capsys.readouterr().out.splitlines()[0] == said
    assert found.attrs["mcrnn_conversions"] == said
    assert list(found.data_vars) == ["t", "tp"]
    assert (found.t.attrs["units"], found.tp.attrs["units"]) == ("K", "m")
    assert np.array_equal(found.t.values, values[0, :, 0])
    assert np.allclose(found.tp.values, np.maximum(0.001 * (np.exp(values[0, :, 1]) - 1), 0), rtol=1e-4, atol=1e-9)
    assert found.tp.attrs["long_name"] == "rain"
    assert found.tp.attrs["comment"] == (
        "inverse of its mean over blocks of 2 x 2 points of the forecast of log(1 + tp / 0.001 m), 0 where that is "
        "negative"
    )
    assert ("GRIB_units" in found.tp.attrs) == (option is not None)  # of which the values are not in other units


def test_server_takes_the_same_files(lab: Path, model: TrainedModel) -> None:
    frames, values = from_store(lab, model)
    served = ServedModel(model, {}, None)
    write(Path("body.nc"), elsewhere(sources(68, 4)), "obs")
    body = Path("body.nc").read_bytes()
    reading = bodies.read(NETCDF, body, {"steps": str(STEPS)}, served, Limits(10**6, 99))
    assert np.array_equal(reading.frames_BTCHW, frames)
    Path("answer.nc").write_bytes(reading.answer(values))
    answer = xr.open_dataset("answer.nc")
    assert answer.tp.attrs["units"] == "m"
    assert answer.attrs["mcrnn_conversions"].startswith("t is converted from degC to K; ")
    with pytest.raises(UserError, match="'the body' has no group 'ob'; it has fields in the groups obs"):
        bodies.read(NETCDF, body, {"group": "ob"}, served, Limits(10**6, 99))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: in_units(d, "tp", "kg m-2", 1000),
            "tp in 'x' has the units kg m-2, the model takes m, and these",
        ),
        (lambda d: in_units(d, "t", "", 1), "t850 in 'x' has no units, the model takes it in K: write the attribute"),
        (
            lambda d: in_units(d, "t", "W m-2", 1),
            "t850 in 'x' has the units W m-2, the model takes K, and these",
        ),
        (lambda d: in_units(d, "tp", "m", -1), r"tp in 'x' has negative values, .*log\(1 \+ tp / 0.001 m\) of it"),
        (
            lambda d: d.assign_coords(plev=d.plev.assign_attrs(units="m")),
            "the levels of t in 'x' are in m, those of the model in hPa, and these do not convert",
        ),
        (
            lambda d: d.assign_coords(plev=d.plev.assign_attrs(units="Pa")),
            "t in 'x' has no level 850 hPa, which the model takes, but 500, 850 Pa",
        ),
        (
            lambda d: d.isel(plev=0).assign_coords(plev=((), 50_000.0, {"units": "Pa", "axis": "Z"})),
            "t in 'x' is at level 50000 Pa, the model takes it at 850 hPa",
        ),
        (
            lambda d: d.coarsen(lat=2, lon=2).mean(),
            "tp on the model's grid, at whose points the model takes means of its logarithm over blocks of 2",
        ),
    ],
)
def test_what_does_not_convert_is_refused(
    model: TrainedModel, change: Callable[[xr.Dataset], xr.Dataset], message: str
) -> None:
    with xr.set_options(keep_attrs=True):
        data = xr.decode_cf(change(sources(68, 4)), decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))
    with pytest.raises(UserError, match=message):
        fit(Source("x", data), model).read([0], [3], GIVEN)


@pytest.mark.parametrize(
    ("attributes", "differences", "offset"),
    [({}, (), 273.15), ({"long_name": "temperature anomaly"}, (), 0.0), ({}, ("z",), 0.0)],
)
def test_differences_are_converted_without_an_offset(
    root: Path, attributes: dict[str, Any], differences: tuple[str, ...], offset: float
) -> None:
    model = saved_model(root, units="K", channel_units=("K",), differences=differences)
    data = geopotential(4)
    data["z"].attrs = {"units": "degC"} | attributes
    (channel,) = fit(Source("x.nc", data), model).channels
    assert channel.conversion is None if offset == 0 else channel.conversion.offset == offset  # type: ignore[union-attr]


def test_differences_of_a_store_are_converted_without_an_offset(root: Path) -> None:
    data = geopotential(96, freq="1h")
    data["z"].attrs = {"units": "degC", "long_name": "temperature anomaly"}
    data["w"] = data["z"].assign_attrs(units="m", long_name="height")
    data.to_netcdf(root / "anomalies.nc")
    convert(
        [str(root / "anomalies.nc")], "a.zarr", train="2001-02-21", val="2001-02-22", test="2001-02-23",
        variable=["z", "w"], boundary="cylinder", workers=1, storage=str(root),
    )  # fmt: skip
    units = ("K", "m")
    model = saved_model(root, units="K, m", channel_units=units, channels=("z", "w"), time_step="1 h")
    with opened("a.zarr", Storage.open(str(root)), "test") as source:
        assert [channel.conversion for channel in fit(source, model).channels] == [None, None]


def test_units_of_several_channels_are_not_guessed_for_an_older_model(root: Path) -> None:
    data = geopotential(4)
    data["t"] = data["z"].assign_attrs(units="degC")
    data["u"] = data["t"].copy()
    older = saved_model(root, channels=("z", "t", "u"), units=f"{data['z'].attrs['units']}, K")
    with pytest.raises(UserError, match=r"has the units m\*\*2 s\*\*-2, degC, the model takes m\*\*2 s\*\*-2, K: conv"):
        fit(Source("x.nc", data), older)
    newer = replace(older, field=replace(older.field, channel_units=(data["z"].attrs["units"], "K", "K")))
    assert [c.conversion is not None for c in fit(Source("x.nc", data), newer).channels] == [False, True, True]


@pytest.mark.parametrize("file", ["g.nc", "g.zarr"])
def test_variables_of_one_name_in_several_groups(root: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.chdir(root)
    recipe = {"variables": ["obs/z", "model/z"], "channels": ["obs_z", "model_z"]}
    model = saved_model(root, channels=("obs_z", "model_z"), recipe=recipe)

    def write(data: xr.Dataset, group: str | None, mode: Literal["w", "a"] = "a") -> None:
        if file.endswith(".nc"):
            data.to_netcdf(file, mode=mode, group=group)
        else:
            data.to_zarr(file, mode="w" if group else mode, group=group, consolidated=False)

    def read(group: str = "") -> tuple[np.ndarray, xr.Dataset]:
        with opened(file, Storage.open(str(root)), "test", group) as source:
            given = fit(source, model)
            values = result.forecast(model, given, [3], warm_up=4, steps=2)
            return given.read([0], [3], 4), result.label(values, model, given, [3], warm_up=4, identity={}, command="")

    data = geopotential(4)
    write(data, None, "w")
    for number, group in enumerate(("obs", "model")):
        write(data.assign(z=data["z"] + number), group)
    frames, labelled = read()
    assert np.allclose(frames[:, :, 1] - frames[:, :, 0], 1, atol=1e-5)
    assert list(labelled.data_vars) == ["obs_z", "model_z"]
    with pytest.raises(UserError, match=r"no variable 'obs_z', .* fields in the groups (obs|model) \(z\), "):
        read("obs")
    write(geopotential(5).isel(time=slice(1, None)), "model")
    with pytest.raises(UserError, match="another coordinate time for model_z than for obs_z"):
        read()


def test_components_without_names_are_found_as_in_the_conversion(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    values = np.random.default_rng(1).normal(size=(2, 5, 16, 16, 2)).astype(np.float32)
    write_hdf5("w.hdf5", {"t0/density": values[..., 0], "t1/velocity": values})
    recipe = {
        "variables": ["t0/density", "t1/velocity@0", "t1/velocity@1"],
        "channels": ["density", "velocity0", "velocity1"],
        "roles": {r: f"dim_{n}" for n, r in enumerate(("sample", "time", "row", "column", "level"))},
    }
    names = {"channels": tuple(recipe["channels"]), "rows": (), "columns": ()}
    model = saved_model(root, units="1", time_step="1", recipe=recipe, **names)
    with opened("w.hdf5", Storage.open(str(root)), "test") as source:
        given = fit(source, model)
        assert (given.sample, given.time, given.grid) == ("dim_0", "dim_1", ("dim_2", "dim_3"))
        frames = given.read([1], [4], 3)
        expected = np.stack([values[1, 2:, ..., 0], values[1, 2:, ..., 0], values[1, 2:, ..., 1]], 1)
        assert np.allclose(frames[0], expected.reshape(3, 3, 8, 2, 8, 2).mean((3, 5)), atol=1e-6)
        forecasts = result.forecast(model, given, [4], warm_up=3, steps=2)
        labelled = result.label(forecasts, model, given, [4], warm_up=3, identity={}, command="")
    assert labelled["velocity"].sizes == {"dim_0": 2, "dim_1": 2, "dim_4": 2, "dim_2": 8, "dim_3": 8}
    assert np.array_equal(labelled["velocity"].isel(dim_4=1).values, forecasts[:, 0, :, 2])


def test_positions_of_dimensions_tell_nothing_where_that_of_samples_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    write_hdf5("one.hdf5", {"density": np.zeros((16, 16, 16), np.float32)})
    roles = {r: f"dim_{n}" for n, r in enumerate(("sample", "time", "row", "column"))} | {"level": None}
    recipe = {"variables": ["density"], "channels": ["density"], "roles": roles}
    model = saved_model(root, units="1", time_step="1", recipe=recipe, channels=("density",), rows=(), columns=())
    with (
        opened("one.hdf5", Storage.open(str(root)), "test") as source,
        pytest.raises(UserError, match="has the dimensions dim_0, dim_1, dim_2; forecasts need time, rows and columns"),
    ):
        fit(source, model)


@pytest.mark.parametrize(("units", "step"), [("s", 0.5), ("ms", 500.0), ("", 0.5)])
def test_times_of_samples_are_compared_in_their_units(root: Path, units: str, step: float) -> None:
    model = saved_model(root, time_step="0.5 s", recipe={"calendar": None})
    data = geopotential(4).assign_coords(time=("time", np.arange(4) * step, {"units": units} if units else {}))
    given = fit(Source("x.nc", data), model)
    values = result.forecast(model, given, find_starts(given, [], 4), warm_up=4, steps=2)
    labelled = result.label(values, model, given, [3], warm_up=4, identity={}, command="")
    assert labelled["time"].values.tolist() == [4 * step, 5 * step]
    for wrong, sentence in (("us", "followed by one of .* apart"), ("m", "times in m, the model takes frames 0.5 s")):
        data["time"].attrs["units"] = wrong
        with pytest.raises(UserError, match=sentence):
            find_starts(fit(Source("x.nc", data), model), [], 4)


@pytest.mark.parametrize(("units", "factor", "is_same"), [("km", 0.001, True), ("m", 1.0, True), ("km", 1.0, False)])
def test_coordinates_of_a_projection_are_compared_in_their_units(
    root: Path, units: str, factor: float, is_same: bool
) -> None:
    axes = {name: np.arange(16) * 5000.0 for name in ("y", "x")}
    means = tuple(axes["y"].reshape(-1, 2).mean(1).tolist())
    model = saved_model(root, grid_units=("m", "m"), rows=means, columns=means)
    data = geopotential(4).drop_vars(["lat", "lon"]).rename(lat="y", lon="x")
    data = data.assign_coords({k: (k, v * factor, {"units": units}) for k, v in axes.items()})
    if is_same:
        fit(Source("x.nc", data), model)
        return
    with pytest.raises(UserError, match="put the field onto that grid"):
        fit(Source("x.nc", data), model)


def test_coordinates_of_a_store_have_the_units_of_its_grid(tmp_path: Path) -> None:
    axes = {name: (name, np.arange(size) * 5.0, {"units": "km"}) for name, size in (("y", 6), ("x", 8))}
    data = sources(0, 72)[["tp"]].drop_vars(["lat", "lon"]).rename(lat="y", lon="x")
    data.assign_coords(axes).to_netcdf(tmp_path / "xy.nc")
    splits = DAYS | {"boundary": "zeros"}
    convert([str(tmp_path / "xy.nc")], "xy.zarr", variable=["tp"], workers=1, storage=str(tmp_path), **splits)
    with opened("xy.zarr", Storage.open(str(tmp_path)), "test") as source:
        assert source.grid == ("row", "column")
        assert [source.dataset["tp"][name].attrs["units"] for name in source.grid] == ["km", "km"]
