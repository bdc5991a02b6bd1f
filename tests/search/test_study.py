from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from mcrnn.config.loading import load_search
from mcrnn.search.budgets import stop_reason
from mcrnn.search.study import finished_trials
from mcrnn.search.trial_report import TrialReport
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.training.session import PENALTY
from tests.support.studies import ARCHITECTURES, ASHA, conditional, epochs_of, play, result, search, study_in


def test_every_choice_of_the_covered_entry_comes_first(tmp_path: Path) -> None:
    values = play(tmp_path, search())
    assert [v["model.architecture"] for v in values[:3]] == ARCHITECTURES
    assert len(values) == 6
    assert len({v["train.learning_rate"] for v in values}) == 6


def test_given_configurations_come_first_and_then_the_choices_that_they_lack(tmp_path: Path) -> None:
    first = [{"model.architecture": "minconvgru", "model.hidden_size": 12}, {"train.learning_rate": 2e-3}]
    plan = search(trials=8, first=first)
    values = play(tmp_path, plan, stop_after=1) + play(tmp_path, plan)
    assert len(values) == 8
    assert {**values[0], **first[0]} == values[0]
    assert values[1]["train.learning_rate"] == 2e-3
    assert [v["model.architecture"] for v in values[2:4]] == ["convgru", "convlstm"]
    assert values[0]["train.learning_rate"] != 2e-3  # was drawn
    assert [t.user_attrs["values"] for t in finished_trials(study_in(tmp_path, plan))] == values


def test_given_share_of_a_range_is_the_value(tmp_path: Path) -> None:
    plan = load_search("search_spaces/ns.yaml", ["data.store=s"])
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    for number, expected in enumerate(plan.search.first):
        proposal = searcher.suggest(str(number))
        assert isinstance(proposal, dict)
        assert proposal["values"] == expected


