"""Opening a search: one process at a time completes its study."""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path

import pytest

from mcrnn.config.loading import load_search
from mcrnn.errors import UserError
from mcrnn.search.search_run import open_search
from mcrnn.storage import lease
from mcrnn.storage.lease import Lease
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import LEASE_FILE
from tests.support.searches import write


def test_trials_of_cover_are_added_once_by_all_that_start_at_the_same_moment(root: Path) -> None:
    search = load_search(str(root / write(root, "s", search={"trials": 8})))
    together, answered = threading.Barrier(3), threading.Barrier(3)
    trials: list[int] = []
    refused: list[str] = []

    def start() -> None:
        together.wait(60)
        try:
            with open_search(search, Storage.open(str(root)), new=False) as search_run:
                answered.wait(60)
                trials.append(len(search_run.study.get_trials()))
        except UserError as error:
            refused.append(str(error))
            answered.wait(60)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trials == [3]  # one of each architecture
    assert len(refused) == 2
    assert all("another search (process" in each for each in refused)


def test_what_another_process_wrote_until_it_ended_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is read when this process has the folder to itself, however long it has waited for that."""
    search = load_search(str(root / write(root, "s")))
    storage = Storage.open(str(root))
    with open_search(search, storage, new=False) as before:
        known = len(before.study.get_trials())
        location = before.folder.location
    elsewhere = Lease(location, LEASE_FILE, "search")
    elsewhere.acquire()
    monkeypatch.setattr(lease, "runs", lambda identity: None)
    seen: list[int] = []
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)

    def wait_and_open() -> None:
        with open_search(search, storage, new=False) as search_run:
            seen.append(len(search_run.study.get_trials()))

    waiting = threading.Thread(target=wait_and_open)
    waiting.start()
    while "waiting for up to" not in said.getvalue():
        assert waiting.is_alive()
        time.sleep(0.01)
    before.study.enqueue_trial({"train.learning_rate": 1e-2})
    elsewhere.release()
    waiting.join()
    assert seen == [known + 1]


def test_search_that_is_refused_leaves_no_lease(root: Path) -> None:
    storage = Storage.open(str(root))
    with open_search(load_search(str(root / write(root, "s"))), storage, new=False) as search_run:
        location = search_run.folder.location
    changed = load_search(str(root / write(root, "s", train={"epochs": 5})))
    with pytest.raises(UserError, match="was started with another configuration"):  # noqa: SIM117
        with open_search(changed, storage, new=False):
            pass
    assert LEASE_FILE not in location.sizes()


def test_time_of_a_trial_whose_metrics_are_damaged_does_not_count(root: Path) -> None:
    """Tune's thread asks for it, where an error would end the search."""
    search = load_search(str(root / write(root, "s")))
    with open_search(search, Storage.open(str(root)), new=False) as search_run:
        for folder in (search_run.folder.trial(0), search_run.folder.retraining("trial-0-seed-1")):
            folder.location.write("metrics.jsonl", b"{\n")
        search_run.folder.retraining("trial-0-seed-2").write_metrics([{"epoch": 1, "seconds": 2.0}])
        assert search_run.trained_seconds(0) == 0
        assert search_run.confirmation_seconds() == 2
