"""A study in a database that goes away: what was begun is done once the database is back, and only once."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage import retry
from mcrnn.storage.retry import ServiceUnavailableError, retries_enabled
from tests.support.postgres import PostgresServer
from tests.support.studies import result, run_part, search, study_in

ERRORS = [0.5, 0.4, 0.6]


class LossyConnection:
    """Loses the connection to the database in every second transaction of a study or so.

    Args:
        study: the study, in PostgreSQL.
        seed: decides which transactions these are.
        committed: whether they take effect all the same.
    """

    def __init__(self, study: Any, seed: int, *, committed: bool) -> None:
        self.rng, self.committed, self.lost = random.Random(seed), committed, 0
        dialect = study._storage._backend.engine.dialect
        self.commit, dialect.do_commit = dialect.do_commit, self

    def __call__(self, connection: Any) -> None:
        is_lost = self.rng.random() < 0.5
        if self.committed or not is_lost:
            self.commit(connection)
        if is_lost:
            self.lost += 1
            connection.driver_connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")


@pytest.mark.parametrize("committed", [False, True], ids=["nothing committed", "committed"])
def test_lost_connections_change_neither_values_nor_decisions(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    monkeypatch.setattr(retry, "SECONDS_BETWEEN_TRIES", 0.0)
    asha = {"grace_epochs": 1, "reduction_factor": 2}
    plan = search(trials=len(ERRORS), asha=asha, storage=postgres_url, cover=None)

    def run(folder: Path, seed: int | None) -> tuple[list[tuple[Any, ...]], int]:
        folder.mkdir()
        study, reached = study_in(folder, plan), [0] * len(ERRORS)
        lossy = None if seed is None else LossyConnection(study, seed, committed=committed)
        with retries_enabled():
            searcher = StudySearcher(study, plan)
            while isinstance(proposal := searcher.suggest("t"), dict):
                number = proposal["number"]
                reached[number] = run_part(searcher, proposal, ERRORS[number], reached[number], 4)
            searcher.conclude()
            trials = study.get_trials()
        study._storage._backend.engine.dispose()  # the server has room for a hundred connections
        found = [(t.number, t.state, t.params, t.last_step, t.value, t.user_attrs.get("end")) for t in trials]
        return found, 0 if lossy is None else lossy.lost

    expected, _ = run(tmp_path / "undisturbed", None)
    assert len(expected) == len(ERRORS)
    for seed in range(3):
        found, lost = run(tmp_path / str(seed), seed)
        assert found == expected, seed
        assert lost > 10


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
