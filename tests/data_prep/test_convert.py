"""Sources of all kinds, selections, samples, and builds that go on with what they began with."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from data_prep import field_source
from data_prep.channels import Channel
from data_prep.convert import _scaled_channels, convert
from data_prep.field_source import FieldSource
from data_prep.grid import Grid
from data_prep.resampling import Area, coarsen, regrid
from mcrnn.config.sections import DataConfig
from mcrnn.data.description import FieldDescription, Scaling
from mcrnn.data.sphere import latitude_edges
from mcrnn.data.store import FieldStore
from mcrnn.data.store_format import root_digest
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from tests.data_prep.test_odd_inputs import DAYS, HOURS, OTHER, SEA, VALUES, dataset, two_levels, with_t
from tests.support.s3_server import S3Server, error


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, and storage root."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored(folder: Path, name: str = "out.zarr") -> np.ndarray:
    """All splits of a store, (time, channel, height, width)."""
    store = FieldStore.open(LocalFolder(folder / name))
    return np.concatenate([store.load(split)[0] for split in ("train", "val", "test")])


def run(*sources: str, store: str = "out.zarr", **options: Any) -> None:
    convert([*sources], store, **(DAYS | {"workers": 1, "storage": "."} | options))


@pytest.fixture
def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with a file `a.nc` and a store of it that has 4 of its 9 objects."""
    monkeypatch.setattr(field_source, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(field_source, "SHARD_BYTES", 8 * 192)
    dataset().to_netcdf("a.nc")
    interrupt_after(4, monkeypatch)
    return folder


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch, source: str = "a.nc", **options: Any) -> None:
    compute, done = FieldSource.compute, iter(range(count))

    def stop(self: FieldSource, shards: Any) -> Any:
        if next(done, None) is None:
            raise KeyboardInterrupt
        return compute(self, shards)

    with monkeypatch.context() as patch:
        patch.setattr(FieldSource, "compute", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, **({"boundary": "zeros"} | options))


def test_build_goes_on_with_the_same_file(interrupted: Path) -> None:
    copy = Path("a.nc").read_bytes()
    Path("a.nc").unlink()
    Path("a.nc").write_bytes(copy)  # another file of the same content
    run("a.nc", boundary="zeros")
    assert np.array_equal(stored(interrupted)[:, 0], VALUES)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"row_dimension": "lon", "column_dimension": "lat"}, "dimensions is"),
        ({"every": "2h"}, "every is not set, not 2h"),
        ({"area": "90/0/-90/360"}, "area is not set"),
        ({"fill": "0"}, "fill is None, not 0"),
        ({"regrid": "3x4"}, "regrid is not set, not 3x4"),
    ],
)
def test_build_does_not_go_on_with_other_options(interrupted: Path, options: dict[str, str], named: str) -> None:
    for _ in range(2):  # neither an unfinished store nor a finished one
        with pytest.raises(UserError, match=named):
            run("a.nc", boundary="zeros", **options)
        run("a.nc", boundary="zeros")
    assert np.array_equal(stored(interrupted)[:, 0], VALUES)


def test_build_does_not_go_on_with_another_file_of_the_same_name_and_size(interrupted: Path) -> None:
    size = Path("a.nc").stat().st_size
    Path("a.nc").unlink()
    dataset(OTHER).to_netcdf("a.nc")
    assert Path("a.nc").stat().st_size == size
    with pytest.raises(UserError, match="sources is"):
        run("a.nc", boundary="zeros")


