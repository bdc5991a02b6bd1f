"""The page of a search: read from folder and study, and written by the search itself without ever ending it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mcrnn.search import page_writer
from mcrnn.search.importance import importance, importance_of
from mcrnn.search.page_content import PageReader
from mcrnn.search.page_writer import PageWriter
from mcrnn.search.study_reader import JournalReader
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import PAGE_FILE, SearchFolder
from mcrnn.training.session import OBJECTIVE
from tests.commands.test_status_and_stop import fill
from tests.support.studies import epochs_of, play, search, study_in


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    """A search of which one trial runs, one has been trained to its end, and others are paused."""
    return fill(Storage.open(str(tmp_path)), "first")[0]


def test_page_says_where_each_trial_is_and_its_place_when_it_was_left(folder: SearchFolder, tmp_path: Path) -> None:
    for number, errors in enumerate(([0.5], [0.6], [0.4, 0.35], [0.45, 0.3, 0.2, 0.1])):
        folder.trial(number).write_metrics([{OBJECTIVE: e, "best": e, "epoch": i + 1} for i, e in enumerate(errors)])
    reader = PageReader(Storage.open(str(tmp_path)), "first")
    content = reader.read()
    states = {trial.number: trial.state for trial in content.trials}
    by_study = {row.number: row.state for row in reader.watched.rows()}
    assert states == by_study
    paused = {trial.number: trial.why for trial in content.trials if trial.state == "paused"}
    assert paused
    assert all(why.startswith("waits after epoch") for why in paused.values())
    assert "number 4 of 4" in paused[1]
    assert content.trials[3].curve == [0.45, 0.3, 0.2, 0.1]
    assert {"state": content.state, "continued": content.continued} == {"state": "interrupted", "continued": False}


def test_learning_curves_for_which_there_is_no_time_come_with_a_later_page(
    folder: SearchFolder, tmp_path: Path
) -> None:
    folder.trial(0).write_metrics([{OBJECTIVE: 0.5, "best": 0.5, "epoch": 1}])
    reader = PageReader(Storage.open(str(tmp_path)), "first")
    assert reader.read(seconds=0).trials[0].curve == []
    assert reader.read().trials[0].curve == [0.5]


def test_password_of_a_database_is_used_and_not_shown(tmp_path: Path) -> None:
    storage, plan = Storage.open(str(tmp_path)), search(storage="sqlite:///elsewhere.db?password=secret")
    SearchFolder(storage.location("searches/first")).claim(json.loads(json.dumps(plan.content())))
    reader = PageReader(storage, "first", plan.search.storage)
    assert reader.watched.database == plan.search.storage
    assert "secret" not in json.dumps(reader.configuration)


def test_importance_without_the_study_is_that_of_the_study(tmp_path: Path) -> None:
    plan = search(trials=30, sampler="random")
    play(tmp_path, plan)
    reader = JournalReader(LocalFolder(tmp_path))
    reader.refresh()
    expected = importance(study_in(tmp_path, plan))
    assert len(expected) == 3
    assert importance_of(json.loads(json.dumps(plan.content())), reader.trials) == pytest.approx(expected)


def test_search_writes_its_page_while_it_runs_and_when_it_ends(
    folder: SearchFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_writer, "SECONDS_BETWEEN_PAGES", 0.05)
    with PageWriter(Storage.open(str(tmp_path)), "first", lambda: True):
        deadline = time.monotonic() + 60
        while PAGE_FILE not in folder.location.sizes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert b"search first" in folder.location.read(PAGE_FILE)
        folder.location.delete(PAGE_FILE)
        monkeypatch.setattr(page_writer, "SECONDS_BETWEEN_PAGES", 1e9)
    assert b"search first" in folder.location.read(PAGE_FILE)


def test_database_that_is_away_while_the_search_runs_is_no_warning_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, away = tmp_path / "study.db", tmp_path / "away.db"
    storage, plan = Storage.open(str(tmp_path)), search(trials=2, storage=f"sqlite:///{database}")
    folder = SearchFolder(storage.location("searches/first"))
    folder.claim(json.loads(json.dumps(plan.content())))
    epochs_of(folder.location.path, plan, [0.5, 0.4], restart=False)
    writer = PageWriter(storage, "first", lambda: True, plan.search.storage)
    database.rename(away)
    database.mkdir()
    writer._write(at_end=False)
    assert capsys.readouterr().err == ""
    assert PAGE_FILE not in folder.location.sizes()
    database.rmdir()
    away.rename(database)
    writer._write(at_end=False)
    assert b"search first" in folder.location.read(PAGE_FILE)
    database.rename(away)
    database.mkdir()
    writer._write(at_end=True)
    assert "could not be written: search.storage: the database cannot be read" in capsys.readouterr().err


def test_page_that_cannot_be_written_is_one_warning_and_one_of_another_process_is_left_alone(
    folder: SearchFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page_writer, "render", lambda content: 1 / 0)
    writer = PageWriter(Storage.open(str(tmp_path)), "first", lambda: True)
    with writer:
        writer._write(at_end=False)
    assert capsys.readouterr().err.splitlines() == [
        "warning: the page of the search could not be written: division by zero; python -m mcrnn.report first writes it"
    ]
    monkeypatch.undo()
    with PageWriter(Storage.open(str(tmp_path)), "first", lambda: False):
        pass
    assert PAGE_FILE not in folder.location.sizes()
