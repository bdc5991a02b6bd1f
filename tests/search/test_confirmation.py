"""Which trainings a confirmation runs follows from those that have ended, and its statement says what they show."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from mcrnn.config.search import ConfirmConfig
from mcrnn.config.space import Search
from mcrnn.search.budgets import time_limits
from mcrnn.search.confirmation import Confirmation, Retraining, confidence_interval, statement
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import RunEnd, SearchFolder
from mcrnn.training.session import End
from tests.support.studies import result, run_in, search, study_in


def finish(training: Retraining, error: float | None, seconds: float = 1.0) -> None:
    """End a training with an error; None for one that has diverged."""
    training.folder.write_metrics([{"epoch": 1, "best": 10.0 if error is None else error, "seconds": seconds}])
    training.folder.write_end(RunEnd(End.DIVERGED if error is None else End.FINISHED, ""))


def confirmed_search(folder: Path, errors: list[float], **confirm: int) -> tuple[Search, optuna.Study]:
    """A search whose trials have ended with these errors; their architectures come in turn."""
    plan = search(trials=len(errors), sampler="random", confirm=confirm)
    searcher = StudySearcher(study_in(folder, plan), plan)
    for number, error in enumerate(errors):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), result(error))
    return plan, searcher.study


def confirmation(folder: Path, plan: Search, study: optuna.Study) -> Confirmation:
    return Confirmation.of(plan, SearchFolder(LocalFolder(folder)), TrialIndex(study).ranked())


def names(trainings: list[list[Retraining]]) -> list[list[str]]:
    return [[training.name for training in of_seed] for of_seed in trainings]


@pytest.mark.parametrize(
    ("configurations", "seeds", "rounds"),
    [
        (4, 5, [(4, 2, 8), (2, 5, 6)]),
        (8, 5, [(8, 1, 8), (4, 3, 8), (2, 5, 4)]),
        (5, 6, [(5, 2, 10), (3, 4, 6), (2, 6, 4)]),
        (2, 5, [(2, 5, 10)]),
        (1, 5, [(1, 5, 5)]),
        (4, 1, [(4, 1, 4), (2, 1, 0)]),
    ],
)
def test_rounds_halve_the_configurations_until_the_last_two_have_all_seeds(
    configurations: int, seeds: int, rounds: list[tuple[int, int, int]]
) -> None:
    config = ConfirmConfig(configurations=configurations, seeds=seeds)
    assert config.rounds(available=100) == rounds
    assert config.rounds(available=configurations) == rounds


def search_of(folder: Path, tried: list[tuple[str, float, float]], **confirm: int) -> Confirmation:
    """The confirmation of a search with trials of these architectures, learning rates and errors."""
    plan = search(trials=len(tried), sampler="random", confirm=confirm, cover=None)
    study = study_in(folder, plan)
    for architecture, rate, _ in tried:
        study.enqueue_trial({"model.architecture": architecture, "model.hidden_size": 8, "train.learning_rate": rate})
    searcher = StudySearcher(study, plan)
    for number, (*_, error) in enumerate(tried):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), result(error))
    return confirmation(folder, plan, study)


def test_best_of_all_trials_compete_with_new_seeds_and_not_one_of_each_architecture(tmp_path: Path) -> None:
    tried = [("convlstm", 1e-3, 0.9), ("convgru", 1e-3, 0.2), ("convgru", 2e-3, 0.3), ("convgru", 3e-3, 0.25)]
    found = search_of(tmp_path, tried, configurations=3, seeds=2)
    assert [each.trial for each in found.competitors] == [1, 3, 2]
    assert names(found.missing) == [["trial-1-seed-1", "trial-3-seed-1", "trial-2-seed-1"]]  # the trials had seed 0
    assert found.competing == 3


def test_configuration_that_was_tried_twice_competes_once(tmp_path: Path) -> None:
    found = search_of(tmp_path, [("convgru", 1e-3, 0.5), ("convgru", 1e-3, 0.5), ("convgru", 2e-3, 0.6)])
    assert [each.trial for each in found.competitors] == [0, 2]


def test_better_half_goes_on_by_mean_error_and_the_winner_gets_all_seeds(tmp_path: Path) -> None:
    plan, study = confirmed_search(tmp_path, [0.1, 0.2, 0.3, 0.4], configurations=4, seeds=5)
    means = {0: 0.5, 1: 0.3, 2: 0.45, 3: 0.2}  # the trials' own errors say the opposite
    while (found := confirmation(tmp_path, plan, study)).missing:
        for training in itertools.chain.from_iterable(found.missing):
            finish(training, means[training.trial] + (0.01 if training.seed % 2 else -0.01))
    rows = found.rows(plan)
    assert [row["trial"] for row in rows] == [3, 1, 2, 0]
    assert [row["seeds"] for row in rows] == [5, 5, 2, 2]
    assert len(list((tmp_path / "confirmation").iterdir())) == 14
    assert rows[0]["mean"] == pytest.approx(0.202)
    assert rows[0]["best"] == pytest.approx(0.19)
    assert rows[0]["folder"] == "confirmation/trial-3-seed-2"


def test_configuration_with_a_failed_seed_is_behind_all_without(tmp_path: Path) -> None:
    plan, study = confirmed_search(tmp_path, [0.1, 0.2, 0.3, 0.4], configurations=4, seeds=4)
    found = confirmation(tmp_path, plan, study)
    for training in itertools.chain.from_iterable(found.missing):
        failed = training.trial in (0, 1) and training.seed == 1
        finish(training, None if failed else training.trial / 10)
    found = confirmation(tmp_path, plan, study)
    assert {training.trial for of_seed in found.missing for training in of_seed} == {2, 3}
    assert [(row["trial"], row["seeds"], row["failed"]) for row in found.rows(plan)] == [
        (2, 2, 0), (3, 2, 0), (0, 1, 1), (1, 1, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_trainings_that_end_in_any_order_and_a_kill_after_any_of_them_change_nothing(tmp_path: Path, seed: int) -> None:
    """Each round of trainings ends in a random order, of which a kill may leave any part; then the rest is run."""
    rng = random.Random(seed)
    plan, study = confirmed_search(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], configurations=7, seeds=6)

    def error(training: Retraining) -> float | None:
        own = random.Random(training.name)
        return None if own.random() < 0.2 else own.random()

    def run(folder: Path, kills: bool) -> tuple[Any, set[str]]:
        while (found := confirmation(folder, plan, study)).missing:
            trainings = list(itertools.chain.from_iterable(found.missing))
            rng.shuffle(trainings)
            for training in trainings[: rng.randint(1, len(trainings)) if kills else None]:
                finish(training, error(training))
        return found.rows(plan), {path.name for path in (folder / "confirmation").iterdir()}

    assert run(tmp_path / "killed", kills=True) == run(tmp_path / "whole", kills=False)


def test_nothing_is_confirmed_until_every_configuration_has_a_seed(tmp_path: Path) -> None:
    plan, study = confirmed_search(tmp_path, [0.1, 0.2], configurations=2, seeds=3)
    first, second = confirmation(tmp_path, plan, study).missing[0]
    finish(first, 0.3)
    found = confirmation(tmp_path, plan, study)
    assert not found.is_valid
    assert found.rows(plan) == []
    finish(second, 0.2)
    found = confirmation(tmp_path, plan, study)
    assert found.is_valid
    assert [(row["trial"], row["seeds"], row["interval"]) for row in found.rows(plan)] == [(1, 1, None), (0, 1, None)]


def test_more_seeds_and_more_configurations_go_on_with_the_trainings_that_are_there(tmp_path: Path) -> None:
    plan, study = confirmed_search(tmp_path, [0.1, 0.2, 0.3], configurations=1, seeds=2)
    for training in itertools.chain.from_iterable(confirmation(tmp_path, plan, study).missing):
        finish(training, 0.1)
    more, _ = confirmed_search(tmp_path / "other", [0.1], configurations=2, seeds=3)
    found = confirmation(tmp_path, Search(plan.space, more.search), study)
    assert names(found.missing) == [["trial-1-seed-1"], ["trial-1-seed-2"], ["trial-0-seed-3", "trial-1-seed-3"]]


def test_interval_of_the_means_logarithm_is_that_of_students_t_distribution() -> None:
    """The quantiles of 97.5 % for 1, 2, 4 and 9 degrees of freedom are in every table of the t distribution."""
    for count, quantile in ((2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262)):
        interval = confidence_interval(0.5, 0.1, count)
        assert interval is not None
        half = quantile * 0.1 / 0.5 / math.sqrt(count)
        assert interval == pytest.approx((0.5 * math.exp(-half), 0.5 * math.exp(half)), rel=1e-3)
    assert confidence_interval(0.5, 0.0, 1) is None
    assert confidence_interval(0.0, 0.0, 2) == (0.0, 0.0)


def test_interval_has_the_mean_inside_and_no_negative_error() -> None:
    errors = (0.2, 0.3)  # the interval of the mean itself would be -0.385 to 0.885
    low, high = confidence_interval(statistics.fmean(errors), statistics.stdev(errors), 2) or (0.0, 0.0)
    assert 0 < low < 0.25 < high


def test_interval_holds_the_mean_of_all_seeds_as_often_as_it_says() -> None:
    """Errors of seeds with a spread of 10 %, as in practice: 95 of 100 intervals, to three standard errors."""
    draw, samples = np.random.default_rng(0), 4000
    for count in (2, 3, 5):
        errors = np.exp(draw.normal(np.log(0.2), 0.1, (samples, count)))
        intervals = [confidence_interval(each.mean(), each.std(ddof=1), count) or (0, 0) for each in errors]
        held = sum(low <= 0.2 * math.exp(0.1**2 / 2) <= high for low, high in intervals) / samples
        assert abs(held - 0.95) < 3 * math.sqrt(0.95 * 0.05 / samples)


def test_statement_has_mean_interval_seeds_and_what_the_winner_was_chosen_from() -> None:
    row = {"mean": 0.5, "interval": (0.4, 0.6), "seeds": 5}
    assert statement(row, 4, 60) == (
        "mean error 0.5000, 95 % interval 0.4000 to 0.6000, over 5 seeds; "
        "the best of 4 configurations that competed, of 60 trials"
    )
    assert statement(row, 1, 1).endswith("; the only configuration that competed, of 1 trial")
    assert "no interval, as there is one value only, over 1 seed" in statement(
        row | {"interval": None, "seeds": 1}, 4, 9
    )


@pytest.mark.parametrize(
    ("made", "asked", "finished"),
    [
        ({"seeds": 5, "confirmed": []}, {"seeds": 5}, True),  # of version 0.1.0
        ({"seeds": 3, "confirmed": []}, {"seeds": 5}, False),
        ({"seeds": 5, "confirmation": {"configurations_asked": 4, "unfinished": None}}, {"configurations": 4}, True),
        ({"seeds": 5, "confirmation": {"configurations_asked": 4, "unfinished": None}}, {"configurations": 8}, False),
        ({"seeds": 0, "confirmation": None}, {"seeds": 5}, False),
    ],
)
def test_search_whose_confirmation_is_enlarged_goes_on_and_another_one_is_finished(
    tmp_path: Path, made: dict[str, Any], asked: dict[str, int], finished: bool
) -> None:
    plan, study = confirmed_search(tmp_path, [0.1], **asked)
    folder = SearchFolder(LocalFolder(tmp_path))
    folder.write_summary(made)
    assert run_in(folder, plan, study).finished == finished


def test_confirmation_for_which_there_was_no_time_goes_on_with_another_limit(tmp_path: Path) -> None:
    plan, study = confirmed_search(tmp_path, [0.1], seeds=5)
    folder = SearchFolder(LocalFolder(tmp_path))
    limited = Search(plan.space, plan.search.model_copy(update={"hours": 2.0}))
    limits = time_limits(limited.search)
    unfinished = {"configurations_asked": 4, "unfinished": "its 2 hours left no time", "limits": limits}
    folder.write_summary({"seeds": 5, "confirmation": unfinished})
    for hours, finished in ((2.0, True), (3.0, False)):
        changed = Search(plan.space, plan.search.model_copy(update={"hours": hours}))
        assert run_in(folder, changed, study).finished == finished
