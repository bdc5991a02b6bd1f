"""Two drivers of one search that start at the same moment, on clocks an hour apart: one works, the other is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from mcrnn.tracking.run_folder import SUMMARY_FILE
from tests.conftest import PROJECT, CommandRunner
from tests.storage.test_lease import container
from tests.support.s3_server import S3Server
from tests.support.searches import write

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(3600)]

__all__ = ["container"]

ROUNDS = int(os.environ.get("MCRNN_TEST_ROUNDS", "50"))
ROUNDS_OF_A_SEARCH = 10
"""Starts of one search. It is new at the first; at each later one, its model is still to be registered."""
SMALL = {"search": {"trials": 2, "scheduler": "none", "cover": None}, "train": {"epochs": 1}}


def race(root: Path, searches: Location, *prefix: str, of_a_search: int = ROUNDS_OF_A_SEARCH) -> None:
    """Start two drivers of a search at the same moment, many times.

    Args:
        root: folder in which they run; the storage root where the environment names no other.
        searches: the folder of all searches.
        prefix: what their processes are started with.
        of_a_search: starts of one search.
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

    def answers() -> list[str]:
        return [racer.stdout.readline() for racer in racers if racer.stdout is not None]

    try:
        assert answers() == ["ready\n"] * 2
        for number in range(ROUNDS):
            name = f"s{number // of_a_search}"
            folder = searches.child(name)
            is_new = SUMMARY_FILE not in folder.sizes()
            folder.delete(SUMMARY_FILE)
            moment = time.monotonic() + 0.1
            for racer in racers:
                print(moment, file, "--set", f"name={name}", file=racer.stdin)
            ends = sorted((json.loads(answer) for answer in answers()), key=lambda end: end["code"])
            assert [end["code"] for end in ends] == [0, 2], "\n".join(end["said"] for end in ends)
            assert "another search (process" in ends[1]["said"].splitlines()[-1]
            assert f"search {name}: {2 if is_new else 0} trials to run" in ends[0]["said"], ends[0]["said"]
            assert folder.read(SUMMARY_FILE)
            print(f"{number + 1} of {ROUNDS} starts: one works, the other is refused", flush=True)
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_one_of_two_drivers_works(root: Path, database: Path, shared_ray: str) -> None:
    race(root, LocalFolder(root / "searches"))


def test_one_of_two_drivers_on_s3_works(
    root: Path, database: Path, shared_ray: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    race(root, LocalFolder(root / "searches"), *container, of_a_search=ROUNDS)