def test_file_that_changes_while_it_is_read_is_refused(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, done = FieldSource.compute, iter(range(2))

    def replace_after_two(self: FieldSource, shards: Any) -> Any:
        if next(done, None) is None:
            dataset(OTHER).to_netcdf("b.nc")
            Path("b.nc").rename("a.nc")
        return compute(self, shards)

    monkeypatch.setattr(FieldSource, "compute", replace_after_two)
    with pytest.raises(UserError, match="has changed since the build was planned"):
        run("a.nc", boundary="zeros")


def test_conversion_of_units_is_said_and_part_of_the_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warm = dataset(OTHER[:24])
    warm.assign(z=warm.z.assign_attrs(units="K")).to_netcdf("a.nc")
    cold = dataset(OTHER[24:], 24)
    celsius = cold.z.values.astype(np.float64) - 273.15
    cold.assign(z=(cold.z.dims, celsius, {"units": "degC"})).to_zarr("b.zarr", zarr_format=3, consolidated=False)
    for _ in range(2):
        run("a.nc", "b.zarr")
        assert "z is converted from degC to K in 1 of 2 sources\n" in capsys.readouterr().out
    assert np.array_equal(stored(folder)[:, 0], OTHER)
    attributes = FieldStore.open(LocalFolder(folder / "out.zarr")).attributes
    assert attributes["channel_units"] == ["K"]
    assert attributes["recipe"]["conversions"] == [["z", "degC", "K", 1.0, 273.15]]
    with pytest.raises(UserError, match=r"conversions is .* not \[\['z', 'K', 'degC', 1.0, -273.15\]\]; units is K"):
        run("a.nc", "b.zarr", units=["degC"])


def test_logarithm_is_a_channel_of_its_own_that_is_taken_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sea = SEA.copy()
    sea[:2, :4] = False  # a cell of the coarse grid has no value
    rain = np.where(sea, OTHER / 1000, np.nan)
    source = dataset(rain.astype(np.float32)).rename(z="tp")
    source.assign(tp=source.tp.assign_attrs(units="m", long_name="Total precipitation")).to_netcdf("a.nc")
    options: dict[str, Any] = {"mask": True, "regrid": "3x4", "units": ["mm"], "boundary": "zeros"}
    run("a.nc", **options)
    run("a.nc", **options, log=["tp:0.5"], store="log.zarr")
    assert "log_tp is log(1 + tp / 0.5 mm)\n" in capsys.readouterr().out
    store = FieldStore.open(LocalFolder(folder / "log.zarr"))
    assert store.attributes["variable"] == "log_tp"
    assert store.attributes["long_name"] == "Total precipitation; log_tp is log(1 + tp / 0.5 mm)"
    assert (store.attributes["units"], store.units_of(["log_tp"])) == ("1", ["1"])
    rain = np.log1p(stored(folder).astype(np.float64) / 0.5)
    assert np.allclose(stored(folder, "log.zarr"), rain, rtol=1e-6)
    assert store.statistic("min")[0] == pytest.approx(rain[:24].min(), rel=1e-6)
    assert FieldDescription.of(store, DataConfig(store="x")).logarithms == {"log_tp": "log(1 + tp / 0.5 mm)"}
    with pytest.raises(UserError, match=r"log is .*0.5, 'mm'\]}, not {'tp': \[2.0"):
        run("a.nc", **options, log=["tp:2"], store="log.zarr")


def test_channel_that_is_scaled_is_named_by_itself_else_by_its_variable() -> None:
    channels = [Channel("t", "t", None), Channel("model_t", "model/t", None), Channel("z500", "z", 500.0)]
    assert _scaled_channels(["t"], channels, []) == ["t"]
    assert _scaled_channels(["t"], channels[1:], []) == ["model_t"]
    assert _scaled_channels(["z", "model/t", "sun"], channels, ["sun"]) == ["z500", "model_t", "sun"]


def test_minimum_and_maximum_of_the_training_split_scale_a_channel(folder: Path) -> None:
    source = with_t(dataset())
    source.to_netcdf("a.nc")
    run("a.nc", variable=["z", "t"], min_max=["t"])
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    assert store.attributes["scaling"] == {"t": "min-max"}
    data = DataConfig(store="x", normalize=True)
    field = FieldDescription.of(store, data)
    seen = Scaling.of(data, *field.normalization).to_model(torch.from_numpy(store.load("train")))
    assert (float(seen[:, :, 1].min()), float(seen[:, :, 1].max())) == (0.0, 1.0)
    assert float(seen[:, :, 0].mean()) == pytest.approx(0, abs=1e-5)
    assert field.std[1] == pytest.approx(OTHER[:24].std(dtype=np.float64))  # errors are normalised by it as ever
    assert FieldDescription(**json.loads(json.dumps(dataclasses.asdict(field)))).min_max == field.min_max
    with pytest.raises(UserError, match=r"min_max is \['t'\], not not set"):
        run("a.nc", variable=["z", "t"])


def test_store_of_an_earlier_version_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset().to_netcdf("a.nc")
    run("a.nc")
    path = folder / "out.zarr" / "zarr.json"
    document = json.loads(path.read_text())
    days = {name: DAYS[name] for name in ("train", "val", "test", "boundary")}
    files = [["a.nc", Path("a.nc").stat().st_size]]
    recipe = {"command": "data_prep.netcdf", "files": files, "variables": ["z"], "levels": [], **days, "fill": None}
    document["attributes"]["recipe"] = recipe
    document["attributes"]["sha256"] = root_digest(document)
    path.write_text(json.dumps(document))
    run("a.nc")
    assert "made by an earlier version (complete already, nothing to do)" in capsys.readouterr().out
    with pytest.raises(UserError, match="was made with other parameters"):
        run("a.nc", every="2h")
    document["attributes"]["status"] = "building"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="was begun by an earlier version"):
        run("a.nc")


