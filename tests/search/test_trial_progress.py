"""What a sampler is shown of a study, and what a proposal reads of it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mcrnn.config.space import Search
from mcrnn.search.learning import StudyView
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.trial_progress import BEST, NEWEST, RUNNING, TrialProgress
from mcrnn.search.tune_adapter import StudySearcher
from tests.support.studies import result, search, study_in


def progress_of(plan: Search, errors: list[float], still_running: int = 0) -> tuple[TrialProgress, StudySearcher]:
    searcher = StudySearcher(optuna.create_study(), plan)
    for number, error in enumerate(errors):
        target = searcher.suggest(str(number)).get("target", 4)
        searcher.on_trial_complete(str(number), result(error, epoch=target) | {"epochs": 4})
    for number in range(still_running):
        searcher.suggest(f"running {number}")
    return searcher.progress, searcher


def test_sampler_is_shown_every_trial_as_complete_that_reached_a_rung() -> None:
    progress, searcher = progress_of(
        search(trials=40, cover=None, asha={"grace_epochs": 1, "reduction_factor": 8}), [0.5, 0.4, 0.6], 2
    )
    shown = progress.shown(hidden=4)
    assert [trial.number for trial in shown] == [0, 1, 2, 3]
    assert [trial.state for trial in shown] == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    assert sorted([0, 1, 2], key=lambda number: shown[number].value or 0) == [1, 0, 2]
    assert all(trial.state == TrialState.RUNNING for trial in searcher.study.get_trials())  # paused, not ended


def test_of_many_trials_no_more_are_shown_than_the_limits() -> None:
    errors = [1 / (1 + number) for number in range(200)]
    progress, _ = progress_of(search(trials=1000, cover=None, sampler="random", scheduler="none"), errors, 40)
    shown = progress.shown(hidden=-1)
    assert len(shown) <= BEST + NEWEST + RUNNING
    assert sum(trial.state == TrialState.RUNNING for trial in shown) == RUNNING
    assert set(range(125, 200)) <= {trial.number for trial in shown}


def test_with_several_objectives_all_trials_are_shown_but_the_one_that_is_drawn() -> None:
    plan = search(trials=12, sampler="nsga2", objectives=["error", "parameters"], cover=None)
    study = optuna.create_study(directions=["minimize", "minimize"])
    searcher = StudySearcher(study, plan)
    for number in range(3):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), result(0.5) | {"parameters": 3})
    view = StudyView(study, searcher.progress.shown(hidden=2))
    assert [trial.number for trial in view.get_trials()] == [0, 1]
    assert view.get_trials(states=(TrialState.RUNNING,)) == []


def test_proposal_reads_no_more_than_its_own_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = search(trials=100)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("all trials were read")

    monkeypatch.setattr(searcher.study._storage, "get_all_trials", fail)
    for number in range(15):
        proposal = searcher.suggest(str(number))
        assert isinstance(proposal, dict)
        searcher.on_trial_complete(str(number), result(1 / (1 + number), epoch=proposal["target"]) | {"epochs": 4})


def test_trial_that_another_process_has_added_does_not_shift_the_numbers() -> None:
    plan = search(trials=10, cover=None)
    study = optuna.create_study()
    searcher = StudySearcher(study, plan)
    assert searcher.suggest("a")["number"] == 0
    study.add_trial(optuna.trial.create_trial(value=0.5))
    assert searcher.suggest("b")["number"] == 2
    assert TrialIndex(study).running == searcher.index.running == {0, 2}


def test_seconds_of_paused_trials_are_counted() -> None:
    plan = search(trials=10, cover=None)
    searcher = StudySearcher(optuna.create_study(), plan)
    target = searcher.suggest("a")["target"]
    searcher.on_trial_complete("a", result(0.5, epoch=target) | {"epochs": 4, "time_total_s": 12.0})
    assert searcher.index.trial_seconds == 12.0
    assert searcher.index.ended == 0
    searcher.conclude()
    assert searcher.index.trial_seconds == 12.0
    assert searcher.index.ended == 1
