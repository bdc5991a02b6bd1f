"""Of any number of processes that want to work in a folder, one works, whatever their clocks and containers are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcrnn.errors import UserError
from mcrnn.storage import lease, local
from mcrnn.storage.lease import Lease
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location, has_conditional_writes
from mcrnn.storage.s3 import S3Prefix
from tests.conftest import PROJECT
from tests.support.s3_server import S3Server, error

KEY = "lock.json"
HOUR = 3600.0
LIFETIME = 20.0
"""Seconds without a renewal after which a lease is taken over in races; those that run renew theirs all the time."""
OLD = Path(__file__).parent.parent / "compatibility" / "written_by_0_1_0.tar.xz"


class Racer:
    """A process that competes for leases, see `tests.support.lease_racer`."""

    def __init__(self, place: Location, clock: float, lifetime: float, renewal: float, *prefix: str) -> None:
        module = ["-m", "tests.support.lease_racer", place.url, str(clock), str(lifetime), str(renewal)]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *module],
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin)

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., list[Racer]]


@pytest.fixture
def racers(place: Location) -> Iterator[Start]:
    """Start processes whose clocks are an hour apart."""
    started: list[Racer] = []

    def start(count: int, *prefix: str, lifetime: float = LIFETIME, renewal: float = 0.1) -> list[Racer]:
        started.extend(Racer(place, number * HOUR, lifetime, renewal, *prefix) for number in range(count))
        assert [racer.answer() for racer in started] == ["ready"] * count
        return started

    yield start
    for racer in started:
        racer.stop()


def is_remote(place: Location) -> bool:
    """Whether a look at a lease takes a request."""
    return isinstance(place, S3Prefix)


def race(racers: list[Racer], rounds: int, before: Callable[[str], object] = lambda key: None) -> list[list[str]]:
    """Let processes try to take the same lease at the same moment, and return their answers in each round."""
    answers = []
    for number in range(rounds):
        key = f"{number}/{KEY}"
        before(key)
        for racer in racers:
            racer.send(f"{key} {time.monotonic() + 0.01}")
        answers.append([racer.answer() for racer in racers])
        for racer in racers:
            racer.send("")
        assert [racer.answer() for racer in racers] == ["ready"] * len(racers)
    return answers


def assert_one_works(answers: list[list[str]]) -> None:
    for of_round in answers:
        assert of_round.count("works") == 1, of_round
        refused = [answer for answer in of_round if answer.startswith("refused: another search (process ")]
        assert len(refused) == len(of_round) - 1, of_round


def test_one_of_all_that_start_at_the_same_moment_works(place: Location, racers: Start) -> None:
    assert_one_works(race(racers(2), 10) if is_remote(place) else race(racers(4), 50))
    assert place.sizes() == {}


CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Runs a command with process ids of its own."""
OWN_MEMORY = ("sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh")
"""Runs a command with a folder of its own for what is in memory, as containers have it."""