def test_zarr_on_object_storage_is_read_as_on_disk(folder: Path, s3: S3Server) -> None:
    source = two_levels(dataset())
    source.to_zarr("era.zarr", zarr_format=2, consolidated=True, encoding={"z": {"chunks": (10, 2, 6, 8)}})
    client = s3.client()
    for path in Path("era.zarr").rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "lab", path.as_posix())
    options = {"variable": ["z@850", "z@500"], "every": "6h"}
    run("s3://lab/era.zarr", store="s3.zarr", **options)
    run("era.zarr", store="local.zarr", **options)
    assert np.array_equal(stored(folder, "s3.zarr"), np.stack([VALUES + 1, VALUES], 1)[::6])
    assert np.array_equal(stored(folder, "local.zarr"), stored(folder, "s3.zarr"))
    run("s3://lab/era.zarr", store="s3.zarr", **options)  # complete already
    client.upload_file("era.zarr/z/0.0.0.0", "lab", "era.zarr/z/1.0.0.0")
    with pytest.raises(UserError, match="sources is"):
        run("s3://lab/era.zarr", store="s3.zarr", **options)
    s3.fault = lambda environ: (
        error("403 Forbidden", "AccessDenied") if environ["PATH_INFO"].startswith("/lab/era.zarr/z/2") else None
    )
    with pytest.raises(UserError, match=r"no permission for (Get|Head)Object on 's3://lab/era\.zarr'"):
        run("s3://lab/era.zarr", store="denied.zarr", **options)
    s3.fault = None
    with pytest.raises(UserError, match=r"'s3://lab/nothing\.zarr'"):
        run("s3://lab/nothing.zarr", store="nothing.zarr")


