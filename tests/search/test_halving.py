"""Asynchronous successive halving: which trials are paused, and which of them go on."""

from __future__ import annotations

import pytest

from mcrnn.config.search import AshaConfig
from mcrnn.search.halving import SuccessiveHalving, rungs

STEPS = [2, 6, 18]


def paused_at(halving: SuccessiveHalving, number: int, error: float, epoch: int = 2, **earlier: float) -> None:
    errors = {int(step.removeprefix("at_")): value for step, value in earlier.items()} | {epoch: error}
    halving.note(number, STEPS, errors, epoch, ended=False, failed=False)


def goes_on(halving: SuccessiveHalving, number: int, error: float, target: int) -> None:
    halving.note(number, STEPS, {2: error}, target, ended=False, failed=False)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (18, [2, 6, 18]),
        (20, [2, 6, 20]),
        (30, [2, 10, 30]),
        (54, [2, 6, 18, 54]),
        (6, [2, 6]),
        (3, [2, 3]),
        (2, [2]),
        (1, [1]),
    ],
)
def test_rungs_are_counted_from_the_last_epoch(epochs: int, expected: list[int]) -> None:
    assert rungs(AshaConfig(grace_epochs=2, reduction_factor=3), epochs) == expected


def test_rungs_of_shorter_trainings_are_those_of_the_longest() -> None:
    config = AshaConfig(grace_epochs=3, reduction_factor=3)
    assert [rungs(config, epochs, 30) for epochs in (30, 20, 10, 5, 3, 2)] == [
        [3, 10, 30], [3, 10, 20], [3, 10], [3, 5], [3], [2]
    ]  # fmt: skip


def test_best_third_of_a_rung_goes_on() -> None:
    halving = SuccessiveHalving(3)
    paused_at(halving, 0, 0.5)
    assert halving.promotion() is None  # one third of one is none
    paused_at(halving, 1, 0.3)
    assert halving.promotion() == 1  # one third of two is rounded to one
    paused_at(halving, 2, 0.4)
    assert halving.promotion() == 1
    assert halving.next_target[1] == 6
    goes_on(halving, 1, 0.3, 6)
    assert halving.promotion() is None


def test_trial_that_was_not_good_enough_is_taken_up_when_others_are_worse() -> None:
    halving = SuccessiveHalving(3)
    for number, error in enumerate((0.3, 0.4, 0.5)):
        paused_at(halving, number, error)
    goes_on(halving, 0, 0.3, 6)
    paused_at(halving, 3, 0.6)
    assert halving.promotion() is None
    paused_at(halving, 4, 0.7)
    assert halving.promotion() == 1


@pytest.mark.parametrize(
    ("factor", "expected"), [(2, [0, 1, 1, 2, 2, 3]), (3, [0, 1, 1, 1, 2, 2]), (4, [0, 0, 1, 1, 1, 1])]
)
def test_one_in_the_factor_goes_on_rounded(factor: int, expected: list[int]) -> None:
    halving = SuccessiveHalving(factor)
    gone_on, counts = 0, []
    for number in range(6):
        paused_at(halving, number, 1.0 - number / 100)
        while (best := halving.promotion()) is not None:
            goes_on(halving, best, 1.0 - best / 100, 6)
            gone_on += 1
        counts.append(gone_on)
    assert counts == expected


def test_no_more_than_a_third_goes_on_however_much_the_trials_improve() -> None:
    halving = SuccessiveHalving(3)
    promoted = 0
    for number in range(30):
        paused_at(halving, number, 1.0 - number / 100)
        while (best := halving.promotion()) is not None:
            goes_on(halving, best, 1.0 - best / 100, 6)
            promoted += 1
    assert promoted == 10


def test_higher_rung_comes_first() -> None:
    halving = SuccessiveHalving(3)
    for number in range(3):
        paused_at(halving, number, 0.1 * (number + 1), 6, at_2=0.1 * (number + 1))
    for number in range(3, 9):
        paused_at(halving, number, 0.05)
    assert halving.promotion() == 0
    assert halving.next_target[0] == 18


def test_diverged_trial_counts_in_its_rung() -> None:
    halving = SuccessiveHalving(3)
    for number, error in enumerate((0.3, 0.4)):
        paused_at(halving, number, error)
    halving.note(2, STEPS, {}, 2, ended=True, failed=True)
    assert halving.promotion() == 0
    assert halving.next_target.keys() == {0, 1}


def test_trials_on_their_way_to_the_last_epoch_are_known() -> None:
    halving = SuccessiveHalving(3)
    paused_at(halving, 0, 0.3, 6, at_2=0.4)
    assert halving.next_target == {0: 18}
    assert halving.complete == set()
    halving.note(0, STEPS, {2: 0.4, 6: 0.3}, 18, ended=False, failed=False)
    assert halving.complete == {0}


def test_trial_that_fails_on_its_way_to_the_last_epoch_is_not_counted_as_complete() -> None:
    halving = SuccessiveHalving(3)
    halving.note(0, STEPS, {2: 0.4, 6: 0.3}, 18, ended=False, failed=False)
    halving.note(0, STEPS, {2: 0.4, 6: 0.3}, 18, ended=True, failed=True)
    assert halving.complete == set()
