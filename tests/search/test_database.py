"""A study in a database: what is read and written is what Optuna's own storage does, with fewer queries."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from mcrnn.search import database
from mcrnn.search.database import Database, written_together
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.tune_adapter import StudySearcher
from tests.support.studies import ASHA, ERRORS, epochs_of, run_part, search, study_in

OTHER_PROCESS = """
import sys, optuna
study = optuna.load_study(study_name=sys.argv[1], storage=sys.argv[2])
for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
    study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
for value in (0.1, float("inf")):
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    trial.report(value, step=1)
    study.tell(trial, value)
study.ask().set_user_attr("note", {"by": "another process"})
"""
"""A program that ends running trials of a study with Optuna's own storage, and adds three."""


class Killed(BaseException):
    """What ends a process in place of a transaction."""


def searched(folder: Path, url: str, errors: list[float] = ERRORS) -> optuna.Study:
    """A study of a search some of whose trials have ended, and some of which are paused."""
    plan = search(trials=len(errors), asha=ASHA, storage=url)
    epochs_of(folder, plan, errors, restart=False)
    return study_in(folder, plan)


def content_of(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """All that there is of trials, with the order of their parameters; NaN as a text, for it does not equal itself."""
    contents = [dict(vars(trial)) for trial in trials]
    for content in contents:
        content["steps"] = {step: str(value) for step, value in content.pop("intermediate_values").items()}
        content["order"] = list(content["_params"])
    return contents


def row_by_row(url: str, name: str) -> list[dict[str, Any]]:
    """All that there is of a study as Optuna's own storage reads it."""
    storage = RDBStorage(url)
    return content_of(storage.get_all_trials(storage.get_study_id_from_name(name)))


@contextlib.contextmanager
def counted(study: optuna.Study, event: str) -> Iterator[list[Any]]:
    """Yield a list that has an entry for each event of the connections to the database inside the block."""
    engine, found = study._storage._backend.engine, list[Any]()  # type: ignore[attr-defined]
    note = lambda *arguments: found.append(arguments)  # noqa: E731
    sqlalchemy.event.listen(engine, event, note)
    yield found
    sqlalchemy.event.remove(engine, event, note)


def test_every_kind_of_trial_is_read_as_optuna_reads_it(database_url: str) -> None:
    study = optuna.create_study(storage=Database(database_url), study_name="kinds")
    other = optuna.create_study(storage=Database(database_url), study_name="other")
    for value in (0.5, math.inf, -math.inf):
        for each in (study, other):
            trial = each.ask()
            trial.suggest_float("z", 1e-5, 1.0, log=True)
            trial.suggest_int("a", 4, 16, step=4)
            trial.suggest_categorical("kind", ["one", None, 3, True])
            trial.set_user_attr("values", {"nested": [1, 2.5, "é"]})
            for step, error in enumerate((value, math.nan, math.inf, -math.inf, 0.1 + 0.2), start=1):
                trial.report(error, step=step)
            trial.set_constraint("ends well", 1.0)
            each.tell(trial, value)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.enqueue_trial({"z": 0.1})
    study.ask()
    study.enqueue_trial({"z": 0.2})
    expected = row_by_row(database_url, "kinds")
    assert {each["state"] for each in expected} == set(TrialState)
    storage = Database(database_url)
    study_id = storage.get_study_id_from_name("kinds")
    assert content_of(storage.get_all_trials(study_id)) == expected
    assert content_of([storage.get_trial(each["_trial_id"]) for each in expected]) == expected
    with pytest.raises(KeyError):
        storage.get_trial(1000)
    with pytest.raises(KeyError):
        storage.get_all_trials(1000)


def test_objectives_keep_their_order(database_url: str) -> None:
    study = optuna.create_study(storage=Database(database_url), study_name="front", directions=["minimize"] * 3)
    study.tell(study.ask(), [3.0, 1.0, 2.0])
    assert [trial.values for trial in Database(database_url).get_all_trials(study._study_id)] == [[3.0, 1.0, 2.0]]


@pytest.mark.parametrize("most_listed", [0, 1000])
def test_only_what_is_asked_for_is_returned(
    database_url: str, monkeypatch: pytest.MonkeyPatch, most_listed: int
) -> None:
    monkeypatch.setattr(database, "MOST_LISTED", most_listed)
    study = optuna.create_study(storage=database_url)
    for number in range(8):
        trial = study.ask()
        if number % 2:
            study.tell(trial, 0.5)
    ids = [trial._trial_id for trial in study.get_trials()]
    ours, optunas = Database(database_url), RDBStorage(database_url)
    for states in (None, [TrialState.RUNNING]):
        for listed in (set(), {ids[1], ids[2]}, {ids[0], ids[7]}):
            for newer in (-1, ids[4], ids[7]):
                found = ours._get_trials(study._study_id, states, listed, newer)
                assert content_of(found) == content_of(optunas._get_trials(study._study_id, states, listed, newer))


def test_search_that_is_taken_up_sees_what_another_process_has_written(tmp_path: Path, database_url: str) -> None:
    study = searched(tmp_path, database_url)
    paused = {trial.number for trial in study.get_trials(states=[TrialState.RUNNING])}
    assert paused
    assert content_of(study.get_trials()) == row_by_row(database_url, study.study_name)
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, study.study_name, database_url], check=True)
    expected = row_by_row(database_url, study.study_name)
    assert content_of(study.get_trials()) == expected  # the study that was open before
    again = study_in(tmp_path, search(trials=len(ERRORS), asha=ASHA, storage=database_url))
    assert content_of(TrialIndex(again).trials) == expected
    assert all(again.trials[number].state == TrialState.PRUNED for number in paused)