@pytest.fixture
def site(folder: Path) -> Iterator[str]:
    """The address at which a web server has the current folder."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Without a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_files_and_zarr_of_a_web_server_and_files_of_object_storage(folder: Path, site: str, s3: S3Server) -> None:
    dataset().to_netcdf("a.nc")
    dataset().to_zarr("a.zarr", zarr_format=3)
    s3.client().upload_file("a.nc", "lab", "raw/a.nc")
    for number, source in enumerate((f"{site}/a.nc", f"{site}/a.zarr", "s3://lab/raw/a.nc", "s3://lab/raw/*.nc")):
        run(source, store=f"{number}.zarr")
        assert np.array_equal(stored(folder, f"{number}.zarr")[:, 0], VALUES)
    for missing in (f"{site}/b.nc", f"{site}/b.zarr", "s3://lab/raw/b.nc"):
        with pytest.raises(UserError):
            run(missing, store="missing.zarr")


def write_grib(path: Path, name: str, values: np.ndarray, level: int | None = None) -> None:
    """Add fields, one for every six hours, to a GRIB file, from the north."""
    import eccodes

    keys = {
        "Ni": 8,
        "Nj": 6,
        "latitudeOfFirstGridPointInDegrees": 75,
        "latitudeOfLastGridPointInDegrees": -75,
        "longitudeOfFirstGridPointInDegrees": 0,
        "longitudeOfLastGridPointInDegrees": 315,
        "iDirectionIncrementInDegrees": 45,
        "jDirectionIncrementInDegrees": 30,
        "shortName": name,
        "bitsPerValue": 24,
    }
    with path.open("ab") as file:
        for number, frame in enumerate(values):
            message = eccodes.codes_grib_new_from_samples(
                "regular_ll_sfc_grib2" if level is None else "regular_ll_pl_grib2"
            )
            times = {"dataDate": 19790101 + number // 4, "dataTime": 600 * (number % 4)}
            for key, value in (keys | times | ({} if level is None else {"level": level})).items():
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, frame.ravel().astype(float))
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)


def test_grib_files_of_several_kinds_of_levels(folder: Path) -> None:
    for name, values, level in (("z", VALUES, 500), ("z", VALUES + 1, 850), ("t", OTHER, 850), ("2t", OTHER + 1, None)):
        write_grib(folder / "era.grib", name, values[:12], level)
    run("era.grib", variable=["z@850", "t@850", "t2m"])
    assert np.allclose(stored(folder), np.stack([VALUES + 1, OTHER, OTHER + 1], 1)[:12], rtol=1e-6)
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    assert store.channels == ["z850", "t850", "t2m"]
    assert store.is_from_the_north
    assert [path.name for path in folder.glob("era.grib*")] == ["era.grib"]  # no index beside it
    run("era.grib", variable=["t2m"], units=["degC"], store="b.zarr")
    assert np.allclose(stored(folder, "b.zarr")[:, 0], OTHER[:12] + 1 - 273.15, atol=1e-4)
    with pytest.raises(UserError, match="fields of several kinds; name those wanted by --variable"):
        run("era.grib")
    with pytest.raises(UserError, match="no file has a variable 'q'"):
        run("era.grib", variable=["q"])


GLOBE = Grid(("lat", "lon"), np.linspace(90, -90, 181), np.arange(0, 360, 1.0), True, True)


def area_mean(grid: Grid, frame: np.ndarray) -> float:
    area = -np.diff(np.sin(latitude_edges(grid.rows)))
    return float((frame.mean(1, dtype=np.float64) * area).sum() / area.sum())


@pytest.mark.parametrize(
    "remapping", [coarsen(GLOBE, 4), coarsen(GLOBE, 2), regrid(GLOBE, "32x64"), regrid(GLOBE, "7x9")]
)
def test_coarser_grids_keep_the_mean_of_the_globe(remapping: Any) -> None:
    frame = np.random.default_rng(0).normal(size=GLOBE.shape).astype(np.float32)
    coarse = remapping.apply(frame[None])[0]
    assert coarse.shape == remapping.grid.shape
    # The coarse rows are where they are said to be: latitude itself is averaged to nearly that of the coarse cells.
    assert area_mean(remapping.grid, coarse) == pytest.approx(area_mean(GLOBE, frame), abs=2e-6)
    assert np.allclose(remapping.apply(np.ones((1, *GLOBE.shape), np.float32)), 1, rtol=1e-7)


def test_coarse_cells_are_means_by_area_also_at_the_poles() -> None:
    frame = np.random.default_rng(0).normal(size=GLOBE.shape).astype(np.float32)
    remapping = coarsen(GLOBE, 4)
    assert remapping.grid.rows.tolist() == np.linspace(90, -90, 46).tolist()
    assert remapping.grid.columns[:2].tolist() == [1.5, 5.5]
    coarse = remapping.apply(frame[None])[0]
    # The cap goes from the pole to 88 degrees: a half row at the pole, a whole one, and half of the next.
    edges = np.sin(np.deg2rad([90, 89.5, 88.5, 88]))
    cap = (frame[:3, :4].mean(1, dtype=np.float64) * -np.diff(edges)).sum() / (edges[0] - edges[-1])
    assert coarse[0, 0] == pytest.approx(cap, rel=1e-6)
    # The cell around 46 degrees, the twelfth, goes from 48 to 44.
    edges = np.sin(np.deg2rad([48, 47.5, 46.5, 45.5, 44.5, 44]))
    cell = (frame[42:47, 8:12].mean(1, dtype=np.float64) * -np.diff(edges)).sum() / (edges[0] - edges[-1])
    assert coarse[11, 2] == pytest.approx(cell, rel=1e-6)


def test_regridded_rows_lie_as_those_of_weatherbench() -> None:
    grid = regrid(GLOBE, "32x64").grid
    assert np.allclose(grid.rows, np.linspace(87.1875, -87.1875, 32))
    assert np.allclose(grid.columns, np.arange(64) * 5.625)


def test_coarsened_store_has_a_coarse_grid(folder: Path) -> None:
    dataset().to_netcdf("a.nc")
    run("a.nc", coarsen=2, area="90/0/-90/360")
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    assert store.attributes["latitude"] == [-60, 0, 60]
    edges = np.sin(np.deg2rad([-90, -60, -30]))
    weights = np.diff(edges) / (edges[-1] - edges[0])
    expected = (VALUES[:, :2, :2].mean(2, dtype=np.float64) * weights).sum(1)
    assert np.allclose(stored(folder)[:, 0, 0, 0], expected, rtol=1e-7)
    opened = xr.open_zarr("out.zarr", group="train")
    assert np.allclose(opened.row_area, [0.75, 1.5, 0.75], atol=0.2)


SAMPLES = np.random.default_rng(3).normal(size=(5, 4, 6, 8)).astype(np.float32)


def samples(values: np.ndarray = SAMPLES, **coordinates: Any) -> xr.Dataset:
    return xr.Dataset({"u": (("sample", "time", "y", "x"), values, {"units": "m s-1"})}, coordinates)


def check_samples(folder: Path, time_step: str) -> None:
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    assert not store.is_series
    assert store.attributes["time_step"] == time_step
    for split, part in (("train", slice(0, 2)), ("val", slice(2, 3)), ("test", slice(3, 5))):
        assert np.array_equal(store.load(split)[:, :, 0], SAMPLES[part])


COUNTS = {"train": "2", "val": "1", "test": "2", "boundary": "periodic"}


def test_dimension_of_samples_is_split_by_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples(time=("time", [0.1, 0.2, 0.3, 0.4], {"units": "s"})).to_netcdf("a.nc")
    run("a.nc", **COUNTS)
    assert "u, 2 + 1 + 2 samples of 4 frames, 6 x 8" in capsys.readouterr().out
    check_samples(folder, "0.1 s")
    with pytest.raises(UserError, match="the splits ask for 6 samples, and there are 5"):
        run("a.nc", **COUNTS | {"train": "3"})
    with pytest.raises(UserError, match="--val is a number of them, not '0'"):
        run("a.nc", **COUNTS | {"val": "0"})
    with pytest.raises(UserError, match="--every needs a series"):
        run("a.nc", **COUNTS, every="2h")


def test_samples_begin_at_the_second_at_which_their_first_frame_is(folder: Path) -> None:
    seconds = ("time", 30.5 + 10 * np.arange(4.0), {"units": "seconds since 2001-01-01 06:00"})
    samples(time=seconds).to_netcdf("a.nc")
    run("a.nc", **COUNTS)
    times = xr.open_zarr("out.zarr", group="train").time.values
    assert times[0] == np.datetime64("2001-01-01T06:00:30.5")
    assert times[1] - times[0] == np.timedelta64(10, "s")


def test_samples_of_several_files(folder: Path) -> None:
    samples(SAMPLES[:3]).to_netcdf("a.nc")
    samples(SAMPLES[3:]).to_netcdf("b.nc")
    run("a.nc", "b.nc", **COUNTS)
    check_samples(folder, "1")
    Path("b.nc").unlink()
    samples(SAMPLES[3:, :3]).to_netcdf("b.nc")
    with pytest.raises(UserError, match=r"the samples of '.*b.nc' have 3 times, those of '.*a.nc' 4"):
        run("a.nc", "b.nc", **COUNTS, store="b.zarr")


def test_samples_of_several_files_have_the_same_times_in_any_units(folder: Path) -> None:
    samples(SAMPLES[:3], time=("time", np.arange(4.0), {"units": "min"})).to_netcdf("a.nc")
    samples(SAMPLES[3:], time=("time", np.arange(4.0) * 60, {"units": "s"})).to_netcdf("b.nc")
    run("a.nc", "b.nc", **COUNTS)
    check_samples(folder, "1 min")
    samples(SAMPLES[3:], time=("time", np.arange(4.0), {"units": "h"})).to_netcdf("c.nc")
    with pytest.raises(UserError, match=r"the samples of '.*c.nc' have other times than those of"):
        run("a.nc", "c.nc", **COUNTS, store="b.zarr")


def test_each_file_a_sample(folder: Path) -> None:
    for number, values in enumerate(SAMPLES):
        hours = ("time", 6.0 * np.arange(4) + 100 * number, {"units": HOURS})
        xr.Dataset({"u": (("time", "y", "x"), values)}, {"time": hours}).to_netcdf(f"{number}.nc")
    run("*.nc", **COUNTS, files_are_samples=True)
    check_samples(folder, "6 h")
    Path("4.nc").unlink()
    hours = ("time", 3.0 * np.arange(4), {"units": HOURS})
    xr.Dataset({"u": (("time", "y", "x"), SAMPLES[4])}, {"time": hours}).to_netcdf("4.nc")
    with pytest.raises(UserError, match=r"the samples of '.*4.nc' have other times than those of"):
        run("*.nc", **COUNTS, files_are_samples=True, store="b.zarr")


def test_samples_in_hdf5_with_components_and_without_names(folder: Path) -> None:
    # As PDEBench has them: trajectory, time, two axes of the same length, component.
    values = np.stack([SAMPLES[..., :6], SAMPLES[..., :6] + 1], -1)
    xr.Dataset({"velocity": (("a", "b", "c", "d", "e"), values)}).to_netcdf("a.h5")
    named = dict(zip(("sample", "time", "row", "column", "level"), "abcde", strict=True))
    options = COUNTS | {f"{role}_dimension": name for role, name in named.items()}
    run("a.h5", **options, variable=["velocity@1", "velocity@0"])
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    assert store.channels == ["velocity1", "velocity0"]
    assert np.array_equal(store.load("test"), np.moveaxis(values[3:, ..., ::-1], -1, 2))
    with pytest.raises(UserError, match="velocity has 2 levels; select with --level one or more of 0, 1"):
        run("a.h5", **options, store="b.zarr")


def write_hdf5(path: str, arrays: dict[str, np.ndarray]) -> None:
    """A file without scales, and so without names of dimensions."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def test_hdf5_with_a_tensor_without_names(folder: Path) -> None:
    # As PDEBench has it. The two samples of the second file, and their times, are as many as its rows.
    values = SAMPLES[:, :2, :2]
    axes = {"t-coordinate": np.arange(3.0), "x-coordinate": np.arange(2.0), "y-coordinate": np.arange(8.0)}
    write_hdf5("a.hdf5", {"tensor": values[:3]} | axes)
    write_hdf5("b.hdf5", {"tensor": values[3:]} | axes)
    with pytest.raises(UserError, match=r"it has dim_0 \(3\), dim_1 \(2\), dim_2 \(2\), dim_3 \(8\); say so by"):
        run("*.hdf5", **COUNTS)
    named = {"time_dimension": "dim_1", "row_dimension": "dim_2", "column_dimension": "dim_3"}
    with pytest.raises(UserError, match=r"not understood: dim_0 \(3\); say by --sample-dimension"):
        run("*.hdf5", **COUNTS, **named)
    run("*.hdf5", **COUNTS, **named, sample_dimension="dim_0")
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    assert np.array_equal(np.concatenate([store.load(split) for split in ("train", "val", "test")])[:, :, 0], values)


