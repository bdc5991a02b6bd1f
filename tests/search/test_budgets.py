from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search
from mcrnn.search.budgets import Budgets, stop_reason, training_seconds, useful_concurrency
from mcrnn.search.confirmation import Confirmation
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.trial_report import TrialFailedError
from mcrnn.search.tune_adapter import StudyScheduler, StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import SearchFolder
from tests.search.test_confirmation import confirmation, finish
from tests.search.test_failed_trials import tune_trial
from tests.support.studies import conditional, result, run_in, search, study_in


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
        searcher.on_trial_complete(str(number), result(0.5) | {"time_total_s": seconds})
        number += 1
    return number


def test_hours_count_once_over_all_starts(tmp_path: Path) -> None:
    plan = search(trials=1000, hours=1.0, sampler="random")
    assert run(tmp_path, plan, seconds=300, first=0) == 12
    assert run(tmp_path, plan, seconds=300, first=12) == 12
    more = search(trials=1000, hours=1.5, sampler="random")
    assert run(tmp_path, more, seconds=300, first=12) == 18
    assert stop_reason(study_in(tmp_path, more), more.search) == "its 1.5 hours are spent"


def confirm(folder: Path, plan: Search, clock: Clock, seconds: float, concurrency: int = 1) -> Confirmation:
    """Run the trainings of the confirmation for which there is time, each as long as `seconds`."""
    study = study_in(folder, plan)
    budgets = Budgets(study, plan, clock=clock, concurrency=concurrency)
    while True:
        found = confirmation(folder, plan, study)
        budgets.confirmation_seconds = sum(training.seconds for training in found.started)
        trainings = budgets.affordable_trainings(found)
        for number, training in enumerate(trainings):
            finish(training, 0.1 * training.trial, seconds)
            clock.now += seconds if number % concurrency == 0 else 0
        budgets.note_hours()
        if not trainings:
            return found


def hours_of(folder: Path, plan: Search) -> float:
    return study_in(folder, plan).user_attrs["hours"]


def test_search_leaves_the_time_that_its_confirmation_takes(tmp_path: Path) -> None:
    """14 trainings of 5 minutes confirm 4 configurations with 5 seeds: 70 of 240 minutes, which leaves 34 trials."""
    plan = search(trials=1000, hours=4.0, sampler="random", confirm={})
    assert run(tmp_path, plan, seconds=300, first=0) == 34
    study = study_in(tmp_path, plan)
    why = "its 4 hours leave no time for another trial before the confirmation"
    assert stop_reason(study, plan.search) == why
    found = confirm(tmp_path, plan, Clock(), seconds=300)
    assert found.missing == []
    assert [row["seeds"] for row in found.rows(plan)] == [5, 5, 2, 2]
    assert hours_of(tmp_path, plan) == pytest.approx(4.0)
    # it stays at its end, and a larger budget lets it go on
    assert run(tmp_path, plan, seconds=300, first=34) == 34
    more = search(trials=1000, hours=5.5, sampler="random", confirm={})
    assert run(tmp_path, more, seconds=300, first=34) == 38  # 20 minutes are left before another confirmation


def test_confirmation_gets_a_third_of_a_small_budget(tmp_path: Path) -> None:
    plan = search(trials=1000, hours=2.0, sampler="random", confirm={})
    assert run(tmp_path, plan, seconds=300, first=0) == 16
    found = confirm(tmp_path, plan, Clock(), seconds=300)
    assert [row["seeds"] for row in found.rows(plan)] == [2, 2, 2, 2]
    assert hours_of(tmp_path, plan) == pytest.approx(2.0)


def test_trials_get_all_the_time_where_a_third_is_not_enough_for_one_seed_of_each(tmp_path: Path) -> None:
    plan = search(trials=1000, hours=0.9, sampler="random", confirm={})  # a third is 18 minutes, 4 trainings take 20
    assert run(tmp_path, plan, seconds=300, first=0) == 10
    assert stop_reason(study_in(tmp_path, plan), plan.search) == "its 0.9 hours leave no time for another trial"
    assert confirm(tmp_path, plan, Clock(), seconds=300).rows(plan) == []


