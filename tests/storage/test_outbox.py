"""What is sent to a service that may be away."""

from __future__ import annotations

import threading
import time

import pytest

from mcrnn.errors import UserError
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.retry import RefusedError, ServiceUnavailableError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcrnn.storage.retry.SECONDS_BETWEEN_TRIES", 0.02)


class Service:
    """Takes what it is sent, unless it is away."""

    def __init__(self) -> None:
        self.away = threading.Event()
        self.got: list[str] = []

    def take(self, what: str) -> None:
        if self.away.is_set():
            raise ServiceUnavailableError("it is away")
        self.got.append(what)


def test_everything_arrives_in_order_after_the_service_was_away_with_one_warning_each_way() -> None:
    service, lines = Service(), []
    box = Outbox("the service", lines.append)
    service.away.set()
    for i in range(5):
        box.put(f"key-{i}", lambda i=i: service.take(f"{i}"))
    time.sleep(0.2)
    assert service.got == []
    service.away.clear()
    box.wait(5)
    assert service.got == ["0", "1", "2", "3", "4"]
    assert len(lines) == 2
    assert "the service does not answer (it is away)" in lines[0]
    assert "answers again" in lines[1]
    box.close()


def test_of_two_under_one_key_only_the_later_is_sent() -> None:
    service = Service()
    box = Outbox("the service", lambda line: None)
    service.away.set()
    box.put("a", lambda: service.take("old"))
    time.sleep(0.1)
    box.put("a", lambda: service.take("new"))
    service.away.clear()
    box.wait(5)
    assert service.got == ["new"]


def test_what_is_refused_is_left_out_with_one_warning_and_the_rest_is_sent() -> None:
    def refuse() -> None:
        raise RefusedError("a (too long)")

    service, lines = Service(), []
    box = Outbox("the service", lines.append)
    for i in range(2):
        box.put("a", refuse)
        box.put("b", lambda i=i: service.take(f"b{i}"))
        box.wait(5)
    assert service.got == ["b0", "b1"]
    assert lines == ["the service refuses a (too long); it is left out"]
    box.put("a", lambda: service.take("a"))
    box.wait(5)
    assert service.got == ["b0", "b1", "a"]


def test_end_waits_only_so_long_and_says_what_to_do() -> None:
    service = Service()
    service.away.set()
    box = Outbox("the service", lambda line: None)
    box.put("a", lambda: service.take("a"))
    with pytest.raises(UserError, match=r"the service does not answer \(it is away\). Nothing is lost"):
        box.wait(0.2)
    started = time.monotonic()
    box.close(0.1)
    assert time.monotonic() - started < 3


def test_bug_in_what_is_sent_is_raised_where_somebody_waits() -> None:
    def wrong() -> None:
        raise KeyError("a bug")

    box = Outbox("the service", lambda line: None)
    box.put("a", wrong)
    with pytest.raises(KeyError, match="a bug"):
        box.wait(5)