def test_hdf5_with_fields_in_groups(folder: Path) -> None:
    # As The Well has them: fields by the order of their tensors, (trajectory, time, x, y, components).
    velocity = np.stack([SAMPLES, SAMPLES + 1], -1)
    first = {"dimensions/time": np.arange(4.0), "t0_fields/density": SAMPLES[:2], "t1_fields/velocity": velocity[:2]}
    write_hdf5("a.hdf5", first | {"boundary_conditions/x_periodic/mask": np.zeros(8, bool)})
    write_hdf5("b.hdf5", {"t0_fields/density": SAMPLES[2:], "t1_fields/velocity": velocity[2:]})
    with pytest.raises(UserError, match=r"groups t0_fields \(density\), t1_fields \(velocity\): name one by --group"):
        run("*.hdf5", **COUNTS)
    names = dict(zip(("sample", "time", "row", "column"), ("dim_0", "dim_1", "dim_2", "dim_3"), strict=True))
    named = {f"{role}_dimension": name for role, name in names.items()}
    run("*.hdf5", **COUNTS, **named, group="t0_fields")
    run("*.hdf5", **COUNTS, **named, group="t0_fields", variable=["density"])  # the same
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    assert (store.channels, store.attributes["recipe"]["variables"]) == (["density"], ["t0_fields/density"])
    assert np.array_equal(np.concatenate([store.load(split) for split in ("train", "val", "test")])[:, :, 0], SAMPLES)
    both = {"variable": ["density", "t1_fields/velocity@1"], "level_dimension": "dim_4"}
    run("*.hdf5", **COUNTS, **named, **both, group="t0_fields", store="b.zarr")
    store = FieldStore.open(LocalFolder(folder / "b.zarr"))
    assert store.channels == ["density", "velocity1"]
    assert np.array_equal(store.load("train"), np.stack([SAMPLES[:2], SAMPLES[:2] + 1], 2))
    with pytest.raises(UserError, match=r"--level-dimension: t0_fields/density of .* have no dimension 'dim_4'"):
        run("*.hdf5", **COUNTS, **named, group="t0_fields", level_dimension="dim_4", store="c.zarr")