def test_taking_up_costs_as_many_queries_with_more_trials(tmp_path: Path, database_url: str) -> None:
    def queries(errors: list[float]) -> int:
        (folder := tmp_path / str(len(errors))).mkdir()
        study = searched(folder, database_url, errors)
        with counted(study, "before_cursor_execute") as found:
            again = optuna.load_study(study_name=study.study_name, storage=study._storage)
            TrialIndex(again)
        return len(found)

    assert queries(ERRORS) == queries(ERRORS * 4)


def test_a_trial_is_proposed_and_ended_in_few_transactions(tmp_path: Path, database_url: str) -> None:
    plan = search(trials=4, storage=database_url, cover=None)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    searcher.suggest("0")
    with counted(searcher.study, "commit") as commits, counted(searcher.study, "before_cursor_execute") as queries:
        assert isinstance(searcher.suggest("1"), dict)
        assert len(searcher.study.trials[1].params) == 3
        of_proposal = len(queries)
        searcher.on_trial_complete("1", {"epoch": 4, "best": 0.5})
    assert of_proposal < 25
    assert len(queries) - of_proposal < 25
    written = [statement for _, _, statement, *_ in queries if statement.startswith(("INSERT", "UPDATE"))]
    assert len(written) <= len(commits) * 3
    assert searcher.study.trials[1].state == TrialState.COMPLETE


def test_what_is_written_together_is_written_at_the_end_or_not_at_all(database_url: str) -> None:
    study = optuna.create_study(storage=Database(database_url), study_name="together")
    trial = study.ask()
    with contextlib.suppress(RuntimeError), written_together(study):
        trial.suggest_float("x", 0.0, 1.0)
        trial.set_user_attr("values", 1)
        raise RuntimeError
    assert row_by_row(database_url, "together")[0]["_params"] == {}
    trial = optuna.Trial(study, trial._trial_id)
    with written_together(study):
        drawn = trial.suggest_float("x", 0.0, 1.0)
        trial.suggest_int("n", 1, 4)
        trial.report(0.5, step=3)
        trial.set_user_attr("values", 1)
        trial.set_user_attr("values", 2)
        before = row_by_row(database_url, "together")[0]
    after = row_by_row(database_url, "together")[0]
    assert (before["_params"], before["steps"], before["_user_attrs"]) == ({}, {}, {})
    assert after["order"] == ["x", "n"]
    assert (after["_params"]["x"], after["steps"], after["_user_attrs"]) == (drawn, {3: "0.5"}, {"values": 2})
    trial.set_user_attr("later", 3)
    assert row_by_row(database_url, "together")[0]["_user_attrs"] == {"values": 2, "later": 3}


def test_what_is_written_together_is_checked_as_optuna_does(database_url: str) -> None:
    study = optuna.create_study(storage=Database(database_url))
    study.ask({"kind": CategoricalDistribution(["a", "b"])})
    again = optuna.load_study(study_name=study.study_name, storage=Database(database_url))
    trial, ended = again.ask(), again.ask()
    again.tell(ended, 0.5)
    with pytest.raises(ValueError, match="CategoricalDistribution"), written_together(again):
        trial.suggest_categorical("kind", ["a", "c"])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError), written_together(again):
        ended.suggest_float("x", 0.0, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError), written_together(again):
        ended.set_user_attr("values", 1)
    assert again.trials[ended.number].params == {}


@pytest.mark.soak
@pytest.mark.long(15)
def test_kill_between_any_two_transactions_changes_neither_values_nor_decisions(
    tmp_path: Path, postgres_url: str
) -> None:
    errors = [0.5, 0.4]

    def run(name: str, transaction: int | None) -> tuple[list[tuple[Any, ...]], bool]:
        (folder := tmp_path / name).mkdir()
        plan = search(trials=len(errors), asha=ASHA, storage=postgres_url, cover=None)
        reached, left, killed = [0] * len(errors), transaction, False

        def count(connection: sqlalchemy.Connection) -> None:
            nonlocal left
            left = None if left is None else left - 1
            if left == 0:
                connection.connection.driver_connection.close()  # as the end of a process does
                raise Killed

        while True:
            study = study_in(folder, plan)
            sqlalchemy.event.listen(study._storage._backend.engine, "commit", count)  # type: ignore[attr-defined]
            try:
                searcher = StudySearcher(study, plan)
                while isinstance(proposal := searcher.suggest("t"), dict):
                    number = proposal["number"]
                    reached[number] = run_part(searcher, proposal, errors[number], reached[number], 4)
                searcher.conclude()
            except Killed:
                killed, left = True, None
            else:
                found = [
                    (t.number, t.state, t.params, t.last_step, t.value, t.user_attrs["end"]) for t in study.get_trials()
                ]
                return found, killed

    expected, _ = run("undisturbed", None)
    transaction, killed = 0, True
    while killed:
        transaction += 1
        found, killed = run(str(transaction), transaction)
        assert found == expected, f"killed at transaction {transaction}"
    assert transaction > 15
