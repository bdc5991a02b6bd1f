"""Two drivers of one search that start at the same moment, on clocks an hour apart: one works, the other is refused."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from mcrnn.tracking.run_folder import LEASE_FILE, SUMMARY_FILE
from tests.conftest import PROJECT, CommandRunner
from tests.storage.test_lease import container
from tests.support.s3_server import S3Server
from tests.support.searches import write
from tests.support.shared import ray_address

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(3600)]

__all__ = ["container"]

ROUNDS = int(os.environ.get("MCRNN_TEST_ROUNDS", "50"))
COMPLETE = 10
"""Every so many starts, the driver that works is left to complete the search; at the others it is killed."""
SMALL = {"search": {"trials": 2, "scheduler": "none", "cover": None}, "train": {"epochs": 1}}


def race(root: Path, searches: Location, *prefix: str, again: bool = False) -> None:
    """Start two drivers of a search at the same moment, many times.

    Args:
        root: folder in which they run; the storage root where the environment names no other.
        searches: the folder of all searches.
        prefix: what their processes are started with.
        again: whether it is always the same search, the model of which is to be registered, and not a new one.
    """
    file = write(root, "s", **SMALL)
    environment = {"MCRNN_STORAGE": str(root)} | os.environ | {"PYTHONPATH": str(PROJECT)}
    if prefix:  # a container does not reach the Ray outside
        environment.pop("RAY_ADDRESS", None)
    racers = [
        subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.support.driver_racer", clock],
            cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )
        for clock in ("0", "3600")
    ]  # fmt: skip

    try:
        assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 2
        for number in range(ROUNDS):
            name, is_complete = f"s{0 if again else number}", number % COMPLETE == 0
            folder = searches.child(name)
            for file_of_before in (SUMMARY_FILE, LEASE_FILE):
                folder.delete(file_of_before)
            moment = time.monotonic() + 0.1
            for racer in racers:
                print(moment, file, "--set", f"name={name}", file=racer.stdin)
            first = select.select([racer.stdout for racer in racers], [], [])[0][0]
            (other,) = (racer for racer in racers if racer.stdout is not first)
            if not is_complete:
                print("end", file=other.stdin)
            assert other.stdout is not None
            refused, works = json.loads(first.readline()), json.loads(other.stdout.readline())
            said = refused["said"] + works["said"]
            assert [refused["code"], works["code"]] == [2, 0 if is_complete else -signal.SIGKILL], said
            assert "another search (process" in refused["said"].splitlines()[-1]
            assert f"search {name}: {0 if again else 2} trials to run" in works["said"], said
            assert (SUMMARY_FILE in folder.sizes()) == is_complete
            print(f"{number + 1} of {ROUNDS} starts: one works, the other is refused", flush=True)
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_one_of_two_drivers_works(root: Path, database: Path, shared_ray: str) -> None:
    race(root, LocalFolder(root / "searches"))


def test_one_of_two_drivers_on_s3_works(
    root: Path, database: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address("ray-on-s3"))  # its workers know the S3 server
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    store = LocalFolder(root / "data")
    for key in store.sizes():
        S3Prefix("lab/mcrnn/data").write(key, store.read(key))
    monkeypatch.setenv("MCRNN_STORAGE", "s3://lab/mcrnn")
    race(root, S3Prefix("lab/mcrnn/searches"))


def test_one_of_two_drivers_in_containers_with_one_host_name_works(
    root: Path, database: Path, shared_ray: str, command: CommandRunner, container: tuple[str, ...]
) -> None:
    """Of the other one, each knows only what is in the folder."""
    done = command("mcrnn.tune", write(root, "s", **SMALL), "--set", "name=s0")
    assert done.returncode == 0, done.stderr
    race(root, LocalFolder(root / "searches"), *container, again=True)
