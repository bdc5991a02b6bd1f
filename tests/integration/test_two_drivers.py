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
from mcrnn.storage.s3 import S3Prefix
from tests.conftest import PROJECT
from tests.storage.test_lease import container
from tests.support.s3_server import S3Server
from tests.support.searches import write

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(3600)]

__all__ = ["container"]

ROUNDS = int(os.environ.get("MCRNN_TEST_ROUNDS", "50"))
SMALL = {"search": {"trials": 2, "scheduler": "none", "cover": None}, "train": {"epochs": 1}}


def race(root: Path, *prefix: str) -> None:
    """Start two drivers of a new search at the same moment, many times.

    Args:
        root: folder in which they run; the storage root where the environment names no other.
        prefix: what their processes are started with.
    """
    file = write(root, "s", **SMALL)
    environment = {"MCRNN_STORAGE": str(root)} | os.environ | {"PYTHONPATH": str(PROJECT)}
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
            moment = time.monotonic() + 0.1
            for racer in racers:
                print(moment, file, "--set", f"name=s{number}", file=racer.stdin)
            ends = sorted((json.loads(answer) for answer in answers()), key=lambda end: end["code"])
            assert [end["code"] for end in ends] == [0, 2], ends
            assert "another search (process" in ends[1]["said"].splitlines()[-1]
            assert "[2/2]" in ends[0]["said"], ends
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_one_of_two_drivers_works(root: Path, database: Path, shared_ray: str) -> None:
    race(root)


def test_one_of_two_drivers_on_s3_works(
    root: Path, database: Path, shared_ray: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalFolder(root / "data")
    for key in store.sizes():
        S3Prefix("lab/mcrnn/data").write(key, store.read(key))
    monkeypatch.setenv("MCRNN_STORAGE", "s3://lab/mcrnn")
    race(root)


def test_one_of_two_drivers_in_containers_with_one_host_name_works(
    root: Path, database: Path, ray_folder: Path, container: tuple[str, ...]
) -> None:
    """Each has a Ray of its own, and of the other it knows only what is in the folder."""
    race(root, *container)
