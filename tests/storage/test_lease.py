"""Whether the process that holds a lease, or has started a run, is still there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

from mcrnn.storage.lease import is_gone

HERE = socket.gethostname()


@pytest.fixture
def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_process_that_runs_is_not_gone() -> None:
    started = psutil.Process().create_time()
    assert not is_gone({"host": HERE, "pid": os.getpid()})
    assert not is_gone({"host": HERE, "pid": os.getpid(), "started": started})


def test_a_process_that_has_ended_is_gone(ended: int) -> None:
    assert is_gone({"host": HERE, "pid": ended})
    assert is_gone({"host": HERE, "pid": ended, "started": 0.0})


def test_a_process_whose_id_another_one_has_now_is_gone() -> None:
    started = psutil.Process().create_time()
    assert is_gone({"host": HERE, "pid": os.getpid(), "started": started - 100})


def test_nothing_is_known_of_another_machine(ended: int) -> None:
    assert not is_gone({"host": f"not-{HERE}", "pid": ended})
