"""Measure what a store of many objects costs: to open it, and to go on with a build of which a few are missing.

    python -m benchmarks.large_stores [--objects 100000] [--built 10000] [--missing 100]

The store that is opened is on local disk. The build is on a local S3 server (moto; needs the dev extra), which counts
the requests of the command that goes on. Objects are tiny: their number is what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.builder import build
from data_prep.plan import Coordinate, Shard, SplitPlan, StorePlan
from mcrnn.data.store import FieldStore
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.s3 import S3Prefix


def plan(objects: int) -> StorePlan:
    """Return the plan of a store with one sample of one frame in each object."""

    def split(samples: int) -> SplitPlan:
        coordinates: dict[str, Coordinate] = {
            "sample": (("sample",), np.arange(samples), {}),
            "time": (("time",), np.arange(1.0), {}),
        }
        return SplitPlan(samples, 1, coordinates)

    return StorePlan(
        splits={"train": split(objects - 2), "val": split(1), "test": split(1)},
        channels=["a"],
        height=4,
        width=4,
        layout="samples",
        chunk=1,
        shard=1,
        attributes={"variable": "a", "units": "m", "boundary": "zeros", "time_step": "1"},
        recipe={"seed": 0},
    )


@dataclass
class Numbers:
    """A source that may stop after some shards, as if the command had been killed then."""

    shards_at_once: int = 1
    sources: tuple[()] = ()
    stop_after: int | None = None

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Return the number of each sample at all its grid points."""
        if self.stop_after == 0:
            raise KeyboardInterrupt
        if self.stop_after is not None:
            self.stop_after -= len(shards)
        return [{"field": np.full((1, 1, 1, 4, 4), shard.start % 251, np.float32)} for shard in shards]


def opening(objects: int) -> None:
    """Print how long it takes to open a store on local disk."""
    with tempfile.TemporaryDirectory() as folder:
        location = LocalFolder(Path(folder) / "s.zarr")
        build(location, plan(objects), Numbers())
        seconds, of_processor = [], []
        for _ in range(5):
            wall, processor = time.perf_counter(), time.process_time()
            FieldStore.open(location)
            seconds.append(time.perf_counter() - wall)
            of_processor.append(time.process_time() - processor)
        print(
            f"opening a store of {objects:,} objects: {statistics.median(seconds):.2f} s, of which the processor "
            f"{statistics.median(of_processor):.2f} s (median of 5)"
        )


def going_on(objects: int, missing: int) -> None:
    """Print how many requests it takes to go on with a build on object storage."""
    from tests.support.s3_server import S3Server

    server = S3Server()
    server.client().create_bucket(Bucket="lab")
    os.environ.update(server.environment)
    location = S3Prefix("lab/s.zarr")
    with contextlib.suppress(KeyboardInterrupt):
        build(location, plan(objects), Numbers(stop_after=objects - missing))
    begun, before = time.perf_counter(), server.requests
    build(location, plan(objects), Numbers())
    print(
        f"a build of {objects:,} objects that lacks {missing} goes on with {server.requests - before} requests, "
        f"in {time.perf_counter() - begun:.1f} s"
    )
    server.stop()


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--built", type=int, default=10_000)
    parser.add_argument("--missing", type=int, default=100)
    options = parser.parse_args()
    going_on(options.built, options.missing)
    opening(options.objects)


if __name__ == "__main__":
    main()
