"""From data as they are published to a training, in two commands: Zarr on object storage, and GRIB."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from mcrnn.data.store import FieldStore
from mcrnn.storage.local import LocalFolder
from tests.conftest import CommandRunner
from tests.data_prep.test_convert import write_grib
from tests.support.s3_server import S3Server
from tests.support.training_runs import metrics_of

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]

CHANNELS = [
    "geopotential@500",
    "temperature@850",
    "2m_temperature",
    "10m_u_component_of_wind",
    "10m_v_component_of_wind",
]


def weatherbench2(years: int, height: int, width: int) -> xr.Dataset:
    """Data shaped as the Zarr stores of WeatherBench 2: variables by level, poles included, 6-hourly."""
    times = 1461 * years  # a quarter of the days of four years in each year
    generator = np.random.default_rng(0)
    levels = [500, 850, 1000]
    days = np.arange(times)[:, None, None] / 4
    wave = np.cos(2 * np.pi * (days / 10 - np.arange(width) / width)) * np.sin(np.linspace(0, np.pi, height))[:, None]

    def surface(mean: float, deviation: float) -> np.ndarray:
        noise = generator.standard_normal((times, height, width), np.float32)
        return (mean + deviation * (wave + 0.3 * noise)).astype(np.float32)

    def by_level(mean: float, deviation: float) -> np.ndarray:
        return np.stack([surface(mean + level, deviation) for level in levels], 1)

    along = ("time", "latitude", "longitude")
    return xr.Dataset(
        {
            "geopotential": (("time", "level", *along[1:]), by_level(54_000, 3_000), {"units": "m**2 s**-2"}),
            "temperature": (("time", "level", *along[1:]), by_level(270, 15), {"units": "K"}),
            "2m_temperature": (along, surface(280, 20), {"units": "K"}),
            "10m_u_component_of_wind": (along, surface(0, 5), {"units": "m s**-1"}),
            "10m_v_component_of_wind": (along, surface(0, 5), {"units": "m s**-1"}),
        },
        {
            "time": np.datetime64("2015-01-01", "ns") + 6 * np.arange(times) * np.timedelta64(1, "h"),
            "level": levels,
            "latitude": ("latitude", np.linspace(-90, 90, height), {"units": "degrees_north"}),
            "longitude": ("longitude", 360 * np.arange(width) / width, {"units": "degrees_east"}),
        },
    )


def upload(s3: S3Server, dataset: xr.Dataset, folder: Path, name: str) -> None:
    """Write a store of format 2 with consolidated metadata, as those of WeatherBench 2 are, and copy it to a bucket."""
    chunks = {key: {"chunks": (100, *variable.shape[1:])} for key, variable in dataset.data_vars.items()}
    dataset.to_zarr(folder / name, zarr_format=2, consolidated=True, encoding=chunks)
    client = s3.client()
    for path in (folder / name).rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "lab", path.relative_to(folder).as_posix())
    shutil.rmtree(folder / name)


def configuration(root: Path, coarsen: int) -> str:
    raw = {
        "name": "run",
        "data": {"store": "data/era.zarr", "normalize": True, "sequence_length": 6, "windows_per_epoch": 16},
        "model": {"architecture": "minconvgru", "hidden_size": 4, "layers": 1},
        "train": {"epochs": 2, "batch_size": 8, "teacher_forcing_steps": 4},
        "validation": {"warm_up": 4, "horizon": 3, "windows": 8},
    }
    raw["data"]["coarsen"] = coarsen
    (root / "run.yaml").write_text(yaml.safe_dump(raw))
    return "run.yaml"


def train(command: CommandRunner, root: Path, coarsen: int = 1) -> None:
    result = command("mcrnn.train", configuration(root, coarsen))
    assert result.returncode == 0, result.stderr
    errors = [entry["rmse_closed_loop"] for entry in metrics_of(root / "runs/run")]
    assert len(errors) == 2
    assert np.isfinite(errors).all()


@pytest.mark.parametrize(
    ("years", "height", "width"),
    [(1, 9, 16), pytest.param(4, 33, 64, marks=pytest.mark.soak)],
    ids=["small", "4 years"],
)
def test_weatherbench2_on_object_storage_to_a_training(
    command: CommandRunner, root: Path, tmp_path: Path, s3: S3Server, years: int, height: int, width: int
) -> None:
    dataset = weatherbench2(years, height, width)
    upload(s3, dataset, tmp_path, "wb2.zarr")
    variables = [word for name in CHANNELS for word in ("--variable", name)]
    dates = ("2015:2016", "2017", "2018") if years == 4 else ("2015-01:2015-08", "2015-09:2015-10", "2015-11:2015-12")
    splits = [
        word for option, text in zip(("--train", "--val", "--test"), dates, strict=True) for word in (option, text)
    ]
    how = (*variables, *splits, "--boundary", "cylinder", "--coarsen", "2", "--workers", "1")
    converted = command("data_prep.convert", "s3://lab/wb2.zarr", "data/era.zarr", *how)
    assert converted.returncode == 0, converted.stderr
    store = FieldStore.open(LocalFolder(root / "data/era.zarr"))
    assert store.channels[:3] == ["geopotential500", "temperature850", "2m_temperature"]
    assert store.grid() == ((height + 1) // 2, width // 2)
    assert store.latitude is not None
    assert store.latitude[[0, -1]].tolist() == [-90, 90]
    # The second row of coarse cells has the third row of the source, and half of the rows beside it.
    rows = dataset["2m_temperature"].sel(time=dates[1].split(":")[0]).values[0, 1:4, :2].mean(1, dtype=np.float64)
    step = np.deg2rad(180 / (height - 1))
    edges = np.sin(-np.pi / 2 + step * np.array([1, 1.5, 2.5, 3]))
    expected = (rows * np.diff(edges)).sum() / (edges[-1] - edges[0])
    assert store.load("val")[0, 0, 2, 1, 0] == pytest.approx(expected, rel=1e-6)
    train(command, root)


def test_grib_to_a_training(command: CommandRunner, root: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, level, mean in (("z", 500, 54_000), ("t", 850, 280)):
        write_grib(tmp_path / "era.grib", name, mean + generator.normal(size=(72, 6, 8)), level)
    days = ("--train", "1979-01-01:1979-01-10", "--val", "1979-01-11:1979-01-14", "--test", "1979-01-15:1979-01-18")
    how = ("--variable", "z@500", "--variable", "t@850", *days, "--boundary", "cylinder", "--workers", "1")
    converted = command("data_prep.convert", "era.grib", "data/era.zarr", *how)
    assert converted.returncode == 0, converted.stderr
    train(command, root, coarsen=2)
