"""Measure the way from NetCDF files shaped like WeatherBench's to the champion of `geopotential.yaml`.

    python -m benchmarks.weatherbench [--years 40] [--trials 6] [--epochs 4] [--windows 200] [--root FOLDER]

The files are those of the 5.625 degree release, a year each: hourly, 32 x 64, geopotential at 500 hPa. Their content
is made here: waves that travel, each at its own speed, on a mean that changes with latitude and season.
Conversion, search and evaluation run as the documentation gives them, the search with fewer and shorter trials by
`--set`. Printed are the time of each command, and the most memory that it and its processes take together (PSS, in
which what processes share counts once).
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import netCDF4
import numpy as np
import psutil

from benchmarks.folders import root_folder

HEIGHT, WIDTH = 32, 64
WAVES = 10
HOURS_OF_MEMORY = 240.0
"""Time scale on which the phases of the waves change, in hours."""
SECONDS_BETWEEN_SAMPLES = 1.0


def write_files(folder: Path, first: int, years: int) -> float:
    """Write a file for each year, and return their size in bytes."""
    generator = np.random.default_rng(0)
    latitude = (np.arange(HEIGHT) + 0.5) * 180 / HEIGHT - 90
    longitude = np.arange(WIDTH) * 360 / WIDTH
    rows, columns = np.radians(latitude)[:, None], np.radians(longitude)
    envelopes = np.exp(-(((np.abs(latitude) - 45) / 18) ** 2))[:, None] * np.ones(WIDTH)
    patterns = [wave(k * columns) * envelopes for k in range(1, WAVES + 1) for wave in (np.cos, np.sin)]
    basis = np.stack([np.ones((HEIGHT, WIDTH)), np.sin(rows) * np.ones(WIDTH), *patterns]).reshape(-1, HEIGHT * WIDTH)
    mean = (56_500 - 5_500 * np.sin(rows) ** 2 * np.ones(WIDTH)).astype(np.float32)
    heights = 1_600 / np.sqrt(np.arange(1, WAVES + 1))
    speeds = 2 * np.pi / (24 * np.linspace(12, 3, WAVES))
    phases, hours = generator.uniform(0, 2 * np.pi, WAVES), 0
    for year in range(first, first + years):
        count = 24 * (datetime.date(year + 1, 1, 1) - datetime.date(year, 1, 1)).days
        steps = generator.normal(0, np.sqrt(2 / HOURS_OF_MEMORY), (count, WAVES)) + speeds
        phases_TK = phases + np.cumsum(steps, axis=0)
        phases = phases_TK[-1] % (2 * np.pi)
        season = 2 * np.pi * (np.arange(count) / count)
        weights = np.empty((count, len(basis)))
        weights[:, 0], weights[:, 1] = 12 * np.cos(2 * np.pi * np.arange(count) / 24), -900 * np.cos(season)
        weights[:, 2::2], weights[:, 3::2] = heights * np.cos(phases_TK), heights * np.sin(phases_TK)
        with netCDF4.Dataset(folder / f"geopotential_500hPa_{year}_5.625deg.nc", "w") as file:
            for name, values in (("time", hours + np.arange(count)), ("lat", latitude), ("lon", longitude)):
                file.createDimension(name, len(values))
                file.createVariable(name, "f8", (name,))[:] = values
            file["time"].setncatts({"units": f"hours since {first}-01-01", "calendar": "proleptic_gregorian"})
            file["lat"].units, file["lon"].units = "degrees_north", "degrees_east"
            variable = file.createVariable("z", "f4", ("time", "lat", "lon"))
            variable.setncatts({"units": "m**2 s**-2", "standard_name": "geopotential"})
            variable[:] = (weights @ basis).astype(np.float32).reshape(count, HEIGHT, WIDTH) + mean
        hours += count
    return float(sum(file.stat().st_size for file in folder.glob("*.nc")))


class Memory(threading.Thread):
    """Samples how much memory a process and all that it has started take."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.process, self.ended, self.largest = process, threading.Event(), 0
        self.start()

    def run(self) -> None:
        """Sample until the process has ended."""
        while not self.ended.wait(SECONDS_BETWEEN_SAMPLES):
            total = 0
            try:
                for each in [self.process, *self.process.children(recursive=True)]:
                    try:
                        total += each.memory_full_info().pss
                    except psutil.Error:
                        continue  # it has ended meanwhile
            except psutil.Error:
                continue
            self.largest = max(self.largest, total)


def measure(name: str, root: Path, *arguments: str) -> None:
    """Run a command and print its time and memory.

    Raises:
        SystemExit: it fails.
    """
    environment = os.environ | {"MCRNN_STORAGE": str(root)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=root, env=environment)
    memory = Memory(psutil.Process(process.pid))
    code = process.wait()
    memory.ended.set()
    memory.join()
    print(f"{name}: {time.monotonic() - started:.0f} s, at most {memory.largest / 1e9:.2f} GB of memory", flush=True)
    if code:
        raise SystemExit(f"{' '.join(arguments)} ended with {code}")


def run(root: Path, options: argparse.Namespace) -> None:
    """Write the files, and run the commands in a storage root."""
    sources, first = root / "geopotential_500_5.625deg", 2019 - options.years
    sources.mkdir(parents=True)
    started = time.monotonic()
    size = write_files(sources, first, options.years)
    print(f"{options.years} files, {size / 1e9:.2f} GB, made in {time.monotonic() - started:.0f} s", flush=True)
    measure(
        "conversion", root, "data_prep.convert", f"{sources}/*.nc", "data/z500.zarr", "--variable", "z",
        "--train", f"{first}:2014", "--val", "2015:2016", "--test", "2017:2018", "--boundary", "cylinder",
    )  # fmt: skip
    settings = {
        "search.trials": options.trials,
        "train.epochs": options.epochs,
        "data.windows_per_epoch": options.windows,
        "search.asha.grace_epochs": max(1, options.epochs // 2),
        "search.confirm": "{configurations: 2, seeds: 2}",
    }
    set_all = [text for path, value in settings.items() for text in ("--set", f"{path}={value}")]
    measure("search", root, "mcrnn.tune", "search_spaces/geopotential.yaml", *set_all)
    measure("evaluation", root, "mcrnn.evaluate", "models:/mcrnn-geopotential@champion")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=40)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--windows", type=int, default=200, help="training windows of an epoch")
    parser.add_argument("--root", type=Path, help="folder that is kept; else a temporary one")
    options = parser.parse_args()
    if options.years < 6:
        parser.error("--years must be at least 6: the last four are validation and test")
    if options.root is not None and options.root.exists() and any(options.root.iterdir()):
        parser.error(f"{options.root} is not empty")
    with root_folder(options.root) as root:
        run(root, options)


if __name__ == "__main__":
    main()