def write_samples(path: str, order: list[int], components: int = 1) -> None:
    """A file with a group for each sample, as PDEBench has them: (time, x, y, component)."""
    with h5py.File(path, "w") as file:
        for number in order:
            field = np.moveaxis(SAMPLES[number % 5], 1, 2)[..., None] + np.arange(components, dtype=np.float32)
            file[f"{number}/data"] = field
            for name, length in (("t", 4), ("x", 8), ("y", 6)):
                file[f"{number}/grid/{name}"] = np.linspace(0, 3, length, dtype=np.float32)
            file[f"{number}"].attrs["config"] = f"seed: {number}"


def test_groups_of_hdf5_are_samples_in_natural_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_samples("a.h5", [10, 2, 1])  # 1, 2, 10
    write_samples("b.h5", [14, 13])
    opened: list[str] = []
    open_file = h5py.File

    def noted(path: str, *arguments: Any) -> h5py.File:
        opened.append(path)
        return open_file(path, *arguments)

    monkeypatch.setattr(h5py, "File", noted)
    run("a.h5", "b.h5", **COUNTS, group="*")
    assert len(opened) == 5  # the first one to find its variable, and each to be checked and to be read
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    found = np.concatenate([store.load(split) for split in ("train", "val", "test")])
    assert np.array_equal(found[:, :, 0], SAMPLES[[1, 2, 0, 3, 4]])
    assert (store.channels, store.attributes["time_step"], store.grid()) == (["data"], "1", (6, 8))
    assert np.array_equal(store.coordinate("height"), np.linspace(0, 3, 6, dtype=np.float32))
    write_samples("c.h5", [0, 1, 2, 3, 4], components=2)
    run("c.h5", **COUNTS, variable=["*/data@1", "*/data@0"], level_dimension="dim_3", store="c.zarr")
    store = FieldStore.open(LocalFolder(folder / "c.zarr"))
    assert store.channels == ["data1", "data0"]
    assert np.array_equal(store.load("test"), np.stack([SAMPLES[3:] + 1, SAMPLES[3:]], 2))


