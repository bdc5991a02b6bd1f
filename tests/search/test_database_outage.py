"""A study in a database that goes away: what was begun is done once the database is back, and only once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage import retry
from mcrnn.storage.retry import ServiceUnavailableError, retries_enabled
from tests.search.test_study import result, run_part, search, study_in
from tests.support.postgres import PostgresServer

ERRORS = [0.5, 0.4]


class LossyConnection:
    """Loses the connection to the database in one transaction of a study.

    Args:
        study: the study, in PostgreSQL.
        transaction: number of the transaction, from 1; 0 for none.
        committed: whether it takes effect all the same.
    """

    def __init__(self, study: Any, transaction: int, committed: bool) -> None:
        self.left, self.committed = transaction, committed
        dialect = study._storage._backend.engine.dialect
        self.commit, dialect.do_commit = dialect.do_commit, self

    def __call__(self, connection: Any) -> None:
        self.left -= 1
        if self.left != 0 or self.committed:
            self.commit(connection)
        if self.left == 0:
            connection.driver_connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    @property
    def has_lost(self) -> bool:
        return self.left <= 0


@pytest.mark.long(15)
@pytest.mark.parametrize("committed", [False, True], ids=["nothing committed", "committed"])
def test_connection_lost_in_any_transaction_changes_neither_values_nor_decisions(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    monkeypatch.setattr(retry, "SECONDS_BETWEEN_TRIES", 0.0)

    def run(transaction: int) -> tuple[list[tuple[Any, ...]], bool]:
        (folder := tmp_path / str(transaction)).mkdir()
        asha = {"grace_epochs": 1, "reduction_factor": 2}
        plan = search(trials=len(ERRORS), asha=asha, storage=postgres_url, cover=None)
        study, reached = study_in(folder, plan), [0] * len(ERRORS)
        lossy = LossyConnection(study, transaction, committed)
        with retries_enabled():
            searcher = StudySearcher(study, plan)
            while isinstance(proposal := searcher.suggest("t"), dict):
                number = proposal["number"]
                reached[number] = run_part(searcher, proposal, ERRORS[number], reached[number], 4)
            searcher.conclude()
        found = [
            (t.number, t.state, t.params, t.last_step, t.value, t.user_attrs["end"])
            for t in study_in(folder, plan).get_trials()
        ]
        return found, transaction > 0 and lossy.has_lost

    expected, _ = run(0)
    assert len(expected) == len(ERRORS)
    transaction, lost = 0, True
    while lost:
        transaction += 1
        found, lost = run(transaction)
        assert found == expected, f"lost in transaction {transaction}"
    assert transaction > 15


def test_search_goes_on_when_postgresql_is_back(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retry, "SECONDS_BETWEEN_TRIES", 0.2)
    plan = search(trials=3, storage=postgres.url, cover=None, scheduler="none")
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    assert searcher.suggest("0")["number"] == 0
    postgres.stop("immediate")
    with pytest.raises(ServiceUnavailableError, match=r"search\.storage cannot be reached: "):
        searcher.suggest("1")  # this process has not enabled retries
    starts = threading.Timer(1.0, postgres.start)
    starts.start()
    began = time.monotonic()
    with retries_enabled():
        assert searcher.suggest("1")["number"] == 1
        assert time.monotonic() - began >= 1
        starts.join()
        postgres.stop("immediate")
        postgres.start()  # the connections of the pool are lost
        searcher.on_trial_complete("0", result(0.5))
        searcher.on_trial_complete("1", result(0.4))
        assert searcher.suggest("2")["number"] == 2
        searcher.on_trial_complete("2", result(0.3))
        assert searcher.suggest("3") == "FINISHED"
    trials = study_in(tmp_path, plan).get_trials()
    assert [(trial.number, trial.value) for trial in trials] == [(0, 0.5), (1, 0.4), (2, 0.3)]
    warnings = capfd.readouterr().err.splitlines()
    assert [line.split(" (")[0].split(";")[0] for line in warnings] == [
        "warning: the study's database does not answer",
        "warning: the study's database answers again",
    ] * 2
    assert not [line for line in warnings if "secret" in line]
