"""Builds on Ray tasks: the same bytes as in one process, also after `kill -9` of the driver; and checks of machines."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from data_prep.shard_records import record_keys
from mcrnn.data.store import FieldStore
from mcrnn.storage.local import LocalFolder
from tests.conftest import CommandRunner
from tests.data_prep.test_builder import contents
from tests.data_prep.test_odd_inputs import DAYS, VALUES, dataset
from tests.support.processes import Start

pytestmark = pytest.mark.integration

SMALL = ("--train", "64", "--val", "8", "--test", "8", "--seed", "3", "--frames", "30")


@pytest.mark.soak
def test_killed_build_on_two_workers_ends_in_the_bytes_of_one_worker(
    command: CommandRunner, start: Start, root: Path, shared_ray: str
) -> None:
    alone = command("data_prep.navier_stokes", "alone.zarr", *SMALL, "--workers", "1")
    assert alone.returncode == 0, alone.stderr

    driver = start("data_prep.navier_stokes", "killed.zarr", *SMALL, "--workers", "2")
    killed = LocalFolder(root / "killed.zarr")
    deadline = time.monotonic() + 120
    while not record_keys(killed.sizes()):
        assert driver.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()

    seen = command("data_prep.inspect", "killed.zarr")
    assert "unfinished" in seen.stdout
    again = command("data_prep.navier_stokes", "killed.zarr", *SMALL, "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert contents(killed) == contents(LocalFolder(root / "alone.zarr"))
    FieldStore.open(killed).verify()


def test_sources_that_a_machine_does_not_see_are_named_before_anything_is_written(
    command: CommandRunner, root: Path, shared_ray: str
) -> None:
    """What is below /proc/self/cwd depends on the folder that a process is in, as below / on the machine."""
    for name in ("a", "b", "c"):
        dataset(VALUES[:24], 24 * "abc".index(name)).to_netcdf(root / f"{name}.nc")
    days = [word for name, value in DAYS.items() for word in (f"--{name}", value)]
    how = ("x.zarr", *days, "--workers", "2")
    refused = command("data_prep.convert", "/proc/self/cwd/*.nc", *how)
    assert refused.returncode == 2, refused.stderr
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert re.search(r": on [0-9.]+: no '/proc/self/cwd/a.nc' and 2 more; put sources into a folder", refused.stderr)
    assert LocalFolder(root / "x.zarr").sizes() == {}

    built = command("data_prep.convert", f"{root}/*.nc", *how)
    assert built.returncode == 0, built.stderr
    FieldStore.open(LocalFolder(root / "x.zarr")).verify()
