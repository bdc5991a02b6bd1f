from __future__ import annotations

import random

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from mcrnn.search.attributes import STOPPED_PAUSED, TrialEnd
from mcrnn.search.study import finished_trials, search_trials, state_of
from mcrnn.search.trial_index import TrialIndex, rank

ENDS = [TrialEnd.FINISHED, TrialEnd.STOPPED, TrialEnd.DIVERGED, TrialEnd.FAILED]


def end(study: optuna.Study, trial: optuna.Trial, how: TrialEnd, error: float, seconds: float = 60.0) -> None:
    """Write into the study that a trial ended, as a searcher does."""
    if how != TrialEnd.FAILED:
        trial.set_user_attr("result", {"best": error, "time_total_s": seconds})
    trial.set_user_attr("end", how)
    if how == TrialEnd.FAILED:
        study.tell(trial, state=TrialState.FAIL)
    elif how == TrialEnd.STOPPED:
        trial.report(error, 1)
        study.tell(trial, state=TrialState.PRUNED)
    else:
        if how == TrialEnd.DIVERGED:
            trial.set_constraint("ends well", 1.0)
        study.tell(trial, [error] * len(study.directions))


def played(events: int, seed: int) -> tuple[optuna.Study, TrialIndex]:
    """A study after random events, and the index that was told of each.

    Some trials are stopped while they are paused, and some of these are taken up again.
    """
    draw, study = random.Random(seed), optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=1e-9, user_attrs={"from": "earlier"}))
    for _ in range(3):
        study.enqueue_trial({})
    index = TrialIndex(study)
    running: list[optuna.Trial] = []
    stopped: list[optuna.Trial] = []
    for _ in range(events):
        if stopped and draw.random() < 0.1:
            trial = stopped.pop(draw.randrange(len(stopped)))
            trial.set_user_attr(STOPPED_PAUSED, None)
            running.append(trial)
        elif not running or draw.random() < 0.5:
            trial = study.ask()
            running.append(trial)
        else:
            trial = running[draw.randrange(len(running))]
            chosen = draw.random()
            if chosen < 0.2:
                running.remove(trial)
                stopped.append(trial)
                trial.set_user_attr("result", {"best": draw.random(), "time_total_s": draw.random()})
                trial.set_user_attr("end", TrialEnd.STOPPED)
                trial.set_user_attr(STOPPED_PAUSED, True)
            elif chosen < 0.4:
                trial.set_user_attr("paused", draw.choice([None, 3, 9]))
            else:
                running.remove(trial)
                end(study, trial, draw.choice(ENDS), draw.random(), seconds=draw.random())
        index.refresh(trial.number)
    return study, index


def numbers(trials: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


@pytest.mark.parametrize("seed", range(5))
def test_index_that_is_told_of_each_change_knows_what_the_study_says(seed: int) -> None:
    study, index = played(200, seed)
    ended, all_trials = finished_trials(study), search_trials(study)
    assert index.ended == len(ended)
    assert len(index) == len(all_trials)
    assert index.failures == sum(trial.user_attrs["end"] == TrialEnd.FAILED for trial in ended)
    assert index.trial_seconds == pytest.approx(
        sum(trial.user_attrs.get("result", {}).get("time_total_s", 0.0) for trial in all_trials)
    )
    assert index.best_value == min(trial.value for trial in ended if trial.value is not None)
    assert index.running == set(numbers([t for t in all_trials if state_of(t) == TrialState.RUNNING]))
    assert index.having("paused") == {
        t.number: t.user_attrs["paused"]
        for t in all_trials
        if state_of(t) == TrialState.RUNNING and "paused" in t.user_attrs
    }
    good = [t for t in ended if t.user_attrs["end"] in (TrialEnd.FINISHED, TrialEnd.STOPPED)]
    assert index.ranked() == sorted(good, key=rank)
    assert index.ranked(4) == sorted(good, key=rank)[:4]
    assert index.trials == study.trials


@pytest.mark.parametrize("seed", range(5))
def test_index_of_a_resumed_search_is_that_of_the_one_before(seed: int) -> None:
    study, index = played(200, seed)
    resumed = TrialIndex(study)
    assert index.ranked() == resumed.ranked()
    assert (index.ended, index.running, index.next_number) == (resumed.ended, resumed.running, resumed.next_number)
    assert index.having("paused") == resumed.having("paused")
    assert index.trial_seconds == pytest.approx(resumed.trial_seconds)


def test_waiting_trials_are_named_until_they_are_started() -> None:
    study = optuna.create_study()
    for _ in range(2):
        study.enqueue_trial({})
    index = TrialIndex(study)
    assert (index.first_waiting, index.next_number) == (0, 2)
    index.refresh(study.ask().number)
    assert index.first_waiting == 1
    study.enqueue_trial({})  # beside the search, as from optuna-dashboard
    index.refresh(study.ask().number)
    asked = study.ask().number
    index.refresh(asked)
    assert (asked, index.first_waiting, index.next_number) == (2, None, 3)


def test_trials_that_came_beside_the_search_are_read_with_the_next_one() -> None:
    study = optuna.create_study()
    index = TrialIndex(study)
    other = study.ask()
    end(study, other, TrialEnd.FINISHED, 0.5)
    index.refresh(study.ask().number)
    assert (len(index), index.ended, index.trial(other.number).state) == (2, 1, TrialState.COMPLETE)


def test_front_is_that_of_the_study() -> None:
    draw, study = random.Random(0), optuna.create_study(directions=["minimize", "maximize"])
    index = TrialIndex(study)
    for number in range(60):
        trial = study.ask()
        if number % 7 == 0:
            trial.set_constraint("ends well", 1.0)
        trial.set_user_attr("end", TrialEnd.FINISHED)
        trial.set_user_attr("result", {"best": 0.0})
        study.tell(trial, [round(draw.random(), 1), round(draw.random(), 1)])
        index.refresh(trial.number)
        assert sorted(numbers(index.front)) == sorted(numbers(study.best_trials))
    assert sorted(numbers(TrialIndex(study).front)) == sorted(numbers(study.best_trials))


def test_refresh_reads_one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    study, index = played(50, 0)
    trial = study.ask()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("all trials were read")

    monkeypatch.setattr(study._storage, "get_all_trials", fail)
    index.refresh(trial.number)
    end(study, trial, TrialEnd.FINISHED, 0.5)
    index.refresh(trial.number)


def test_best_value_is_that_of_a_trial_that_has_ended() -> None:
    """A paused trial cannot win yet, so a search may not end because its error has reached the goal."""
    study = optuna.create_study()
    index, trial = TrialIndex(study), study.ask()
    trial.report(0.1, 3)
    index.refresh(0)
    assert index.best_value == float("inf")
    end(study, trial, TrialEnd.FINISHED, 0.1)
    index.refresh(0)
    assert index.best_value == 0.1
