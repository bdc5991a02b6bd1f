"""Trials that were stopped while they were paused, because a search had come to its end, go on with a larger budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcrnn.search.budgets import stop_reason
from mcrnn.search.study import finished_trials, state_of
from mcrnn.search.superseded_files import SupersededFiles
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import SearchFolder
from tests.support.studies import ASHA, run_part, search, study_in

ERRORS = [0.5, 0.6, 0.4, 0.7, 0.9, 0.91, 0.92, 0.93]


def run(folder: Path, **budget: Any) -> tuple[StudySearcher, list[int]]:
    """Run a search to its end; returns its searcher, and the numbers of the trials in the order of their parts."""
    plan = search(asha=ASHA, **{"trials": 8, **budget})
    searcher = StudySearcher(study_in(folder, plan), plan)
    started, reached = [], {t.number: t.last_step or 0 for t in searcher.index.trials}
    while isinstance(proposal := searcher.suggest("t"), dict):
        number = proposal["number"]
        started.append(number)
        reached[number] = run_part(searcher, proposal, ERRORS[number], reached.get(number, 0), 4)
    searcher.conclude()
    return searcher, started


@pytest.mark.parametrize("small", [{"trials": 4}, {"goal": 0.45}], ids=str)
def test_stopped_trials_go_on_if_they_are_among_the_best_of_a_larger_search(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    run(tmp_path, **small)
    before = {t.number: t.last_step or 0 for t in finished_trials(study_in(tmp_path, search()))}
    assert before
    searcher, _ = run(tmp_path)
    after = {t.number: t.last_step or 0 for t in finished_trials(searcher.study)}
    assert [after[number] >= 2 for number in range(8)] == [True] * 4 + [False] * 4  # the best half has the second rung
    assert any(after[number] > last for number, last in before.items())
    assert not searcher.index.running


def test_trials_stay_stopped_where_the_budget_is_as_before(tmp_path: Path) -> None:
    first, _ = run(tmp_path, trials=4)
    states = [state_of(t) for t in first.study.get_trials()]
    again, started = run(tmp_path, trials=4, confirm={})
    assert started == []
    assert again.index.ended == 4
    assert [state_of(t) for t in again.study.get_trials()] == states
    assert stop_reason(again.study, again.search.search) == "all trials are done"
    assert [t.number for t in again.index.ranked()] == [t.number for t in TrialIndex(first.study).ranked()]


def test_checkpoints_of_stopped_trials_are_deleted_and_those_of_paused_ones_are_not(tmp_path: Path) -> None:
    searcher, _ = run(tmp_path, trials=4)
    folder = SearchFolder(LocalFolder(tmp_path))

    def left() -> set[int]:
        for number in range(4):
            folder.trial(number).checkpoints.write("state", b"x")
        SupersededFiles(folder, searcher.study, keep=1).sweep()
        return {int(key.split("/")[0]) for key in folder.trials.sizes() if "checkpoints" in key}

    assert left() == set()
    larger = search(asha=ASHA, trials=8)
    taken_up = StudySearcher(searcher.study, larger).progress.paused
    assert left() == set(taken_up) != set()
