"""Ctrl-C: what runs is saved, nothing else is started, and a second one ends the command at once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import CommandRunner
from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.processes import Start, wait_for
from tests.support.searches import tried, write

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


@pytest.mark.soak
def test_after_a_stop_no_training_of_the_confirmation_starts(
    command: CommandRunner, root: Path, start: Start, shared_ray: str
) -> None:
    confirm = {"trials": 2, "confirm": {"configurations": 2, "seeds": 1}, "scheduler": "none"}
    file = write(root, "s", search=confirm, train={"epochs": 30})  # longer than a trial takes to hear of the stop
    process = start("mcrnn.tune", file)
    folder = root / "searches/s/confirmation"
    wait_for(lambda: list(folder.glob("*/metrics.jsonl")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "interrupted; the same command continues"
    (only,) = folder.iterdir()
    assert not (only / "end.json").exists()
    assert (only / "checkpoints").exists()
    again = command("mcrnn.tune", file)
    assert again.returncode == 0, again.stderr
    assert len(list(folder.iterdir())) == 2


def test_second_signal_ends_a_search_at_once(root: Path, start: Start, shared_ray: str) -> None:
    process = start("mcrnn.tune", write(root, "s", search={"trials": 60, "scheduler": "none"}, train={"epochs": 2000}))
    wait_for(lambda: list((root / "searches/s/trials").glob("*/metrics.jsonl")), process)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert time.monotonic() - started < 30
    assert tried(root, "s") == 0


INTERRUPTED = """
import json, sys, threading, time
from pathlib import Path

from mcrnn.runners.ray_cluster import connected
from mcrnn.search.training_list import TrainingList
from mcrnn.search.trial_runner import TrialRunner
from mcrnn.storage.lease import Lease
from mcrnn.storage.local import LocalFolder


def sleep(proposal):
    Path(proposal["proposal"]["file"]).touch()
    time.sleep(600)


folder = Path(sys.argv[1])
trainings = TrainingList([{"file": str(folder / f"{number}.started")} for number in range(3)], lambda: False)
lease = Lease(LocalFolder(folder), "lock.json", "search")
lease.acquire()
with connected():
    try:
        TrialRunner(sleep, str(folder / "tune"), lease, {"CPU": 1}, 1, 0).run("ray", [], search_alg=trainings)
    except KeyboardInterrupt:
        deadline = time.monotonic() + 1  # the thread has said that it has ended, and may take a moment for it
        while "Tune" in (left := [each.name for each in threading.enumerate()]) and time.monotonic() < deadline:
            time.sleep(0.01)
        print(json.dumps(left))
lease.release()
"""


def test_tune_ends_with_the_error_that_ends_the_command(tmp_path: Path, shared_ray: str) -> None:
    """In a process of its own: a signal to the process of the tests would reach whatever else runs there."""
    process = ForkedProcess(shared.command_server(), ["-c", INTERRUPTED, str(tmp_path)], tmp_path, os.environ)
    try:
        wait_for((tmp_path / "0.started").exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "MainThread" in json.loads(out.splitlines()[-1])
    assert "Tune" not in json.loads(out.splitlines()[-1])
    assert [(tmp_path / f"{number}.started").exists() for number in range(3)] == [True, False, False]
