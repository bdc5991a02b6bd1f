"""What the driver of a search does at its end: it waits for nothing, and writes only what is still its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcrnn.config.loading import load_search
from mcrnn.errors import LoggedError
from mcrnn.search import driver
from mcrnn.search.search_run import SearchRun, open_search
from mcrnn.storage import retry
from mcrnn.storage.presence import Presence
from mcrnn.storage.root import Storage
from tests.integration.test_search_faults import write


class NoMlflow:
    """Takes the place of a `RunSync`, and notes the statuses of runs."""

    def __init__(self, *_: Any) -> None:
        self.parent: Any = None
        self.statuses: dict[str, str | None] = {}

    def update(self, folder: Any, status: str | None = None) -> None:
        self.statuses[folder.url] = status

    update_now = update

    def wait(self) -> None:
        """Do nothing."""

    close = wait


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> NoMlflow:
    sync = NoMlflow()
    monkeypatch.setattr(driver, "RunSync", lambda tracker: sync)
    monkeypatch.setattr(driver.Tracker, "open", lambda *_: None)
    return sync


@pytest.fixture
def search_run(root: Path, mlflow: NoMlflow) -> Iterator[SearchRun]:
    with open_search(load_search(str(root / write(root, "s"))), Storage.open(str(root)), new=False) as opened:
        yield opened


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_end_of_a_search_does_not_wait_for_storage_that_is_away(
    search_run: SearchRun, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    patience: dict[str, float] = {}

    def run_trials(*_: Any) -> None:
        patience["trials"] = retry._patience
        raise error

    monkeypatch.setattr(driver, "_run_trials", run_trials)
    monkeypatch.setattr(driver.DriverLog, "_write", lambda log: patience.update(log=retry._patience))
    monkeypatch.setattr(Presence, "end", lambda *_: patience.update(presence=retry._patience))
    with pytest.raises((KeyboardInterrupt, LoggedError)):
        driver.run(search_run)
    assert patience == {"trials": retry.PATIENCE_UNDER_WAY, "log": 0, "presence": 0}
