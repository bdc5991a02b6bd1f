"""Measure reading: batches of windows against items of a NetCDF file, and a full load from S3 against a plain copy.

    python -m benchmarks.reading [--samples 128]

The S3 server is moto on the loopback interface, in its own process (needs the dev extra).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from data_prep.navier_stokes import generate
from mcrnn.config.sections import DataConfig
from mcrnn.data.splits import open_split
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import TrainingWindows
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.s3 import S3Prefix

LENGTH, BATCH = 25, 8
"""Steps of a window and windows of a batch."""


def rate(work: Callable[[], int], repeats: int = 5) -> float:
    """Return the median rate, per second, of some work that returns how many items it has done."""
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        rates.append(work() / (time.perf_counter() - started))
    return statistics.median(rates)


def serve(connection: Connection) -> None:
    """Run an S3 server until a message arrives; sends the environment that points to it first."""
    from tests.support.s3_server import S3Server

    server = S3Server()
    server.client().create_bucket(Bucket="lab")
    connection.send(server.environment)
    connection.recv()


def windows(store: FieldStore, folder: Path) -> None:
    """Print how many windows of 16 x 16 a second are read from memory, from the store and in the paper's way."""
    # The NetCDF file holds the coarsened field, as the split in memory does, so that both read as many bytes.
    data = DataConfig(store="x", coarsen=4, sequence_length=LENGTH)
    field = store.load("train", 4)
    path = folder / "fields.nc"
    names = ("sample", "time", "dim", "height", "width")
    xr.Dataset({"u": (names, field)}).to_netcdf(path, encoding={"u": {"chunksizes": (1, *field.shape[1:])}})

    def gather(split_windows: TrainingWindows, epochs: int) -> int:
        return sum(len(batch.positions) for epoch in range(epochs) for batch in split_windows.epoch(epoch))

    in_memory = TrainingWindows(open_split(store, "train", data), data, False, BATCH, 0)
    os.environ["MCRNN_MEMORY"] = "0"
    stored = TrainingWindows(open_split(store, "train", data), data, False, BATCH, 0)
    del os.environ["MCRNN_MEMORY"]

    def item_by_item() -> int:
        # The paper's data set cuts a window out of the open file for each item, and stacks the items to a batch.
        count = 0
        with xr.open_dataset(path) as dataset:
            variable = dataset["u"]
            for first in range(0, len(field), BATCH):
                batch = []
                for sample in range(first, min(first + BATCH, len(field))):
                    start = sample % (field.shape[1] - LENGTH)
                    values = variable.isel(sample=sample, time=slice(start, start + LENGTH + 1)).values
                    batch.append(torch.from_numpy(values))
                count += len(torch.stack(batch))
        return count

    measured = [(rate(lambda: gather(in_memory, 20), 1), rate(item_by_item, 1)) for _ in range(9)]
    ours, theirs = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"windows of {LENGTH} + 1 frames of 16 x 16, batches of {BATCH}:")
    print(f"  in memory, one gather a batch    {ours:>10.0f} windows/s  {ours / theirs:.0f}x (promised: at least 25x)")
    print(f"  read from the store by batches   {rate(lambda: gather(stored, 1)):>10.0f} windows/s")
    print(f"  NetCDF item by item with xarray  {theirs:>10.0f} windows/s")


def loads(samples: int) -> None:
    """Print the rate of a full load from S3, and that of copying the same objects with s3fs."""
    from mcrnn.storage.s3 import filesystem

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    os.environ.update(here.recv())
    generate("s3://lab/ns.zarr", train=samples, val=1, test=1, workers=os.cpu_count())
    store = FieldStore.open(S3Prefix("lab/ns.zarr"))
    keys = [f"lab/ns.zarr/{key}" for key in store.manifest.objects if key.startswith("train/field/c/")]
    stored = sum(store.manifest.objects[key.removeprefix("lab/ns.zarr/")]["size"] for key in keys) / 1e6

    def copy() -> int:
        with tempfile.TemporaryDirectory() as folder:
            filesystem().get(keys, [f"{folder}/{i}" for i in range(len(keys))])
        return 1

    def load() -> int:
        store.load("train")
        return 1

    copies, fulls = [], []
    for _ in range(9):
        # Memory that a virtual machine has not been given yet costs far more when it is used first, so it is used here.
        np.ones(150_000_000, np.float32)
        copies.append(stored * rate(copy, 1))
        fulls.append(stored * rate(load, 1))
    ours, plain = statistics.median(fulls), statistics.median(copies)
    print(f"a full load of {stored:.0f} MB in {len(keys)} objects from S3, checksums of all chunks checked:")
    print(
        f"  {ours:.0f} MB/s, a plain copy by s3fs {plain:.0f} MB/s: {ours / plain:.2f} of it (promised: at least 0.5)"
    )
    here.send("end")
    server.join(10)


def main() -> None:
    """Build a store, read it in each way and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        generate("ns.zarr", train=options.samples, val=1, test=1, storage=folder)
        windows(FieldStore.open(LocalFolder(Path(folder) / "ns.zarr")), Path(folder))
    loads(3 * options.samples)


if __name__ == "__main__":
    main()
