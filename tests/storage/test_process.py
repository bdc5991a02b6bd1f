"""Whether the process that holds a lease, or has started a run, is still there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mcrnn.storage import process as module
from mcrnn.storage.process import boot, is_gone, machine, process_identity, runs
from mcrnn.tracking.provenance import origin

HERE = socket.gethostname()
OTHER = "import sys; from mcrnn.storage.process import *; print(process_identity(), flush=True); sys.stdin.read()"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """Another process, which prints its identity."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def identity_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_process_that_runs_is_told_from_one_that_was_killed(other: subprocess.Popen[str]) -> None:
    identity = identity_of(other)
    assert runs(identity)
    assert runs(identity)  # asking changes nothing
    other.kill()
    other.wait()
    assert runs(identity) is False
    assert is_gone({"host": HERE, "identity": identity})


def test_process_runs_for_itself_and_for_others() -> None:
    identity = process_identity()
    assert runs(identity)
    ask = f"from mcrnn.storage.process import runs; print(runs({identity!r}))"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "True"


def test_forked_process_has_an_identity_of_its_own() -> None:
    reading, writing = os.pipe()
    before = process_identity()
    child = os.fork()
    if child == 0:
        os.write(writing, f"{process_identity()} {runs(before)}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    identity, parent_runs = os.read(reading, 200).decode().split()
    os.close(reading)
    os.close(writing)
    assert identity != before
    assert parent_runs == "True"
    assert runs(identity) is False


@pytest.mark.parametrize("identity", ["0" * 32, "../etc/passwd", "", None, 7])
def test_nothing_is_known_of_a_process_of_another_machine(identity: object) -> None:
    assert runs(identity) is None
    assert not is_gone({"host": HERE, "identity": identity, "boot": boot()})


def test_processes_from_before_a_restart_of_the_machine_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "machine", lambda: "this")
    before = {"host": HERE, "identity": "0" * 32, "machine": "this", "boot": "another", "started": 0.0}
    assert is_gone(before)
    assert not is_gone(before | {"boot": boot()})


@pytest.mark.parametrize(
    "different",
    [
        {"host": f"not-{HERE}"},
        {"machine": "another of the same name"},
        {"machine": None},  # a container, or an earlier version
        {"boot": None},
        {"started": time.time()},  # after this machine has started, so it is another one
    ],
)
def test_nothing_is_known_of_a_process_of_a_machine_of_the_same_name(
    monkeypatch: pytest.MonkeyPatch, different: dict[str, object]
) -> None:
    monkeypatch.setattr(module, "machine", lambda: None if different.get("machine", "this") is None else "this")
    before = {"host": HERE, "identity": "0" * 32, "machine": "this", "boot": "another", "started": 0.0}
    assert not is_gone(before | different)
    unknown = {key: value for key, value in before.items() if key not in different}
    assert "host" in different or not is_gone(unknown)


def test_machine_is_known_by_its_network_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image that it was started from has an id here, whether or not this machine has one."""
    (tmp_path / "machine-id").write_text("of the image\n")
    places = {"/sys/class/net": tmp_path / "net", "/etc/machine-id": tmp_path / "machine-id"}
    monkeypatch.setattr(module, "Path", lambda path: places.get(path, Path(path)))
    assert machine() is None  # it has no network
    for name, address in (("eth0", "02:00:00:00:00:01"), ("eth1", "02:00:00:00:00:02")):
        (tmp_path / "net" / name / "device").mkdir(parents=True)
        (tmp_path / "net" / name / "address").write_text(f"{address}\n")
    known = machine()
    assert known is not None
    assert known == machine() == origin()["process"]["machine"]
    (tmp_path / "net/lo").mkdir()  # what is there only in software does not count
    (tmp_path / "net/lo/address").write_text("00:00:00:00:00:00\n")
    assert machine() == known
    (tmp_path / "net/eth1/address").write_text("02:00:00:00:00:03\n")
    assert machine() not in (known, None)
    (tmp_path / "net/eth1/address").write_text("02:00:00:00:00:02\n")
    assert machine() == known
    (tmp_path / "machine-id").write_text("of another image\n")
    assert machine() not in (known, None)
    for name in ("eth0", "eth1"):
        (tmp_path / "net" / name / "device").rmdir()
    assert machine() is None


@pytest.fixture
def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_process_of_version_0_1_0_that_runs_is_not_gone() -> None:
    started = psutil.Process().create_time()
    assert not is_gone({"host": HERE, "pid": os.getpid()})
    assert not is_gone({"host": HERE, "pid": os.getpid(), "started": started})


def test_process_of_version_0_1_0_that_has_ended_is_gone(ended: int) -> None:
    assert is_gone({"host": HERE, "pid": ended})
    assert is_gone({"host": HERE, "pid": ended, "started": 0.0})


def test_process_of_version_0_1_0_whose_id_another_one_has_now_is_gone() -> None:
    started = psutil.Process().create_time()
    assert is_gone({"host": HERE, "pid": os.getpid(), "started": started - 100})


def test_nothing_is_known_of_another_machine_with_version_0_1_0(ended: int) -> None:
    assert not is_gone({"host": f"not-{HERE}", "pid": ended})
