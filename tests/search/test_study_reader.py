"""A study is read without Optuna as Optuna reads it, from a journal, its snapshot, S3 and databases."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState

from mcrnn.errors import UserError
from mcrnn.search import database_reader
from mcrnn.search import journal as journal_module
from mcrnn.search.database_reader import DatabaseReader
from mcrnn.search.journal import Journal
from mcrnn.search.parameters import values_of
from mcrnn.search.study import ENDED, open_study, state_of
from mcrnn.search.study_reader import JournalReader, Operation, Phase, SeenTrial, State, StudyReader
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.retry import ServiceUnavailableError
from mcrnn.storage.s3 import S3Prefix
from tests.support.s3_server import S3Server
from tests.support.studies import ASHA, ERRORS, epochs_of, run_part, search


def same(seen: SeenTrial, trial: FrozenTrial) -> bool:
    """Whether a trial was read as Optuna reads it."""
    return (
        (seen.number, int(seen.state)) == (trial.number, int(trial.state))
        and seen.attributes == trial.user_attrs
        and seen.attributes.get("values", {}) == (values_of(trial) if trial.params else {})
        and seen.last_step == max(trial.intermediate_values, default=0)
        and (seen.phase == Phase.ENDED) == (state_of(trial) in ENDED)
    )


def assert_read(reader: StudyReader, study: optuna.Study) -> None:
    reader.refresh()
    trials = study.get_trials(deepcopy=False)
    assert len(reader.trials) == len(trials) > 0
    for seen, trial in zip(reader.trials, trials, strict=True):
        assert same(seen, trial), (seen, trial)
    assert reader.attributes == study.user_attrs


def test_numbers_are_those_of_optuna() -> None:
    assert {each.name: int(each) for each in State} == {each.name: int(each) for each in TrialState}
    assert {each.name: int(each) for each in Operation}.items() <= {
        each.name: int(each) for each in JournalOperation
    }.items()


@pytest.mark.parametrize("logs", [1, 40, 10_000])
def test_journal_is_read_anew_and_from_where_the_last_look_ended(
    place: Location, monkeypatch: pytest.MonkeyPatch, logs: int
) -> None:
    """With a snapshot at every change, with some, and with none."""
    monkeypatch.setattr(journal_module, "LOGS_BETWEEN_CHECKPOINTS", logs)
    plan, journal, kept = search(trials=len(ERRORS), asha=ASHA), Journal.open(place), JournalReader(place)
    kept.refresh()
    assert kept.trials == []
    study = open_study(journal, plan)

    def changed() -> None:
        journal.checkpoint()
        journal.upload()

    searcher = StudySearcher(study, plan, changed)
    number = 0
    while isinstance(proposal := searcher.suggest(f"t{number}"), dict):
        assert_read(kept, study)
        error = ERRORS[proposal["number"] % len(ERRORS)] / proposal["target"]
        report = {"epoch": proposal["target"], "epochs": 4, "best": error, "rmse_closed_loop_normalized": error}
        searcher.on_trial_complete(f"t{number}", report)
        assert_read(kept, study)
        number += 1
    assert Phase.PAUSED in {trial.phase for trial in kept.trials}
    searcher.conclude()
    changed()
    assert_read(kept, study)
    assert_read(JournalReader(place), study)
    assert {trial.phase for trial in kept.trials} == {Phase.ENDED}
    assert {trial.best is None for trial in kept.trials} == {False}


def test_nothing_is_written(tmp_path: Path) -> None:
    study = epochs_of(tmp_path, search(trials=2), [0.5, 0.4], restart=False)
    del study
    (tmp_path / "study.journal").chmod(0o400)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    JournalReader(LocalFolder(tmp_path)).refresh()
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()} == before


def test_line_that_is_just_being_written_is_read_at_the_next_look(tmp_path: Path) -> None:
    epochs_of(tmp_path, search(trials=2), [0.5, 0.4], restart=False)
    file = tmp_path / "study.journal"
    content = file.read_bytes()
    whole = JournalReader(LocalFolder(tmp_path))
    whole.refresh()
    file.write_bytes(content[: len(content) // 2])
    reader = JournalReader(LocalFolder(tmp_path))
    reader.refresh()
    assert reader.trials != whole.trials
    file.write_bytes(content)
    reader.refresh()
    assert reader.trials == whole.trials


@pytest.mark.parametrize("look_between", [True, False])
def test_successor_of_a_deleted_search_is_seen_from_the_beginning(tmp_path: Path, look_between: bool) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    reader = JournalReader(LocalFolder(folder))
    epochs_of(folder, search(trials=3), [0.5, 0.4, 0.3], restart=False)
    reader.refresh()
    assert len(reader.trials) == 3
    folder.rename(tmp_path / "before")
    if look_between:
        reader.refresh()
        assert reader.trials == []
    folder.mkdir()
    epochs_of(folder, search(trials=5, cover=None), [0.5] * 5, restart=False)
    reader.refresh()
    assert len(reader.trials) == 5


def uploaded(folder: Location, trials: int) -> Journal:
    """A search on object storage of which some trials run."""
    journal = Journal.open(folder)
    study = open_study(journal, search(trials=trials, cover=None))
    for _ in range(trials):
        study.ask()
    journal.checkpoint()
    journal.upload()
    return journal


@pytest.mark.parametrize(
    ("logs", "look_between", "trials"), [(1, False, 2), (10_000, True, 2), (1, True, 9), (10_000, False, 9)]
)
def test_successor_of_a_deleted_search_on_object_storage_is_seen_from_the_beginning(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, logs: int, look_between: bool, trials: int
) -> None:
    monkeypatch.setattr(journal_module, "LOGS_BETWEEN_CHECKPOINTS", logs)
    folder = S3Prefix("lab/place")
    reader = JournalReader(folder)
    first = uploaded(folder, 5)
    open_study(first, search(trials=5, cover=None)).set_user_attr("of the first", True)
    first.upload()
    reader.refresh()
    assert (len(reader.trials), reader.attributes["of the first"]) == (5, True)
    folder.clear()
    if look_between:
        reader.refresh()
        assert (reader.trials, reader.attributes) == ([], {})
    journal = uploaded(folder, trials)
    reader.refresh()
    assert len(reader.trials) == trials
    assert "of the first" not in reader.attributes
    open_study(journal, search(trials=20, cover=None)).ask()
    journal.upload()
    reader.refresh()
    assert len(reader.trials) == trials + 1


def test_journal_of_an_earlier_version_on_object_storage_is_read(s3: S3Server) -> None:
    folder = S3Prefix("lab/place")
    journal = uploaded(S3Prefix("lab/written"), 3)
    lines = journal.file.read_bytes().splitlines(keepends=True)
    reader = JournalReader(folder)
    for count in (len(lines) - 1, len(lines)):
        folder.write("study.journal", b"".join(lines[:count]))
        reader.refresh()
        whole = JournalReader(folder)
        whole.refresh()
        assert reader.trials == whole.trials
    assert len(reader.trials) == 3
    folder.delete("study.journal")
    reader.refresh()
    assert reader.trials == []


def test_only_a_damaged_snapshot_is_left_out(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reached is tried again at the next look."""
    monkeypatch.setattr(journal_module, "LOGS_BETWEEN_CHECKPOINTS", 1)
    folder = S3Prefix("lab/place")
    uploaded(folder, 3)
    read, error = S3Prefix.read, UserError("damaged")

    def fail(self: S3Prefix, key: str) -> bytes:
        if "snapshot" in self.url:
            raise error
        return read(self, key)

    monkeypatch.setattr(S3Prefix, "read", fail)
    reader = JournalReader(folder)
    reader.refresh()
    assert len(reader.trials) == 3
    error = ServiceUnavailableError("away")
    with pytest.raises(ServiceUnavailableError, match="away"):
        JournalReader(folder).refresh()