def test_trial_hours_count_all_trainings_however_many_run_at_a_time(tmp_path: Path) -> None:
    plan = search(trials=1000, trial_hours=4.0, sampler="random", confirm={})
    study, clock = study_in(tmp_path, plan), Clock()
    searcher = StudySearcher(study, plan, budgets=Budgets(study, plan, clock=clock, concurrency=4))
    started = ended = 0
    while True:
        while started < ended + 4 and isinstance(searcher.suggest(str(started)), dict):
            started += 1
        if ended == started:
            break
        searcher.on_trial_complete(str(ended), result(0.5) | {"time_total_s": 300.0})
        ended += 1
    # four trials were under way before the length of any was known, and 14 trainings are to come
    assert ended == 34
    found = confirm(tmp_path, plan, clock, seconds=300, concurrency=4)
    assert found.missing == []
    budgets = Budgets(study_in(tmp_path, plan), plan)
    budgets.confirmation_seconds = sum(training.seconds for training in found.started)
    assert budgets.trial_hours == pytest.approx(4.0)


def test_trials_that_were_stopped_early_are_expected_to_be_trained_to_their_end(tmp_path: Path) -> None:
    plan = search(trials=4, sampler="random", hours=10, confirm={"configurations": 1})
    study = study_in(tmp_path, plan)
    searcher = StudySearcher(study, plan)
    searcher.suggest("a")
    searcher.pruned.add("a")
    searcher.on_trial_complete("a", result(0.5, epoch=1) | {"time_total_s": 100.0})
    assert training_seconds(plan, searcher.index.trial(0)) == 400  # 4 epochs
    hours, trial_hours = searcher.budgets.expected_confirmation()[0]
    assert hours == trial_hours == pytest.approx(5 * 400 / 3600)


def test_paused_trials_are_expected_to_be_confirmed_where_none_was_trained_to_its_end(tmp_path: Path) -> None:
    plan = search(trials=90, cover=None, hours=10, confirm={}, asha={"grace_epochs": 1, "reduction_factor": 8})
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    trainings = []
    for number in range(5):
        _, expected = searcher.budgets.expected_confirmation()[0]
        trainings.append(round(expected * 3600 / 400))  # 4 epochs of 100 s
        if number < 4:
            assert searcher.suggest("t")["number"] == number
            paused = result(1.0 - number / 10, epoch=1) | {"epochs": 4, "time_total_s": 100.0}
            searcher.on_trial_complete("t", paused)
    assert trainings == [0, 5, 10, 12, 14]  # of 0 to 4 configurations, with 5 seeds at most
    searcher.conclude()
    assert searcher.budgets.expected_confirmation()[0] == pytest.approx((14 * 400 / 3600,) * 2)


def test_time_of_a_trial_counts_over_its_interruptions_and_where_it_fails(tmp_path: Path) -> None:
    plan = search(trials=3, sampler="random")
    study = study_in(tmp_path, plan)
    searcher = StudySearcher(study, plan)
    searcher.trained_seconds = lambda number: 500.0  # its epochs of earlier starts with those of this one
    for trial_id, error in (("a", False), ("b", True)):
        searcher.suggest(trial_id)
        searcher.on_trial_complete(trial_id, result(0.5) | {"time_total_s": 100.0}, error=error)
    assert Budgets(study_in(tmp_path, plan), plan).trial_hours == pytest.approx(1000 / 3600)


@pytest.mark.parametrize(("seconds", "seeds"), [(330, [4, 4, 2, 2]), (400, [3, 3, 2, 2]), (600, [1, 1, 1, 1])])
def test_confirmation_that_takes_longer_than_expected_has_fewer_seeds(
    tmp_path: Path, seconds: float, seeds: list[int]
) -> None:
    """70 minutes are left, as much as 14 trainings of 5 minutes would take."""
    plan = search(trials=1000, hours=4.0, sampler="random", confirm={})
    run(tmp_path, plan, seconds=300, first=0)
    found = confirm(tmp_path, plan, Clock(), seconds=seconds)
    assert found.missing
    assert [row["seeds"] for row in found.rows(plan)] == seeds
    assert hours_of(tmp_path, plan) <= 4.0


def test_confirmation_for_which_nothing_is_left_confirms_nothing(tmp_path: Path) -> None:
    plan = search(trials=1000, hours=2.0, sampler="random")
    run(tmp_path, plan, seconds=300, first=0)
    later = search(trials=1000, hours=2.0, sampler="random", confirm={})
    found = confirm(tmp_path, later, Clock(), seconds=300)
    assert not found.is_valid
    assert found.rows(later) == []
    assert not (tmp_path / "confirmation").exists()


