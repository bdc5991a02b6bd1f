from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mcrnn.config.loading import load_search
from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search, Space, SpaceEntry
from mcrnn.search.budgets import stop_reason
from mcrnn.search.journal import Journal
from mcrnn.search.study import finished_trials, open_study
from mcrnn.search.trial_report import TrialReport
from mcrnn.search.tune_adapter import StudyScheduler, StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.training.session import OBJECTIVE, PENALTY

ARCHITECTURES = ["convgru", "convlstm", "minconvgru"]


def search(trials: int = 6, **options: object) -> Search:
    base = {"name": "test", "data": {"store": "s"}, "model": {}, "train": {"epochs": 4}}
    entries = {
        "model.architecture": [SpaceEntry(choice=ARCHITECTURES)],
        "model.hidden_size": [SpaceEntry.model_validate({"int": [4, 16], "step": 4})],
        "train.learning_rate": [SpaceEntry.model_validate({"float": [1e-4, 1e-2], "log": True})],
    }
    return Search(Space(base, entries), SearchConfig.model_validate({"trials": trials, **options}))


def study_in(folder: Path, plan: Search, earlier: Iterable[optuna.Study] = ()) -> optuna.Study:
    return open_study(Journal.open(LocalFolder(folder)), plan, earlier)


def result(error: float, epoch: int = 4, diverged: float = 0.0) -> dict[str, float]:
    return {"epoch": epoch, OBJECTIVE: error, "best": error, "diverged": diverged}


def play(folder: Path, plan: Search, stop_after: int | None = None) -> list[dict]:
    """Run a search's trials in order with made-up errors; returns the values of each."""
    searcher = StudySearcher(study_in(folder, plan), plan)
    values = []
    while len(values) != stop_after and isinstance(proposal := searcher.suggest(str(len(values))), dict):
        trial_id = str(len(values))
        values.append(proposal["values"])
        error = proposal["values"]["train.learning_rate"] * proposal["values"]["model.hidden_size"]
        searcher.on_trial_complete(trial_id, result(error))
    return values


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


class Told:
    """A Tune trial as far as a scheduler looks at it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def run_part(searcher: StudySearcher, proposal: dict[str, Any], error: float, done: int, epochs: int) -> int:
    """Train a trial of a constant error as far as it was proposed, or until it is stopped; returns its last epoch."""
    scheduler, epoch, last = StudyScheduler(searcher), done, {}
    for epoch in range(done + 1, proposal.get("target", epochs) + 1):
        last = result(error, epoch=epoch) | {"epochs": epochs}
        if scheduler.on_trial_result(None, Told("t"), last) == "STOP":
            break
    searcher.on_trial_complete("t", last)
    searcher.pruned.discard("t")
    return epoch


def epochs_of(folder: Path, plan: Search, errors: list[float], restart: bool) -> list[int]:
    """How far trials of constant errors get; `restart` opens the study anew before each part of a trial."""
    reached = [0] * len(errors)
    searcher = StudySearcher(study_in(folder, plan), plan)
    while isinstance(proposal := searcher.suggest("t"), dict):
        number = proposal["number"]
        reached[number] = run_part(searcher, proposal, errors[number], reached[number], 4)
        if restart:
            searcher = StudySearcher(study_in(folder, plan), plan)
    return reached


@pytest.mark.parametrize("scheduler", ["asha", "median", "none"])
def test_early_stopping_goes_on_where_it_was(tmp_path: Path, scheduler: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    errors = [0.5, 0.6, 0.4, 0.7, 0.3, 0.8]
    asha, median = {"grace_epochs": 1, "reduction_factor": 2}, {"grace_epochs": 2, "grace_trials": 2}
    plan = search(scheduler=scheduler, asha=asha, median=median)
    whole = epochs_of(tmp_path / "a", plan, errors, restart=False)
    assert epochs_of(tmp_path / "b", plan, errors, restart=True) == whole
    expected = {"asha": [2, 1, 4, 1, 2, 1], "median": [4, 4, 4, 2, 4, 2], "none": [4] * 6}
    assert whole == expected[scheduler]


def conditional() -> Search:
    entries = {
        "model.architecture": [SpaceEntry(choice=["convgru", "convlstm"])],
        "model.hidden_size": [
            SpaceEntry.model_validate({"int": [4, 8], "step": 4, "when": {"model.architecture": "convgru"}}),
            SpaceEntry.model_validate({"choice": [5], "when": {"model.architecture": "convlstm"}}),
        ],
        "train.teacher_forcing_steps": [SpaceEntry.model_validate({"int": ["model.layers", 3]})],
    }
    base = {"name": "grid", "data": {"store": "s"}, "model": {"layers": 2}, "train": {"epochs": 4}}
    return Search(Space(base, entries), SearchConfig.model_validate({"sampler": "grid"}))


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
