from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search
from mcrnn.search.budgets import Budgets, stop_reason
from mcrnn.search.search_run import SearchRun
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import SearchFolder
from tests.search.test_study import conditional, result, search, study_in


class Clock:
    """A clock that a test sets, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(folder: Path, plan: Search, seconds: float, first: int) -> int:
    """Run trials of a given length until the budget is spent; returns the number of all trials so far."""
    clock = Clock()
    study = study_in(folder, plan)
    searcher = StudySearcher(study, plan, budgets=Budgets(study, plan, clock=clock))
    number = first
    while isinstance(searcher.suggest(str(number)), dict):
        clock.now += seconds
        searcher.on_trial_complete(str(number), result(0.5))
        number += 1
    return number


def test_hours_count_once_over_all_starts(tmp_path: Path) -> None:
    plan = search(trials=1000, hours=1.0, sampler="random")
    assert run(tmp_path, plan, seconds=300, first=0) == 12
    assert run(tmp_path, plan, seconds=300, first=12) == 12
    more = search(trials=1000, hours=1.5, sampler="random")
    assert run(tmp_path, more, seconds=300, first=12) == 18
    assert stop_reason(study_in(tmp_path, more), more.search) == "its 1.5 hours are spent"


def test_grid_whose_budget_is_raised_goes_on_with_the_combinations_that_are_left(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []
    for trials in (2, 4, 50):
        plan = Search(conditional().space, SearchConfig.model_validate({"sampler": "grid", "trials": trials}))
        searcher = StudySearcher(study_in(tmp_path, plan), plan)
        while isinstance(proposal := searcher.suggest(str(len(seen))), dict):
            searcher.on_trial_complete(str(len(seen)), result(0.5))
            seen.append(tuple(proposal["values"].values()))
        assert len(seen) == min(trials, 6)
        assert stop_reason(searcher.study, plan.search) == "all trials are done"
    assert len(set(seen)) == 6


def test_models_of_the_whole_front_are_kept(tmp_path: Path) -> None:
    """Larger networks are better here, so that every trial is on the front, and each but the worst model is good."""
    plan = search(trials=6, sampler="random", objectives=["error", "parameters"], cover=None, keep=1)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    folder = SearchFolder(LocalFolder(tmp_path))
    for number in range(6):
        searcher.suggest(str(number))
        worse = number == 5  # larger and worse than trial 0, so not on the front
        metrics = {"parameters": 10.0 + number}
        searcher.on_trial_complete(str(number), result(9.0 if worse else 1 - number / 10) | metrics)
        folder.trial(number).model.write("weights", b"x")
    search_run = SearchRun(plan, cast(Any, None), folder, cast(Any, None), searcher.study, cast(Any, SimpleNamespace()))
    search_run.remove_superseded_files()
    assert sorted(key.split("/")[0] for key in folder.trials.sizes()) == [f"{number:04d}" for number in range(5)]