def test_values_are_within_the_space(tmp_path: Path) -> None:
    for values in play(tmp_path, search(trials=20, sampler="random")):
        assert values["model.hidden_size"] in (4, 8, 12, 16)
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_interrupted_search_proposes_what_an_uninterrupted_one_does(tmp_path: Path, sampler: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plan = search(trials=8, sampler=sampler, seed=3)
    whole = play(tmp_path / "a", plan)
    assert play(tmp_path / "b", plan, stop_after=5) + play(tmp_path / "b", plan) == whole


def test_another_seed_proposes_something_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert play(tmp_path / "a", search(seed=0)) != play(tmp_path / "b", search(seed=1))


def test_trial_left_running_by_a_killed_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plan = search()
    whole = play(tmp_path / "a", plan)
    play(tmp_path / "b", plan, stop_after=2)
    searcher = StudySearcher(study_in(tmp_path / "b", plan), plan)
    lost = searcher.suggest("a")
    del searcher

    assert finished_trials(study_in(tmp_path / "b", plan))[-1].number == 1
    rest = play(tmp_path / "b", plan)
    assert rest[0] == lost["values"]
    assert whole[2:] == rest
    study = study_in(tmp_path / "b", plan)
    assert [t.number for t in finished_trials(study)] == list(range(plan.search.trials))
    assert not study.get_trials(states=[TrialState.RUNNING])


def test_trial_killed_before_its_values_were_drawn_draws_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plan = search(cover=None)
    whole = play(tmp_path / "a", plan)
    play(tmp_path / "b", plan, stop_after=3)
    study_in(tmp_path / "b", plan).ask()  # and then the driver was killed
    assert play(tmp_path / "b", plan) == whole[3:]


def test_raised_budget_runs_the_difference(tmp_path: Path) -> None:
    assert len(play(tmp_path, search(trials=4))) == 4
    assert len(play(tmp_path, search(trials=7))) == 3
    assert play(tmp_path, search(trials=7)) == []


def test_how_a_trial_ended_is_recorded(tmp_path: Path) -> None:
    plan = search(trials=8)
    study = study_in(tmp_path, plan)
    searcher = StudySearcher(study, plan)
    for trial_id in "abcdefg":
        searcher.suggest(trial_id)
    searcher.pruned.add("b")
    searcher.on_trial_complete("a", result(0.5))
    searcher.on_trial_complete("b", result(0.9, epoch=2))
    searcher.on_trial_complete("c", result(PENALTY, epoch=1, diverged=1.0))
    searcher.on_trial_complete("d", None, error=True)
    searcher.on_trial_complete("e", TrialReport.out_of_memory().as_result())
    searcher.on_trial_complete("f", TrialReport.interrupted().as_result())
    searcher.on_trial_complete("g", TrialReport.of_mistake("train.x is wrong").as_result())
    trials = study.get_trials()
    complete, running = TrialState.COMPLETE, TrialState.RUNNING
    states = [complete, TrialState.PRUNED, complete, TrialState.FAIL, complete, running, running]
    assert [t.state for t in trials[:7]] == states
    assert [t.user_attrs.get("end") for t in trials[:5]] == [
        "finished", "stopped", "diverged", "failed", "out of memory"
    ]  # fmt: skip
    assert trials[2].value == trials[4].value == PENALTY
    assert searcher.mistake == "train.x is wrong"
    assert searcher.suggest("h") == "FINISHED"


@pytest.mark.parametrize("scheduler", ["asha", "median", "none"])
def test_early_stopping_goes_on_where_it_was(tmp_path: Path, scheduler: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    errors = [0.5, 0.6, 0.4, 0.7, 0.3, 0.8]
    plan = search(scheduler=scheduler, asha=ASHA, median={"grace_epochs": 2, "grace_trials": 2})
    whole = epochs_of(tmp_path / "a", plan, errors, restart=False)
    assert epochs_of(tmp_path / "b", plan, errors, restart=True) == whole
    expected = {"asha": [2, 1, 4, 1, 2, 1], "median": [4, 4, 4, 2, 4, 2], "none": [4] * 6}
    assert whole == expected[scheduler]


def test_grid_has_every_combination_whose_conditions_hold_once(tmp_path: Path) -> None:
    plan = conditional()
    study = study_in(tmp_path, plan)
    searcher = StudySearcher(study, plan)
    seen = []
    while isinstance(proposal := searcher.suggest(str(len(seen))), dict):
        searcher.on_trial_complete(str(len(seen)), result(0.5))
        seen.append(tuple(proposal["values"].values()))
    assert sorted(seen) == sorted(
        [(a, size, steps) for a, size in (("convgru", 4), ("convgru", 8), ("convlstm", 5)) for steps in (2, 3)]
    )
    assert stop_reason(study, plan.search) == "all trials are done"


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ({"trials": 2}, "all trials are done"),
        ({"goal": 0.35}, "the goal of 0.35 is reached"),
        ({"trial_hours": 0.05}, "its 0.05 trial hours leave no time for another trial"),
        ({"hours": 1e-9}, "its 1e-09 hours are spent"),
        ({"failures": 1}, "1 trials failed; the last was trial 1: its processes were lost too often"),
    ],
    ids=str,
)
def test_each_budget_ends_the_search_and_can_be_raised(tmp_path: Path, budget: dict[str, Any], why: str) -> None:
    plan = search(**budget)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    for number, error in enumerate((0.5, 0.3)):
        if searcher.suggest(str(number)) == "FINISHED":
            break
        failed = number == 1 and "failures" in budget
        searcher.on_trial_complete(str(number), result(error) | {"time_total_s": 100.0}, error=failed)
    assert searcher.suggest("last") == "FINISHED"
    assert stop_reason(searcher.study, plan.search) == why
    more = search(trials=9, hours=9, trial_hours=9, failures=9)
    assert isinstance(StudySearcher(study_in(tmp_path, more), more).suggest("next"), dict)


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    plan = search(trials=12, sampler="nsga2", objectives=["error", "parameters"], cover=None)
    study = study_in(tmp_path, plan)
    searcher = StudySearcher(study, plan)
    for number in range(12):
        values = searcher.suggest(str(number))["values"]
        size = values["model.hidden_size"]
        searcher.on_trial_complete(str(number), result(1 / size) | {"parameters": size})
    front = {trial.params["model.hidden_size"] for trial in study.best_trials}
    assert front == {t.params["model.hidden_size"] for t in study.get_trials()}


@pytest.mark.parametrize("sampler", ["gp", "cmaes", "auto"])
def test_every_sampler_goes_on_after_a_kill(tmp_path: Path, sampler: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plan = search(trials=8, sampler=sampler)
    whole = play(tmp_path / "a", plan)
    assert play(tmp_path / "b", plan, stop_after=6) + play(tmp_path / "b", plan) == whole
    assert all(1e-4 <= values["train.learning_rate"] <= 1e-2 for values in whole)
