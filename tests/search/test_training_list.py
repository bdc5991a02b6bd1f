"""The trainings of a confirmation are proposed in their order, and none after a stop."""

from __future__ import annotations

from ray.tune.search import Searcher

from mcrnn.search.training_list import TrainingList


def test_trainings_are_proposed_in_their_order_until_the_list_ends() -> None:
    trainings = TrainingList([{"retrain": ("a", {})}, {"retrain": ("b", {})}], lambda: False)
    assert [trainings.suggest(trial_id) for trial_id in "xy"] == [
        {"proposal": {"retrain": ("a", {})}},
        {"proposal": {"retrain": ("b", {})}},
    ]
    assert trainings.suggest("z") == Searcher.FINISHED


def test_no_training_is_proposed_after_a_stop() -> None:
    stopped = False
    trainings = TrainingList([{"retrain": ("a", {})}, {"retrain": ("b", {})}], lambda: stopped)
    trainings.suggest("x")
    stopped = True
    assert trainings.suggest("y") == Searcher.FINISHED
