"""What the driver of a search does at its end: it waits for nothing, and writes only what is still its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcrnn.config.loading import load_search
from mcrnn.errors import LoggedError, UserError
from mcrnn.search import driver, finalize
from mcrnn.search.attributes import CONFIRMATION, REGISTRATION
from mcrnn.search.journal import Journal
from mcrnn.search.overview import overviews
from mcrnn.search.search_run import ActiveSearch, SearchRun, open_search
from mcrnn.stop import stop
from mcrnn.storage import presence as presence_module
from mcrnn.storage import retry
from mcrnn.storage.presence import Presence
from mcrnn.storage.retry import print_warning
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import DRIVER_LOG
from tests.support.processes import wait_for
from tests.support.searches import write


class NoMlflow:
    """Takes the place of a `RunSync`, and notes the statuses of runs."""

    def __init__(self, *_: Any) -> None:
        self.parent: Any = None
        self.tracker: Any = None
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


@pytest.mark.parametrize("error", [None, UserError("another search has taken over"), ValueError("a bug")])
def test_search_that_was_taken_over_writes_nothing_more(
    search_run: SearchRun, mlflow: NoMlflow, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    location = search_run.folder.location

    def run_trials(*_: Any) -> None:
        print_warning("something is odd")
        location.write(DRIVER_LOG, b"of the other process")
        search_run.lease.lost = True
        if error is not None:
            raise error

    monkeypatch.setattr(driver, "_run_trials", run_trials)
    monkeypatch.setattr(driver.Outbox, "put", lambda *_: None)
    monkeypatch.setattr(driver, "finalize", lambda *_: pytest.fail("it must not be registered"))
    monkeypatch.setattr(SearchRun, "best_trial", lambda *_: object())
    with pytest.raises((UserError, LoggedError), match=r"another search has taken over|a bug"):
        driver.run(search_run)
    assert location.read(DRIVER_LOG) == b"of the other process"
    assert mlflow.statuses == {search_run.folder.url: "RUNNING"}


def test_confirmation_of_a_search_that_was_taken_over_does_not_start(search_run: SearchRun) -> None:
    search_run.lease.lost = True
    missing = SimpleNamespace(confirmation=lambda index: SimpleNamespace(missing=[1]), lease=search_run.lease)
    active: Any = SimpleNamespace(search_run=missing, index=None)
    searcher: Any = SimpleNamespace(budgets=None)
    with pytest.raises(UserError, match="another search has taken over"):
        driver._confirm(active, SimpleNamespace(), searcher)  # type: ignore[arg-type]


@pytest.mark.parametrize("has_trials_left", [True, False])
def test_search_that_registers_its_model_says_that_it_finishes(
    search_run: SearchRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_trials_left: bool
) -> None:
    said: list[str] = []
    phases: list[str | None] = []

    def run_trials(active: ActiveSearch, presence: Presence, *_: Any) -> None:
        presence.progress = {"done": 8, "budget": 8, "phase": CONFIRMATION}

    def has_heard() -> bool:
        said.extend(capsys.readouterr().out.splitlines())
        return any("has asked for a stop" in line for line in said)

    def register(*_: Any) -> None:
        stop("s", storage=search_run.storage.name)
        wait_for(has_heard, seconds=20)
        (seen,) = overviews(search_run.storage)
        phases.append(seen.phase)
        assert seen.budget == 8

    monkeypatch.setattr(presence_module, "SECONDS_BETWEEN_POLLS", 0.05)
    monkeypatch.setattr(driver, "_run_trials", run_trials)
    monkeypatch.setattr(driver, "stop_reason", lambda *_: None if has_trials_left else "all trials have ended")
    monkeypatch.setattr(driver, "finalize", register)
    monkeypatch.setattr(SearchRun, "best_trial", lambda *_: object())
    driver.run(search_run)
    assert phases == [REGISTRATION]
    assert [line.endswith("registers the best model and finishes") for line in said if "stop" in line] == [True, True]


@pytest.mark.parametrize("lost", ["before", "meanwhile"])
def test_search_that_was_taken_over_registers_no_model(
    search_run: SearchRun, mlflow: NoMlflow, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    done: list[str] = []

    def evaluate(*_: Any) -> None:
        done.append("evaluated")
        search_run.lease.lost = True

    search_run.lease.lost = lost == "before"
    monkeypatch.setattr(finalize, "_record_baselines", lambda *_: None)
    monkeypatch.setattr(finalize.trained_model, "load", lambda _: None)
    monkeypatch.setattr(finalize, "_evaluate_on_test_split", evaluate)
    monkeypatch.setattr(finalize.registry, "register", lambda *_, **__: done.append("registered"))
    mlflow.tracker = SimpleNamespace(origin={})
    best: Any = SimpleNamespace(number=0, user_attrs={"result": {"best": 0.5}})
    with pytest.raises(UserError, match="another search has taken over"):
        finalize.finalize(search_run, mlflow, best)  # type: ignore[arg-type]
    assert done == ([] if lost == "before" else ["evaluated"])


def test_journal_of_a_search_that_was_taken_over_is_not_uploaded_from_the_outbox(
    search_run: SearchRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: dict[str, Any] = {}
    uploaded: list[bool] = []
    monkeypatch.setattr(Journal, "is_remote", True)
    monkeypatch.setattr(Journal, "upload", lambda _: uploaded.append(search_run.lease.lost))
    uploads: Any = SimpleNamespace(put=put.__setitem__)
    active = ActiveSearch(search_run, None, uploads, None, None)  # type: ignore[arg-type]
    active.upload_journal()
    put["journal"]()
    search_run.lease.lost = True
    put["journal"]()
    assert uploaded == [False]
