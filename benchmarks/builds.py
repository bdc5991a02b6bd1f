"""Measure the rate of builds, and check that workers, interruptions and storage do not change a byte of a store.

    python -m benchmarks.builds [--samples 1000] [--kills 5] [--s3]

The same store is built by one process and by one for each core, in one go and by drivers that are killed (`kill -9`) at
random moments and started again, and every object is compared. `--s3` also builds it on a local S3 server (moto; needs
the dev extra).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix


def digests(location: Location) -> dict[str, str]:
    """Return the SHA-256 of every object by key."""
    return {key: hashlib.sha256(location.read(key)).hexdigest() for key in location.sizes()}


def command(store: str, samples: int, workers: int) -> list[str]:
    """Return the command that builds a store."""
    counts = ["--train", str(samples), "--val", "16", "--test", "16"]
    return [sys.executable, "-m", "data_prep.navier_stokes", store, *counts, "--workers", str(workers)]


def run_with_kills(arguments: list[str], environment: dict[str, str], moments: list[float]) -> int:
    """Start a command once for each moment and kill it then (seconds after its start), and run it to the end at last.

    Returns:
        How often the command was still running when it was to be killed.
    """
    hits = 0
    for moment in moments:
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hits += 1
    subprocess.run(arguments, env=environment, check=True, stdout=subprocess.DEVNULL)
    return hits


def main() -> None:
    """Build the stores, compare them and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--s3", action="store_true")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        started = time.perf_counter()
        whole = command(str(root / "whole.zarr"), options.samples, cores)
        subprocess.run(whole, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        total = options.samples + 32
        print(
            f"{total} samples of 64 x 64 on {cores} cores: {seconds:.1f} s with start, {total / seconds:.1f} samples/s"
        )
        expected = digests(LocalFolder(root / "whole.zarr"))

        few = min(options.samples, 96)
        small = digests_of_small(root, few, cores, environment)
        print(f"{few} samples, 1 worker and {cores}: {'identical' if small[0] == small[1] else 'DIFFERENT'}")

        generator = random.Random(0)
        moments = sorted(generator.uniform(3.0, max(4.0, 0.5 * seconds)) for _ in range(options.kills))
        broken = command(str(root / "killed.zarr"), options.samples, cores)
        hits = run_with_kills(broken, environment, moments)
        same = digests(LocalFolder(root / "killed.zarr")) == expected
        shown = ", ".join(f"{moment:.1f}" for moment in moments)
        print(f"killed {hits} times (after {shown} s), continued: {'identical' if same else 'DIFFERENT'}")

        if options.s3:
            from tests.support.s3_server import S3Server

            server = S3Server()
            server.client().create_bucket(Bucket="lab")
            os.environ.update(server.environment)
            environment.update(server.environment)
            remote = command("s3://lab/killed.zarr", options.samples, cores)
            hits = run_with_kills(remote, environment, moments[:2])
            same = digests(S3Prefix("lab/killed.zarr")) == expected
            print(f"on S3, killed {hits} times, continued: {'identical' if same else 'DIFFERENT'}")
            server.stop()


def digests_of_small(
    root: Path, samples: int, cores: int, environment: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the digests of a small store that is built by one process, and by one for each core."""
    for workers in (1, cores):
        arguments = command(str(root / f"by{workers}.zarr"), samples, workers)
        subprocess.run(arguments, env=environment, check=True, stdout=subprocess.DEVNULL)
    return digests(LocalFolder(root / "by1.zarr")), digests(LocalFolder(root / f"by{cores}.zarr"))


if __name__ == "__main__":
    main()
