"""Waiting for a service that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mcrnn.storage.retry import Outage, ServiceUnavailableError, enable_retries, retries_enabled, with_retries


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcrnn.storage.retry.SECONDS_BETWEEN_TRIES", 0.01)
    monkeypatch.setattr("mcrnn.storage.retry._patience", 0.0)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def outage(lines: list[str]) -> Outage:
    return Outage("the service", meanwhile="asked again", afterwards="work goes on", warn=lines.append)


def failing(times: int) -> Callable[[], str]:
    """Return a request that finds the service away so many times."""
    failures = iter(range(times))

    def request() -> str:
        if next(failures, None) is not None:
            raise ServiceUnavailableError("it is away")
        return "answer"

    return request


def test_an_outage_is_waited_for_with_one_warning_each_way(outage: Outage, lines: list[str]) -> None:
    assert with_retries(failing(3), outage, patience=10) == "answer"
    assert lines == ["the service does not answer (it is away); asked again", "the service answers again; work goes on"]
    assert with_retries(failing(0), outage, patience=10) == "answer"
    assert len(lines) == 2


def test_threads_that_share_an_outage_warn_once(outage: Outage, lines: list[str]) -> None:
    away = threading.Event()
    away.set()

    def request() -> None:
        if away.is_set():
            raise ServiceUnavailableError("it is away")

    threads = [threading.Thread(target=with_retries, args=(request, outage, 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert lines == ["the service does not answer (it is away); asked again"]
    away.clear()
    for thread in threads:
        thread.join(10)
    assert lines[-1] == "the service answers again; work goes on"


def test_patience_ends_with_the_error(outage: Outage) -> None:
    started = time.monotonic()
    with pytest.raises(ServiceUnavailableError, match="it is away"):
        with_retries(failing(10**6), outage, patience=0.1)
    assert 0.1 <= time.monotonic() - started < 5
    assert outage.reason == "it is away"


def test_other_errors_pass_at_once(outage: Outage, lines: list[str]) -> None:
    def refused() -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        with_retries(refused, outage, patience=10)
    assert lines == []


def test_stop_ends_the_patience(outage: Outage) -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(ServiceUnavailableError):
        with_retries(failing(10**6), outage, patience=60, stop=stop)


def test_a_process_waits_only_while_retries_are_enabled(outage: Outage) -> None:
    with pytest.raises(ServiceUnavailableError):
        with_retries(failing(1), outage)
    with retries_enabled():
        assert with_retries(failing(1), outage) == "answer"
    with pytest.raises(ServiceUnavailableError):
        with_retries(failing(1), outage)
    enable_retries()
    assert with_retries(failing(1), outage) == "answer"
