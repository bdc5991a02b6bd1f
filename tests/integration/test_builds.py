"""Builds on Ray tasks: the same bytes as in one process, also after `kill -9` of the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcrnn.data.store import FieldStore
from mcrnn.data.store_format import BUILD_FOLDER
from mcrnn.storage.local import LocalFolder
from tests.conftest import CommandRunner
from tests.data_prep.test_builder import contents

pytestmark = pytest.mark.integration

SMALL = ("--train", "96", "--val", "16", "--test", "16", "--seed", "3", "--frames", "30")


def test_killed_build_on_two_workers_ends_in_the_bytes_of_one_worker(
    command: CommandRunner, root: Path, ray_folder: Path
) -> None:
    alone = command("data_prep.navier_stokes", "alone.zarr", *SMALL, "--workers", "1")
    assert alone.returncode == 0, alone.stderr

    arguments = [sys.executable, "-m", "data_prep.navier_stokes", "killed.zarr", *SMALL, "--workers", "2"]
    environment = os.environ | {"MCRNN_STORAGE": str(root)}
    driver = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    markers = root / "killed.zarr" / BUILD_FOLDER
    deadline = time.monotonic() + 120
    while len(list(markers.glob("train-*.json"))) < 2:
        assert driver.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()

    seen = command("data_prep.inspect", "killed.zarr")
    assert "unfinished" in seen.stdout
    again = command("data_prep.navier_stokes", "killed.zarr", *SMALL, "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert contents(LocalFolder(root / "killed.zarr")) == contents(LocalFolder(root / "alone.zarr"))
    FieldStore.open(LocalFolder(root / "killed.zarr")).verify()