@pytest.fixture
def container() -> tuple[str, ...]:
    """What runs a command as in a container with the host's network, whose name is that of the host."""
    if subprocess.run([*CONTAINER, *OWN_MEMORY, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let this user make process namespaces")
    return (*CONTAINER, *OWN_MEMORY)


def test_one_of_two_containers_with_one_host_name_works(
    place: Location, racers: Start, container: tuple[str, ...]
) -> None:
    assert_one_works(race(racers(2, *container), 5 if is_remote(place) else 50))


def test_one_of_all_takes_over_at_once_what_a_killed_process_held(place: Location, racers: Start) -> None:
    killed, *others = racers(3)
    killed.send(f"{KEY} 0")
    assert killed.answer() == "works"
    killed.stop()
    content = place.read(KEY)
    started = time.monotonic()
    assert_one_works(race(others, 5 if is_remote(place) else 50, lambda key: place.write(key, content)))
    assert time.monotonic() - started < LIFETIME  # they would have waited this long in each round


def test_one_of_all_takes_over_what_is_not_renewed(place: Location, racers: Start) -> None:
    """They know nothing of its holder, and watch it, whatever its clock was."""
    content = {"host": "elsewhere", "pid": 7, "token": "0" * 32, "time": time.time() + HOUR}
    others = racers(2, lifetime=0.5, renewal=10)
    started = time.monotonic()
    assert_one_works(race(others, 2, lambda key: place.write(key, json.dumps(content).encode())))
    assert time.monotonic() - started >= 1


@pytest.mark.soak
@pytest.mark.parametrize("contained", [False, True])
def test_one_of_all_works_each_time(
    place: Location, racers: Start, contained: bool, request: pytest.FixtureRequest
) -> None:
    prefix = request.getfixturevalue("container") if contained else ()
    assert_one_works(race(racers(4, *prefix), 250))


def test_lease_that_is_renewed_elsewhere_is_not_taken_over(
    place: Location, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "runs", lambda identity: None)
    monkeypatch.setattr(lease, "LIFETIME", 20.0)
    monkeypatch.setattr(lease, "RENEWAL", 0.2)
    with Lease(place, KEY, "search"):
        with pytest.raises(UserError, match=r"another search \(process \d+ on .*\) is writing .*: wait until it ends"):
            Lease(place, KEY, "search").acquire()
        said = capsys.readouterr().err
    assert "was writing" in said
    assert "waiting for up to 20 s to see whether it still does" in said


def test_time_during_which_the_watcher_was_suspended_does_not_count(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"host": "elsewhere", "pid": 7, "token": "0" * 32, "time": 0.0}
    place.write(KEY, json.dumps(content).encode())
    monkeypatch.setattr(lease, "LIFETIME", 1.0)
    monkeypatch.setattr(lease, "RENEWAL", 0.5)
    woken: list[float] = []

    def sleep(seconds: float) -> None:
        real_sleep(seconds if woken else 1.5)
        woken.append(time.monotonic())

    real_sleep = time.sleep
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        with Lease(place, KEY, "search"):
            assert time.monotonic() - woken[0] >= 1.0


def test_lease_that_was_taken_over_is_neither_renewed_nor_deleted(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspended, heir = Lease(place, KEY, "build"), Lease(place, KEY, "build")
    suspended.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(lease, "runs", lambda identity: False)
        heir.acquire()
    suspended.renewed = -1e9
    with pytest.raises(UserError, match="another build has taken over"):
        suspended.renew()
    suspended.release()
    heir.renewed = -1e9
    heir.renew()
    heir.release()
    assert place.sizes() == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"host": "x"}'])
def test_lease_that_was_written_in_part_is_taken_over_soon(
    place: Location, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(lease, "SETTLING", 0.1)
    place.write(KEY, content)
    with Lease(place, KEY, "build"):
        pass
    assert place.sizes() == {}


def test_lease_of_version_0_1_0_is_taken_over(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(OLD) as files:
        file = files.extractfile(f"searches/half/{KEY}")
        assert file is not None
        place.write(KEY, file.read())
    monkeypatch.setattr(lease, "LIFETIME", 0.2)
    heir = Lease(place, KEY, "search")
    heir.acquire()
    assert json.loads(place.read(KEY)).keys() >= {"host", "pid", "token", "time"}  # which that version reads
    heir.release()


def ignoring(environ: dict[str, Any]) -> None:
    """Let a request pass without its condition."""
    environ.pop("HTTP_IF_MATCH", None)
    environ.pop("HTTP_IF_NONE_MATCH", None)


def refusing(environ: dict[str, Any]) -> Any:
    """Refuse a request with a condition, as services do that do not have them."""
    if "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ:
        return error("501 Not Implemented", "NotImplemented")
    return None


@pytest.mark.parametrize("fault", [ignoring, refusing])
def test_storage_without_conditional_writes_is_named_and_lets_one_work(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Any
) -> None:
    s3.fault = fault
    place = S3Prefix("lab/place")
    monkeypatch.setattr(lease, "SETTLING", 0.2)
    assert not has_conditional_writes(place)
    first = Lease(place, KEY, "search")
    first.acquire()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 's3://lab/place' has no conditional writes")
    first.renewed = -1e9
    first.renew()
    with pytest.raises(UserError, match="another search"):
        Lease(place, KEY, "search").acquire()
    place.write(KEY, json.dumps({"token": "of another that wrote at the same moment"}).encode())
    first.renewed = -1e9
    with pytest.raises(UserError, match="has taken over"):
        first.renew()


def test_answer_that_is_lost_takes_no_lease_away(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 has written, and the client, which does not know, asks again: its condition does not hold any more."""
    served = s3.served
    lost: list[str] = []

    def lose_one(environ: dict[str, Any], start_response: Any) -> Any:
        condition = "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ
        answer = served(environ, start_response if not condition or lost else lambda *_: None)
        if not condition or lost:
            return answer
        lost.append(environ["PATH_INFO"])
        status, headers, body = error("500 Internal Server Error", "InternalError")
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    monkeypatch.setattr(lease, "has_conditional_writes", lambda location: True)
    monkeypatch.setattr(s3, "served", lose_one)
    held = Lease(S3Prefix("lab/place"), KEY, "search")
    held.acquire()
    lost.clear()
    held.renewed = -1e9
    held.renew()
    assert lost
    held.release()
    assert S3Prefix("lab/place").sizes() == {}


def test_file_system_without_links_and_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = LocalFolder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(local.os, "link", refuse(local.errno.EPERM))
        assert has_conditional_writes(place)
    monkeypatch.setattr(local.fcntl, "flock", refuse(local.errno.ENOLCK))
    assert not has_conditional_writes(place)
    assert place.sizes() == {}


def refuse(number: int) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise OSError(number, "told to")

    return call


def test_release_does_not_wait_for_a_renewal_that_waits_for_its_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SECONDS_TO_RELEASE", 0.1)
    monkeypatch.setattr(lease, "RENEWAL", 0.02)
    renewing, back = threading.Event(), threading.Event()

    def wait(held: Lease) -> None:
        renewing.set()
        back.wait(20)

    monkeypatch.setattr(Lease, "_renew", wait)
    held = Lease(LocalFolder(tmp_path), KEY, "search")
    held.acquire()
    assert renewing.wait(5)
    started = time.monotonic()
    held.release()
    assert time.monotonic() - started < 5
    back.set()


def test_lease_on_a_disk_that_is_removed_is_lost(tmp_path: Path) -> None:
    held = Lease(LocalFolder(tmp_path / "place"), KEY, "search")
    held.acquire()
    shutil.rmtree(tmp_path / "place")
    held.renewed = -1e9
    with pytest.raises(UserError):
        held.renew()
    held.release()