@pytest.mark.parametrize("coordinates", [True, False], ids=["coordinates", "none"])
def test_groups_of_netcdf_are_samples_with_or_without_coordinates(folder: Path, coordinates: bool) -> None:
    of_group = {"t": np.arange(4.0), "y": 2 * np.arange(6.0), "x": np.arange(8.0)} if coordinates else {}
    for number in range(5):
        field = xr.Dataset({"data": (("t", "y", "x"), SAMPLES[number])}, of_group)
        field.to_netcdf("a.nc", group=str(number), mode="a" if number else "w")  # with a _FillValue of NaN
    with h5py.File("a.nc", "a") as file:
        file["gone"], file["away"] = h5py.SoftLink("/nowhere"), h5py.ExternalLink("nowhere.h5", "/")
    run("a.nc", **COUNTS, group="*")
    store = FieldStore.open(LocalFolder(folder / "out.zarr"))
    assert np.array_equal(np.concatenate([store.load(split) for split in ("train", "val", "test")])[:, :, 0], SAMPLES)
    assert np.array_equal(store.coordinate("height"), np.arange(6.0) * (2 if coordinates else 1))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"3/data": np.zeros((4, 8, 7, 1), np.float32)},
            r"the shape of data is \(4, 8, 7, 1\) in the group 3 and \(4, 8, 6",
        ),
        ({"3/data": np.zeros((4, 8, 6, 1))}, "the type of data is float64 in the group 3 and float32 in the group 0"),
        ({"3/data": None}, "the shape of data is not there in the group 3"),
        (
            {"3/grid/x": np.arange(8.0)},
            "the coordinate x is 0 to 7, 8 values in the group 3 and 0 to 3, 8 values in the gr",
        ),
        ({"3/grid/t": np.arange(5.0)}, "dimension 0 of data is not there in the group 3 and t in the group 0"),
    ],
    ids=["shape", "type", "missing", "coordinate", "length of the time"],
)
def test_group_that_is_no_sample_like_the_first_is_named(folder: Path, changed: dict[str, Any], said: str) -> None:
    write_samples("a.h5", [0, 1, 2, 3, 4])
    with h5py.File("a.h5", "a") as file:
        for name, values in changed.items():
            del file[name]
            if values is not None:
                file[name] = values
    with pytest.raises(UserError, match=rf"the groups of '.*a.h5' are no samples of one field: {said}"):
        run("a.h5", **COUNTS, group="*")


