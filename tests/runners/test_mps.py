"""NVIDIA's multi-process service is started once, used where it runs, and ended after its last user.

The program that controls it is a stand-in: the real one needs a GPU. It keeps its daemon as a file among the pipes, and
writes down how it was called.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcrnn.runners import mps
from tests.support.mps_control import install
from tests.support.processes import wait_for

USER = """
import sys
from pathlib import Path
from mcrnn.runners import mps
mps.SECONDS_WITHOUT_USERS = 0.2
print(repr(mps.join(Path(sys.argv[1]))), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the calls of the stand-in, which is the first on PATH."""
    for name in (mps.PIPES, mps.LOGS):
        monkeypatch.delenv(name, raising=False)
    environment = install(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    return tmp_path / "calls"


class User:
    """A process that uses the service as long as it lives."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.problem = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)


def starts(calls: Path) -> list[str]:
    return [line for line in calls.read_text().splitlines() if line.startswith("-d")]


def test_service_is_started_once_and_ended_after_the_last_user_was_killed(tmp_path: Path, calls: Path) -> None:
    folder = tmp_path / "mps"
    first, second = User(folder), User(folder)
    assert (first.problem, second.problem) == ("''", "''")
    assert starts(calls) == [f"-d pipes={folder}/pipe logs={folder}/log devices="]  # all GPUs, not only Ray's part
    first.kill()
    time.sleep(1)
    assert (folder / "pipe/daemon").exists()
    second.kill()
    wait_for(lambda: not (folder / "pipe/daemon").exists(), seconds=30)
    third = User(folder)
    assert third.problem == "''"
    assert len(starts(calls)) == 2
    third.kill()
    wait_for(lambda: not (folder / "pipe/daemon").exists(), seconds=30)


def test_service_that_others_have_started_is_used_and_left_alone(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "daemon").touch()
    monkeypatch.setenv(mps.PIPES, str(theirs))
    assert mps.join(tmp_path / "mps") == ""
    assert os.environ[mps.PIPES] == str(theirs)
    assert not starts(calls)
    assert not (tmp_path / "mps").exists()


def test_without_the_program_or_a_daemon_the_reason_is_said(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPS_STAND_IN_BROKEN", "1")
    assert mps.join(tmp_path / "mps") == "nvidia-cuda-mps-control -d has failed with code 3"
    assert mps.PIPES not in os.environ
    monkeypatch.setenv("PATH", "/nowhere")
    assert mps.join(tmp_path / "mps") == "nvidia-cuda-mps-control is not installed"


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("import sys; sys.exit('CUDA error 805')", "CUDA error 805"),
        ("import time; time.sleep(60)", "it has made no context of CUDA within 1 s"),
    ],
)
def test_service_by_which_no_process_can_compute_is_ended_and_not_tried_again(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch, check: str, reason: str
) -> None:
    monkeypatch.setattr(mps, "CHECK", check)
    monkeypatch.setattr(mps, "SECONDS_TO_CHECK", 1.0 if "sleep" in check else 60.0)
    for _ in range(2):
        assert mps.join(tmp_path / "mps") == f"a process cannot use it: {reason}"
    assert len(starts(calls)) == 1
    assert not (tmp_path / "mps/pipe/daemon").exists()
    assert mps.PIPES not in os.environ
