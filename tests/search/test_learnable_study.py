from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mcrnn.search.learnable_study import BEST, NEWEST, RUNNING, LearnableStudy
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.tune_adapter import StudySearcher
from tests.search.test_study import result, search, study_in
from tests.search.test_trial_index import played


def test_few_trials_are_all_seen_but_the_hidden_one() -> None:
    study, index = played(60, 0)
    hidden = min(index.running)
    seen = LearnableStudy(study, index, hidden, limited=True)
    for states in ((TrialState.COMPLETE,), (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)):
        expected = [t for t in study.get_trials(states=states) if t.number != hidden]
        assert seen.get_trials(states=states) == seen._get_trials(deepcopy=False, states=states) == expected


def test_of_many_trials_no_more_are_seen_than_the_limits() -> None:
    study, index = played(1500, 0)
    limited = LearnableStudy(study, index, -1, limited=True).get_trials(deepcopy=False)
    assert NEWEST + RUNNING <= len(limited) <= BEST + NEWEST + RUNNING
    assert {trial.number for trial in index.learnable(BEST, 0)} <= {trial.number for trial in limited}
    hidden = min(index.running)
    others = [trial for trial in study.trials if trial.number != hidden]
    assert LearnableStudy(study, index, hidden, limited=False).get_trials() == others


def test_proposal_reads_no_more_than_its_own_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = search(trials=100)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("all trials were read")

    monkeypatch.setattr(searcher.study._storage, "get_all_trials", fail)
    for number in range(15):
        assert isinstance(searcher.suggest(str(number)), dict)
        searcher.on_trial_complete(str(number), result(1 / (1 + number)))


def test_trial_that_another_process_has_added_does_not_shift_the_numbers() -> None:
    plan = search(trials=10, cover=None)
    study = optuna.create_study()
    searcher = StudySearcher(study, plan)
    assert searcher.suggest("a")["number"] == 0
    study.add_trial(optuna.trial.create_trial(value=0.5))
    assert searcher.suggest("b")["number"] == 2
    assert TrialIndex(study).running == searcher.index.running == {0, 2}
