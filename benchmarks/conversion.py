"""Measure the conversion of NetCDF files and of Zarr on S3 against xarray alone, which reads and writes the same.

    python -m benchmarks.conversion [--megabytes 300]

The files have one variable on 181 x 360 points, compressed, in chunks of 1, 27 and 108 frames. Both ways run in one
process. xarray reads blocks of whole chunks, and writes the chunks, shards and codecs of the store. A conversion also
hashes the source, checks that all values are finite, compares what it has written, and computes statistics. The S3
server is moto on the loopback interface, in its own process (needs the dev extra).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec

from benchmarks.reading import serve
from data_prep.convert import convert
from data_prep.field_source import CHUNK_BYTES, SHARD_BYTES
from mcrnn.storage.s3 import S3Prefix

HEIGHT, WIDTH = 181, 360
REPEATS = 3


def dataset(frames: int) -> xr.Dataset:
    """A smooth field with some noise, hourly, which compresses as a reanalysis does."""
    generator = np.random.default_rng(0)
    wave = np.sin(np.arange(WIDTH) * 2 * np.pi / WIDTH) * np.cos(np.linspace(-1.5, 1.5, HEIGHT))[:, None]
    values = np.empty((frames, HEIGHT, WIDTH), np.float32)
    for frame in range(frames):
        values[frame] = 54_000 + 3_000 * np.roll(wave, frame, 1) + generator.normal(0, 30, wave.shape).round()
    return xr.Dataset(
        {"z": (("time", "lat", "lon"), values)},
        {
            "time": np.datetime64("2000-01-01", "ns") + np.arange(frames) * np.timedelta64(1, "h"),
            "lat": np.linspace(90, -90, HEIGHT),
            "lon": np.arange(WIDTH) * 360.0 / WIDTH,
        },
    )


def converted(source: str, folder: Path, days: int) -> None:
    """Convert a source."""
    last = [str(np.datetime64("2000-01-01") + day) for day in (days - 3, days - 2, days - 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        convert(
            [source], "out.zarr", train=f"2000-01-01:{last[0]}", val=last[1], test=last[2], boundary="cylinder",
            workers=1, storage=str(folder), overwrite=True,
        )  # fmt: skip


def by_xarray(source: str, folder: Path, chunk: int) -> None:
    """Read and write the same by xarray."""
    shutil.rmtree(folder / "plain.zarr", ignore_errors=True)
    is_zarr = source.startswith("s3://")
    store = S3Prefix.from_url(source).zarr_store() if is_zarr else source
    opened = xr.open_dataset(store, engine="zarr" if is_zarr else "netcdf4", cache=False)  # type: ignore[arg-type]
    per_chunk = max(1, CHUNK_BYTES // (4 * HEIGHT * WIDTH))
    per_shard = per_chunk * max(1, round(SHARD_BYTES / (per_chunk * 4 * HEIGHT * WIDTH)))
    block = per_shard * -(-chunk // per_shard)
    codec = BloscCodec(cname="lz4", shuffle="bitshuffle")
    encoding = {
        "chunks": (per_chunk, HEIGHT, WIDTH), "shards": (per_shard, HEIGHT, WIDTH), "compressors": codec,
    }  # fmt: skip
    for start in range(0, opened.sizes["time"], block):
        part = opened[["z"]].isel(time=slice(start, start + block)).load().drop_encoding()
        if start == 0:
            part.to_zarr(folder / "plain.zarr", zarr_format=3, consolidated=False, encoding={"z": encoding})
        else:
            part.to_zarr(folder / "plain.zarr", consolidated=False, append_dim="time")


def measure(name: str, source: str, folder: Path, chunk: int, frames: int) -> None:
    """Print the rates of both ways."""
    seconds: dict[str, list[float]] = {"xarray": [], "convert": []}
    for _ in range(REPEATS):
        for way in seconds:
            started = time.perf_counter()
            if way == "xarray":
                by_xarray(source, folder, chunk)
            else:
                converted(source, folder, frames // 24)
            seconds[way].append(time.perf_counter() - started)
    megabytes = frames * HEIGHT * WIDTH * 4 / 1e6
    ours, plain = (statistics.median(seconds[way]) for way in ("convert", "xarray"))
    print(
        f"{name}: converted at {megabytes / ours:.0f} MB/s, by xarray alone {megabytes / plain:.0f} MB/s: "
        f"{plain / ours:.2f} of its rate (promised: 0.6)",
        flush=True,
    )


def main() -> None:
    """Write the sources, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300)
    options = parser.parse_args()
    frames = 24 * max(5, round(options.megabytes * 1e6 / (HEIGHT * WIDTH * 4 * 24)))
    field = dataset(frames)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for chunk in (1, 27, 108):
            path = folder / f"by_{chunk}.nc"
            how = {"zlib": True, "complevel": 1, "shuffle": True, "chunksizes": (chunk, HEIGHT, WIDTH)}
            field.to_netcdf(path, encoding={"z": how})
            measure(f"NetCDF in chunks of {chunk} frames", str(path), folder, chunk, frames)
            path.unlink()
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        server = context.Process(target=serve, args=(there,), daemon=True)
        server.start()
        os.environ.update(here.recv())
        field.to_zarr(
            folder / "z.zarr", zarr_format=2, consolidated=True, encoding={"z": {"chunks": (24, HEIGHT, WIDTH)}}
        )
        from mcrnn.storage.s3 import filesystem

        filesystem().put(str(folder / "z.zarr"), "lab/z.zarr", recursive=True)
        measure("Zarr on S3 in chunks of 24 frames", "s3://lab/z.zarr", folder, 24, frames)
        here.send("end")
        server.join(10)


if __name__ == "__main__":
    main()
