"""What the sampler learns from trials that are paused."""

from __future__ import annotations

import math

import pytest

from mcrnn.search.learning import ExpectedErrors
from mcrnn.training.session import PENALTY

STEPS = [2, 6, 18]


def test_error_at_the_end_is_expected_from_how_those_of_others_fell() -> None:
    known = ExpectedErrors()
    for number, (first, second, last) in enumerate([(1.0, 0.5, 0.25), (0.8, 0.4, 0.1), (0.6, 0.2, 0.1)]):
        known.note(number, STEPS, {2: first, 6: second, 18: last})
    known.note(3, STEPS, {2: 0.9})
    assert math.exp(known.expected(3) or 0) == pytest.approx(0.9 * 0.5 * 0.5)
    known.note(4, STEPS, {2: 0.9, 6: 0.3})
    assert math.exp(known.expected(4) or 0) == pytest.approx(0.3 * 0.5)
    assert math.exp(known.expected(1) or 0) == pytest.approx(0.1)
    assert known.expected(5) is None


def test_order_within_a_rung_is_kept_and_failed_trials_come_last() -> None:
    known = ExpectedErrors()
    for number, error in enumerate([0.5, 0.3, 0.4]):
        known.note(number, STEPS, {2: error})
    known.note(3, STEPS, {2: 0.1}, failed=True)
    assert list(known.best(4)) == [1, 2, 0, 3]
    assert known.expected(3) == pytest.approx(math.log(PENALTY))
    assert list(known.best(2)) == [1, 2]


def test_trial_that_goes_on_is_known_by_its_highest_rung() -> None:
    known = ExpectedErrors()
    known.note(0, STEPS, {2: 0.5})
    known.note(1, STEPS, {2: 0.4})
    known.note(0, STEPS, {2: 0.5, 6: 0.1})
    assert list(known.best(2)) == [1, 0]
    assert math.exp(known.expected(1) or 0) == pytest.approx(0.4 * 0.2)
    assert math.exp(known.expected(0) or 0) == pytest.approx(0.1)
