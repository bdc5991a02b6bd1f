"""Ctrl-C: what runs is saved, nothing else is started, and a second one ends the command at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mcrnn.storage.lease import Lease
from mcrnn.storage.local import LocalFolder
from tests.conftest import CommandRunner
from tests.integration.test_search_faults import tried, write
from tests.support.processes import Start, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


@pytest.mark.long(30)
def test_after_a_stop_no_training_of_the_confirmation_starts(
    command: CommandRunner, root: Path, start: Start, shared_ray: str
) -> None:
    confirm = {"trials": 3, "confirm": {"configurations": 3, "seeds": 2}, "scheduler": "none"}
    file = write(root, "s", search=confirm, train={"epochs": 30})
    process = start("mcrnn.tune", file)
    folder = root / "searches/s/confirmation"
    wait_for(lambda: list(folder.glob("*/metrics.jsonl")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "interrupted; the same command continues"
    (only,) = folder.iterdir()
    assert (only / "checkpoints").exists()
    assert not (only / "end.json").exists()
    again = command("mcrnn.tune", file)
    assert again.returncode == 0, again.stderr
    assert len(list(folder.iterdir())) >= 3


def test_second_signal_ends_a_search_at_once(root: Path, start: Start, shared_ray: str) -> None:
    process = start("mcrnn.tune", write(root, "s", search={"trials": 60}, train={"epochs": 2000}))
    wait_for(lambda: list((root / "searches/s/trials").glob("*/metrics.jsonl")), process)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert time.monotonic() - started < 30
    assert tried(root, "s") == 0


@pytest.mark.soak  # it sends a signal to the process of the tests itself, which must have run nothing else before
def test_tune_ends_with_the_error_that_ends_the_command(tmp_path: Path, shared_ray: str) -> None:
    from mcrnn.runners.ray_cluster import connected
    from mcrnn.search.training_list import TrainingList
    from mcrnn.search.trials import TrialRunner

    def sleep(proposal: dict[str, Any]) -> None:
        Path(proposal["proposal"]["file"]).touch()
        time.sleep(600)

    files = [tmp_path / f"{number}.started" for number in range(3)]
    lease = Lease(LocalFolder(tmp_path), "lock.json", "search")
    lease.acquire()
    trainings = TrainingList([{"file": str(file)} for file in files], lambda: False)

    def interrupt() -> None:
        wait_for(files[0].exists)
        os.kill(os.getpid(), signal.SIGINT)

    with connected():
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of the tests ignore it
        threading.Thread(target=interrupt, daemon=True).start()
        runner = TrialRunner(sleep, str(tmp_path / "tune"), lease, {"CPU": 1}, 1, 0)
        with pytest.raises(KeyboardInterrupt):
            runner.run("ray", [], search_alg=trainings)
        signal.signal(signal.SIGINT, before)
        wait_for(lambda: "Tune" not in {thread.name for thread in threading.enumerate()}, seconds=1)
    assert [file.exists() for file in files] == [True, False, False]
    lease.release()
