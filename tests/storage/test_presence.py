"""The presence of a process in its folder: who it is, whether it lives, and requests to stop, on disk and on S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mcrnn.errors import UserError
from mcrnn.storage import presence as module
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.presence import PROCESS_FILE, STOP_FILE, Presence, StopRequest, request_stop, see, whoami
from tests.support.processes import wait_for


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_POLLS", 0.05)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SIGNS", 0.1)


def seen(place: Location) -> module.SeenPresence:
    found = see(place)
    assert found is not None
    return found


def test_process_is_seen_with_its_progress_until_it_says_how_it_ended(place: Location) -> None:
    assert see(place) is None
    with Presence(place, {"source": "file"}, lambda _: None) as presence:
        assert seen(place).state == "running"
        assert f"({os.getpid()}" in seen(place).place
        presence.progress = {"done": 3}
        wait_for(lambda: seen(place).progress == {"done": 3})
        assert seen(place).content["source"] == "file"
    assert seen(place).state == "finished"
    for error, state in ((KeyboardInterrupt(), "interrupted"), (ValueError("broken\nat once"), "failed")):
        with pytest.raises(type(error)), Presence(place, {}, lambda _: None):
            raise error
        assert seen(place).state == state
    assert seen(place).content["ended"]["message"] == "broken"


def test_requests_are_heard_once_by_the_process_that_they_are_for(place: Location) -> None:
    heard: list[StopRequest] = []
    with Presence(place, {}, heard.append):
        now = seen(place)
        request_stop(place, now, 7)
        request_stop(place, now, 8)
        wait_for(lambda: len(heard) == 2)
        assert seen(place).state == "running"
        request_stop(place, now)
        assert seen(place).state == "stopping"
        wait_for(lambda: len(heard) == 3)
        time.sleep(0.2)
    assert heard == [StopRequest(whoami(), 7), StopRequest(whoami(), 8), StopRequest(whoami())]
    with pytest.raises(FileNotFoundError):
        place.read(STOP_FILE)


def test_stale_request_does_not_reach_the_next_process(place: Location) -> None:
    heard: list[StopRequest] = []
    with Presence(place, {}, lambda _: None):
        before = seen(place)
    request_stop(place, before)  # it comes when the process has just ended
    with Presence(place, {}, heard.append):
        assert seen(place).state == "running"
        request_stop(place, before)  # or even when the next one has begun
        time.sleep(0.3)
        assert seen(place).state == "running"
    assert heard == []


def test_silent_process_is_lost(tmp_path: Path) -> None:
    place = LocalFolder(tmp_path)
    with Presence(place, {}, lambda _: None):
        content = place.read(PROCESS_FILE)
    place.write(PROCESS_FILE, content)
    assert seen(place).state == "running"
    os.utime(tmp_path / PROCESS_FILE, (time.time() - 100, time.time() - 100))
    assert seen(place).state == "lost"


def test_process_of_a_machine_of_the_same_name_is_lost_by_its_silence_only(tmp_path: Path) -> None:
    place = LocalFolder(tmp_path)
    with Presence(place, {}, lambda _: None):
        content = place.read(PROCESS_FILE)
    elsewhere = {"identity": "0" * 32, "boot": "another"}
    place.write(PROCESS_FILE, json.dumps(json.loads(content) | elsewhere).encode())
    assert seen(place).state == "running"
    os.utime(tmp_path / PROCESS_FILE, (time.time() - 100, time.time() - 100))
    assert (seen(place).state, seen(place).is_gone) == ("lost", False)


def test_killed_process_is_lost_at_once_on_its_machine(tmp_path: Path) -> None:
    program = "from mcrnn.storage.process import process_identity; print(process_identity())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    content = {"id": "a", "host": "any", "pid": 1, "identity": ended.stdout.strip()}
    place = LocalFolder(tmp_path)
    place.write(PROCESS_FILE, json.dumps(content).encode())
    assert (seen(place).state, seen(place).is_gone) == ("lost", True)


def test_process_that_has_lost_the_folder_writes_nothing_more(tmp_path: Path) -> None:
    place, is_owner = LocalFolder(tmp_path), threading.Event()
    is_owner.set()
    with Presence(place, {}, lambda _: None, is_owner.is_set):
        is_owner.clear()
        time.sleep(0.2)
        place.write(PROCESS_FILE, b"of another")
        time.sleep(0.3)
    assert place.read(PROCESS_FILE) == b"of another"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b'{"process": 3}'])
def test_damaged_files_are_no_process_and_no_request(tmp_path: Path, content: bytes) -> None:
    place = LocalFolder(tmp_path)
    place.write(PROCESS_FILE, content)
    assert see(place) is None
    heard: list[StopRequest] = []
    with Presence(place, {}, heard.append):
        place.write(STOP_FILE, content)
        time.sleep(0.2)
        assert seen(place).state == "running"
    assert heard == []


@dataclass(frozen=True)
class Unreliable(LocalFolder):
    """A folder of which some objects cannot be read or written for a while."""

    failing: dict[str, Exception] = field(default_factory=dict)
    asked: list[tuple[str, bool]] = field(default_factory=list)
    """Which objects were to be read or written, and whether that was refused."""

    def fail(self, error: Exception | None, *keys: str) -> None:
        """From now on operations on these objects raise an error; None for no more errors."""
        self.failing.clear()
        if error is not None:
            self.failing.update(dict.fromkeys(keys, error))

    def _check(self, key: str) -> None:
        error = self.failing.get(key)
        self.asked.append((key, error is not None))
        if error is not None:
            raise error

    def read(self, key: str) -> bytes:
        self._check(key)
        return super().read(key)

    def write(self, key: str, data: bytes) -> None:
        self._check(key)
        super().write(key, data)


def test_folder_that_cannot_be_read_is_not_taken_for_one_without_a_process(tmp_path: Path) -> None:
    place = Unreliable(tmp_path)
    with Presence(place, {}, lambda _: None):
        now = seen(place)
        place.write(STOP_FILE, json.dumps({"process": now.content["id"], "requests": []}).encode())
        for key in (PROCESS_FILE, STOP_FILE):
            place.fail(UserError("the service is away"), key)
            with pytest.raises(UserError, match="the service is away"):
                see(place)
        before = (tmp_path / STOP_FILE).read_bytes()
        with pytest.raises(UserError, match="the service is away"):
            request_stop(place, now)  # which would drop the requests that it cannot read
        assert (tmp_path / STOP_FILE).read_bytes() == before
        place.fail(None)


@pytest.mark.parametrize("error", [RuntimeError("400 RequestTimeout"), UserError("the disk is full")])
def test_presence_outlives_errors_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    log: list[str] = []
    monkeypatch.setattr(module.LOGGER, "warning", lambda text, *values, **_: log.append(text % values))
    place, heard, refusals = Unreliable(tmp_path), list[StopRequest](), [error, error]

    def hear(request: StopRequest) -> None:
        if refusals:
            raise refusals.pop()
        heard.append(request)

    with Presence(place, {}, hear) as presence:
        now = seen(place)
        presence.progress = {"done": 1}
        place.fail(error, PROCESS_FILE, STOP_FILE)
        time.sleep(0.3)
        place.fail(None)
        wait_for(lambda: seen(place).progress == {"done": 1}, seconds=5)
        request_stop(place, now, 7)
        request_stop(place, now)
        wait_for(lambda: len(heard) == 2, seconds=5)
    assert set(heard) == {StopRequest(whoami(), 7), StopRequest(whoami())}
    assert log == [f"a sign of life or a request to stop has to wait: {error}"]


def test_failed_sign_of_life_is_given_at_the_next_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SIGNS", 0.5)
    place = Unreliable(tmp_path)
    with Presence(place, {}, lambda _: None) as presence:
        place.fail(UserError("the disk is full"), PROCESS_FILE)
        presence.progress = {"done": 1}
        wait_for(lambda: (PROCESS_FILE, True) in place.asked)
        place.fail(None)
        wait_for(lambda: seen(LocalFolder(tmp_path)).progress == {"done": 1})
    since = place.asked[place.asked.index((PROCESS_FILE, True)) + 1 :]
    until_given = [key for key, _ in since[: since.index((PROCESS_FILE, False)) + 1]]
    assert until_given == [STOP_FILE, PROCESS_FILE] * (len(until_given) // 2)  # a poll looks for a request first


@pytest.mark.parametrize("wrong_by", [-3600, 3600])
def test_who_looks_twice_needs_no_clock_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_by: float
) -> None:
    place, now = LocalFolder(tmp_path), time.time() + wrong_by
    monkeypatch.setattr(module, "SILENCE", 0.5)
    presence = Presence(place, {}, lambda _: None)

    def state_after_sign_of_life() -> str:
        presence.write()
        os.utime(tmp_path / PROCESS_FILE, (now, now))  # as the server of a network file system has stamped it
        return seen(place).state

    assert state_after_sign_of_life() == ("lost" if wrong_by < 0 else "running")
    assert state_after_sign_of_life() == "running"
    time.sleep(0.6)
    assert seen(place).state == "lost"
    assert state_after_sign_of_life() == "running"
