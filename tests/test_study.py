from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from mcrnn.config import SearchConfig
from mcrnn.space import Search, Space, SpaceEntry
from mcrnn.study import StudySearcher, open_study, tried
from mcrnn.training import OBJECTIVE, PENALTY

ARCHITECTURES = ["convgru", "convlstm", "minconvgru"]


def search(trials: int = 6, **options: object) -> Search:
    base = {"name": "test", "data": {"store": "s"}, "model": {}, "train": {"epochs": 4}}
    entries = {
        "model.architecture": [SpaceEntry(choice=ARCHITECTURES)],
        "model.hidden_size": [SpaceEntry.model_validate({"int": [4, 16], "step": 4})],
        "train.learning_rate": [SpaceEntry.model_validate({"float": [1e-4, 1e-2], "log": True})],
    }
    return Search(Space(base, entries), SearchConfig.model_validate({"trials": trials, **options}))


def result(error: float, epoch: int = 4, diverged: float = 0.0) -> dict[str, float]:
    return {"epoch": epoch, OBJECTIVE: error, "best": error, "diverged": diverged}


def play(folder: Path, plan: Search, stop_after: int | None = None) -> list[dict]:
    """Run a search's trials in order with made-up errors; returns the values of each."""
    searcher = StudySearcher(open_study(folder, plan), plan)
    values = []
    while len(values) != stop_after and isinstance(proposal := searcher.suggest(str(len(values))), dict):
        trial_id = str(len(values))
        values.append(proposal["values"])
        error = proposal["values"]["train.learning_rate"] * proposal["values"]["model.hidden_size"]
        searcher.on_trial_result(trial_id, result(error))
        searcher.on_trial_complete(trial_id, result(error))
    return values


def test_every_choice_of_the_covered_entry_comes_first(tmp_path: Path) -> None:
    values = play(tmp_path, search())
    assert [v["model.architecture"] for v in values[:3]] == ARCHITECTURES
    assert len(values) == 6
    assert len({v["train.learning_rate"] for v in values}) == 6


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


def test_trial_left_running_by_a_killed_search_is_tried_again(tmp_path: Path) -> None:
    plan = search()
    searcher = StudySearcher(open_study(tmp_path, plan), plan)
    lost = searcher.suggest("a")["values"]
    del searcher

    study = open_study(tmp_path, plan)
    assert not study.get_trials(states=[TrialState.RUNNING])
    assert tried(study) == []
    rest = play(tmp_path, plan)
    assert len(rest) == plan.search.trials
    assert lost in rest
    assert len(tried(open_study(tmp_path, plan))) == plan.search.trials


def test_raised_budget_runs_the_difference(tmp_path: Path) -> None:
    assert len(play(tmp_path, search(trials=4))) == 4
    assert len(play(tmp_path, search(trials=7))) == 3
    assert play(tmp_path, search(trials=7)) == []


def test_how_a_trial_ended_is_recorded(tmp_path: Path) -> None:
    plan = search()
    study = open_study(tmp_path, plan)
    searcher = StudySearcher(study, plan)
    for trial_id in "abcd":
        searcher.suggest(trial_id)
    searcher.on_trial_result("a", result(0.5))
    searcher.on_trial_complete("a", result(0.5))
    searcher.on_trial_result("b", result(0.9, epoch=2))
    searcher.on_trial_complete("b", result(0.9, epoch=2))
    searcher.on_trial_result("c", result(PENALTY, epoch=1, diverged=1.0))
    searcher.on_trial_complete("c", result(PENALTY, epoch=1, diverged=1.0))
    searcher.on_trial_complete("d", None, error=True)
    trials = study.get_trials()[:4]
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL]
    assert [t.state for t in trials] == states
    assert [t.user_attrs["end"] for t in trials] == ["finished", "stopped", "diverged", "failed"]
    assert trials[2].value == PENALTY
    assert trials[1].intermediate_values == {2: 0.9}