def test_goal_ends_the_search_and_the_confirmation_follows(tmp_path: Path) -> None:
    plan = search(trials=1000, hours=9, goal=0.5, sampler="random", confirm={"seeds": 2})
    assert run(tmp_path, plan, seconds=300, first=0) == 1
    assert stop_reason(study_in(tmp_path, plan), plan.search) == "the goal of 0.5 is reached"
    assert [row["seeds"] for row in confirm(tmp_path, plan, Clock(), seconds=300).rows(plan)] == [2]


def test_hours_are_noted_while_a_long_trial_runs(tmp_path: Path) -> None:
    plan = search(hours=9)
    study, clock = study_in(tmp_path, plan), Clock()
    searcher = StudySearcher(study, plan, budgets=Budgets(study, plan, clock=clock))
    searcher.suggest("a")
    for _ in range(4):
        clock.now += 900
        searcher.on_trial_result("a", result(0.5))
    assert hours_of(tmp_path, plan) == pytest.approx(1.0)


def test_search_that_failed_too_often_says_how_its_last_trial_failed(tmp_path: Path) -> None:
    plan = search(failures=2)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    for trial_id in "ab":
        searcher.suggest(trial_id)
        error = TrialFailedError(f"OSError: disk {trial_id} (see FILE-{trial_id})")
        StudyScheduler(searcher).on_trial_error(None, tune_trial(tmp_path, error, trial_id=trial_id))
        searcher.on_trial_complete(trial_id, error=True)
    assert searcher.suggest("c") == "FINISHED"
    why = "2 trials failed; the last was trial 1: OSError: disk b (see FILE-b)"
    assert stop_reason(study_in(tmp_path, plan), plan.search) == why


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
    run_in(folder, plan, searcher.study).remove_superseded_files()
    assert sorted(key.split("/")[0] for key in folder.trials.sizes()) == [f"{number:04d}" for number in range(5)]


def test_no_more_than_a_quarter_of_the_trials_run_at_a_time() -> None:
    def at_a_time(room: int, **options: Any) -> int:
        return useful_concurrency(search(**options).search, room)

    assert at_a_time(64, trials=60) == 15
    assert at_a_time(4, trials=60) == 4
    assert at_a_time(64, trials=8) == 8
    assert at_a_time(64, trials=None) == 8  # of 20
    assert at_a_time(64, trials=60, sampler="random") == 64
    assert at_a_time(64, trials=60, concurrency=40) == 40
    assert at_a_time(16, trials=60, concurrency=40) == 16


def test_trials_that_ran_when_the_time_was_up_go_on_after_an_interruption(tmp_path: Path) -> None:
    plan, clock = search(trials=1000, hours=1.0, sampler="random"), Clock()
    study = study_in(tmp_path, plan)
    searcher = StudySearcher(study, plan, budgets=Budgets(study, plan, clock=clock, concurrency=2))
    assert [searcher.suggest(name)["number"] for name in "ab"] == [0, 1]
    clock.now = 3600.0
    searcher.on_trial_complete("a", result(0.5) | {"time_total_s": 3600.0})
    assert searcher.suggest("c") == Searcher.FINISHED
    again = StudySearcher(study_in(tmp_path, plan), plan)
    assert stop_reason(again.study, plan.search) == "its 1 hours are spent"
    assert again.suggest("b")["number"] == 1
    again.on_trial_complete("b", result(0.4))
    assert again.suggest("c") == Searcher.FINISHED
    assert not again.index.running


def test_stop_that_is_asked_for_during_a_proposal_holds(tmp_path: Path) -> None:
    plan = search(trials=9, sampler="random")
    study = study_in(tmp_path, plan)

    class Interrupting(Budgets):
        def stop_reason(self, running: int = 0) -> str | None:
            searcher.ending = "it was interrupted"  # as the handler of a signal does, in another thread
            return super().stop_reason(running)

    searcher = StudySearcher(study, plan, budgets=Interrupting(study, plan))
    assert searcher.suggest("a")["number"] == 0
    assert searcher.suggest("b") == Searcher.FINISHED


def test_budgets_keep_the_index_that_they_are_given_also_an_empty_one(tmp_path: Path) -> None:
    plan = search(trials=9, cover=None)
    study = study_in(tmp_path, plan)
    index = TrialIndex(study)
    assert len(index) == 0
    assert Budgets(study, plan, index).index is index