def test_database_is_read_as_optuna_reads_it(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_reader, "QUICK", math.inf)  # a busy machine reads slowly
    plan = search(trials=len(ERRORS), asha=ASHA, storage=database_url)
    epochs_of(tmp_path, plan, ERRORS, restart=False)
    study = open_study(Journal.open(LocalFolder(tmp_path)), plan)
    reader = DatabaseReader(database_url, study.study_name)
    assert_read(reader, study)
    larger = search(trials=8, asha=ASHA, storage=database_url)
    searcher = StudySearcher(open_study(Journal.open(LocalFolder(tmp_path)), larger), larger)
    while isinstance(proposal := searcher.suggest("t"), dict):
        assert_read(reader, study)
        run_part(searcher, proposal, 0.5, 0, 4)
        assert_read(reader, study)


def test_database_that_goes_away_between_two_looks_is_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    plan = search(trials=2, storage=url)
    epochs_of(tmp_path, plan, [0.5, 0.4], restart=False)
    study = open_study(Journal.open(LocalFolder(tmp_path)), plan)
    reader = DatabaseReader(url, study.study_name)
    reader.refresh()
    (tmp_path / "study.db").rename(tmp_path / "away.db")
    (tmp_path / "study.db").mkdir()
    with pytest.raises(ServiceUnavailableError, match=r"cannot be read \(OperationalError"):
        reader.refresh()
    with pytest.raises(UserError) as raised:  # at the first look it may be a mistake of the user
        DatabaseReader(url, study.study_name).refresh()
    assert not isinstance(raised.value, ServiceUnavailableError)
    (tmp_path / "study.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "study.db")
    reader.refresh()


def test_reader_leaves_no_connection_open(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = open_study(Journal.open(LocalFolder(tmp_path)), search(trials=2, storage=url))
    readers = [DatabaseReader(url, study.study_name) for _ in range(5)]
    before = len(os.listdir("/proc/self/fd"))
    for reader in readers:
        reader.refresh()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_host_that_does_not_answer_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_reader, "CONNECT_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and says nothing
        url = f"postgresql+psycopg://mcrnn:secret@127.0.0.1:{server.getsockname()[1]}/postgres"
        with pytest.raises(UserError, match="timeout"):
            DatabaseReader(url, "any").refresh()