def test_group_for_each_sample_is_proposed_and_units_are_compared(folder: Path) -> None:
    write_samples("a.h5", [0, 1, 2])
    with pytest.raises(
        UserError, match=r"0 \(data\), 1 \(data\), 2 \(data\): name one by --group, or take each as a sample by"
    ):
        run("a.h5", **COUNTS)
    with h5py.File("nested.h5", "w") as file, h5py.File("a.h5") as flat:
        flat.copy(flat["/"], file, "runs")
    with pytest.raises(UserError, match=r"runs/2 \(data\): name one by --group$"):
        run("nested.h5", **COUNTS, group="*")
    write_samples("b.h5", [0, 1, 2])
    with h5py.File("b.h5", "a") as file:
        file["1/data"].attrs["units"] = "m"
    with pytest.raises(UserError, match="units of data is m in the group 1 and not there in the group 0"):
        run("b.h5", **COUNTS, group="*")
    with pytest.raises(UserError, match="no file has a variable '\\*/u'"):
        run("a.h5", **COUNTS, variable=["*/u"])
    samples().to_netcdf("c.nc", format="NETCDF3_CLASSIC")
    with pytest.raises(UserError, match="is no HDF5 file"):
        run("c.nc", **COUNTS, group="*")


def test_groups_of_zarr_are_known_by_what_is_read(folder: Path) -> None:
    dataset(OTHER).to_zarr("a.zarr", group="other", zarr_format=3, consolidated=False)
    dataset().to_zarr("a.zarr", group="fields/upper", mode="a", zarr_format=3, consolidated=False)
    run("a.zarr", group="fields/upper")
    assert np.array_equal(stored(folder)[:, 0], VALUES)
    dataset(OTHER + 1).to_zarr("a.zarr", group="other", mode="w", zarr_format=3, consolidated=False)
    run("a.zarr", group="fields/upper")
    dataset(VALUES + 1).to_zarr("a.zarr", group="fields/upper", mode="w", zarr_format=3, consolidated=False)
    with pytest.raises(UserError, match="sources is"):
        run("a.zarr", group="fields/upper")


def test_missing_value_of_a_sample_is_named(folder: Path) -> None:
    values = SAMPLES.copy()
    values[3, 2, 1, 4] = np.nan
    samples(values).to_netcdf("a.nc")
    with pytest.raises(UserError, match=r"u at sample 3, time 2, y 1, x 4 \("):
        run("a.nc", **COUNTS)


@pytest.mark.parametrize(
    ("columns", "area", "expected"),
    [
        (np.arange(0, 361, 10), "75/-20/30/20", [-20, -10, 0, 10, 20]),
        (np.arange(-180, 181, 10), "75/160/30/-170", [160, 170, 180, 190]),
        (np.arange(0, 361, 10), "75/0/30/360", [*range(0, 360, 10)]),
        (np.arange(100, 205, 1, dtype=np.float32) / np.float32(10), "70.3/10.2/60.1/20.3", None),
    ],
)
def test_area_has_each_meridian_and_row_of_its_edges_once(
    columns: np.ndarray, area: str, expected: list | None
) -> None:
    rows = np.arange(600, 711, 1, dtype=np.float32) / np.float32(10)
    whole = Grid(("lat", "lon"), rows.astype(float), columns.astype(float), True, True)
    part = Area.select(whole, area).grid
    if expected is not None:
        assert part.columns.tolist() == expected
    else:
        assert (len(part.rows), len(part.columns)) == (103, 102)
