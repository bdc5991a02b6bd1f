"""Measure memory and rate of a NetCDF conversion for inputs of growing size.

    python -m benchmarks.netcdf_memory [--gigabytes 0.5 2]

Yearly files of hourly values on 128 x 256 points are converted in one process. Its largest resident memory is printed,
which must not grow with the size of the files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import netCDF4
import numpy as np

HEIGHT, WIDTH, BLOCK = 128, 256, 256


def write_files(folder: Path, gigabytes: float) -> int:
    """Write files that have a size together, and return the number of their frames."""
    frames = max(100, int(gigabytes * 1e9 / (4 * HEIGHT * WIDTH)))
    generator = np.random.default_rng(0)
    noise = generator.normal(54_000, 3_000, (BLOCK, HEIGHT, WIDTH)).astype(np.float32)
    for number, first in enumerate(range(0, frames, 8760)):
        count = min(8760, frames - first)
        with netCDF4.Dataset(folder / f"z_{number:03}.nc", "w") as file:
            latitude = (np.arange(HEIGHT) + 0.5) * 180 / HEIGHT - 90
            longitude = np.arange(WIDTH) * 360 / WIDTH
            for name, values in (("time", first + np.arange(count)), ("lat", latitude), ("lon", longitude)):
                file.createDimension(name, len(values))
                file.createVariable(name, "f8", (name,))[:] = values
            file["time"].units = "hours since 2000-01-01"
            variable = file.createVariable("z", "f4", ("time", "lat", "lon"))
            for start in range(0, count, BLOCK):
                stop = min(start + BLOCK, count)
                variable[start:stop] = noise[: stop - start]
    return frames


def main() -> None:
    """Convert files of each size and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5, 2.0])
    options = parser.parse_args()
    for gigabytes in options.gigabytes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            frames = write_files(folder, gigabytes)
            days = frames // 24
            dates = [str(np.datetime64("2000-01-01") + np.timedelta64(d, "D")) for d in (days - 3, days - 2, days - 1)]
            arguments = [sys.executable, "-m", "data_prep.convert", f"{name}/*.nc", f"{name}/out.zarr"]
            arguments += ["--train", f"2000-01-01:{dates[0]}", "--val", dates[1], "--test", dates[2]]
            arguments += ["--boundary", "cylinder", "--workers", "1", "--storage", name]
            started = time.perf_counter()
            process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            assert status == 0
            print(
                f"{gigabytes:g} GB of NetCDF: at most {usage.ru_maxrss / 1e6:.2f} GB of memory (promised: below 1), "
                f"{gigabytes * 1000 / seconds:.0f} MB/s in one process"
            )


if __name__ == "__main__":
    main()
