"""Intervals that hold where windows overlap, and comparisons that are not deceived by trying often."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from mcrnn.evaluation.comparison import Outcome, compare, level
from mcrnn.evaluation.uncertainty import Estimate, correlation_length, estimate_mean, log_ratio, rmse_interval

DRAWS = 400


def moving_means(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Errors of windows that overlap: means of `length` consecutive squares of white noise."""
    squares = rng.normal(size=count + length) ** 2
    return np.convolve(squares, np.ones(length) / length, "valid")[:count]


def test_independent_samples_get_students_interval() -> None:
    values = np.random.default_rng(0).gamma(4, size=12)
    found = estimate_mean(values, None)
    assert found is not None
    assert found.degrees == 11
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(12), rel=1e-12)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert found.interval() == pytest.approx(expected, rel=1e-12)


def test_correlation_length_of_red_noise_is_that_of_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    red = lfilter([1.0], [1.0, -0.8], rng.normal(size=200_000))
    assert correlation_length(red) == pytest.approx(1.8 / 0.2, rel=0.1)  # (1 + r) / (1 - r)
    assert correlation_length(rng.normal(size=10_000)) == pytest.approx(1, abs=0.1)
    assert correlation_length(np.ones(5)) == 1


@pytest.mark.parametrize(("overlap", "count"), [(1, 60), (3, 100), (40, 1400)])
def test_interval_holds_the_error_in_95_percent_of_draws(overlap: int, count: int) -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(DRAWS):
        low, high = rmse_interval(moving_means(rng, count, overlap), overlap)  # type: ignore[misc]
        inside += low <= 1 <= high
    assert 0.92 <= inside / DRAWS <= 0.97


def test_errors_that_last_longer_than_windows_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(DRAWS):
        slow = np.exp(0.3 * lfilter([math.sqrt(1 - 0.81)], [1.0, -0.9], rng.normal(size=600))[100:])
        low, high = rmse_interval(slow, 1.0)  # type: ignore[misc]
        inside += low <= math.sqrt(math.exp(0.045)) <= high  # the mean of exp(s z) is exp(s^2 / 2)
    assert inside / DRAWS >= 0.90


def test_too_few_windows_have_no_interval() -> None:
    assert rmse_interval(np.array([2.0]), None) is None
    assert rmse_interval(np.ones(100) + np.arange(100) % 2, 40.0) is None
    assert rmse_interval(np.array([1.0, np.inf, 2.0]), None) == (np.inf, np.inf)


def test_comparison_tells_better_from_not_better_and_from_too_little_evidence() -> None:
    rng = np.random.default_rng(0)
    champion_N = rng.gamma(4, size=200)
    equal = compare(champion_N * rng.normal(1, 0.2, 200).clip(0.5), champion_N, None)
    assert equal.outcome is Outcome.NOT_ENOUGH_EVIDENCE
    half = compare(0.25 * champion_N, champion_N, None)
    assert half.candidate == pytest.approx(half.champion / 2)
    assert half.bounds[1] == pytest.approx(-0.5)
    assert half.outcome is Outcome.BETTER
    assert compare(0.25 * champion_N, champion_N, None, margin=0.6).outcome is Outcome.NOT_BETTER
    assert compare(4 * champion_N, champion_N, None).outcome is Outcome.NOT_BETTER
    assert compare(champion_N, champion_N, None).outcome is Outcome.NOT_ENOUGH_EVIDENCE
    assert "100 times" in compare(champion_N, champion_N, None).advice
    alone = compare(champion_N[:1], 2 * champion_N[:1], None)
    assert alone.outcome is Outcome.NOT_ENOUGH_EVIDENCE
    assert "too few" in alone.advice


def test_windows_needed_are_those_that_decide() -> None:
    rng = np.random.default_rng(4)
    champion_N = rng.gamma(4, size=40_000)
    candidate_N = champion_N * rng.normal(0.95, 0.5, 40_000)
    few = compare(candidate_N[:60], champion_N[:60], None)
    assert few.outcome is Outcome.NOT_ENOUGH_EVIDENCE
    needed = few.windows_needed()
    assert needed is not None
    assert f"({needed} in all)" in few.advice
    assert few.log_ratio is not None
    # with so many windows the bound would touch 0, if estimate and spread stayed
    error = few.log_ratio.error * math.sqrt(60 / needed)
    assert few.log_ratio.value + stats.t.isf(level(1), 59) * error == pytest.approx(0, abs=0.05 * error)


def test_later_candidates_have_to_be_clearer() -> None:
    assert level(1) == pytest.approx(0.025)
    assert sum(level(number) for number in range(1, 10_000)) == pytest.approx(0.05, rel=1e-3)
    rng = np.random.default_rng(5)
    champion_N = rng.gamma(4, size=100)
    candidate_N = champion_N * rng.normal(0.9, 0.4, 100)
    assert compare(candidate_N, champion_N, None, number=1).outcome is Outcome.BETTER
    assert compare(candidate_N, champion_N, None, number=10).outcome is Outcome.NOT_ENOUGH_EVIDENCE


def test_ten_candidates_that_are_as_good_are_promoted_in_5_percent_of_draws_at_most() -> None:
    rng = np.random.default_rng(6)
    promoted = 0
    for _ in range(DRAWS):
        common = moving_means(rng, 300, 10)
        champion_N = common + moving_means(rng, 300, 10)
        promoted += any(
            compare(common + moving_means(rng, 300, 10), champion_N, 10.0, number).outcome is Outcome.BETTER
            for number in range(1, 11)
        )
    assert promoted / DRAWS <= 0.05


def test_what_both_models_find_hard_cancels() -> None:
    rng = np.random.default_rng(7)
    hard_N = rng.gamma(1, size=100)
    paired = log_ratio(0.9 * hard_N, hard_N, None)
    assert paired is not None
    assert paired.error < 1e-12
    assert Estimate(paired.value, paired.error, paired.degrees).value == pytest.approx(math.log(0.9) / 2)


def test_model_without_error_is_better_beyond_doubt_and_the_same_model_is_not() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert compare(zero, one, None).outcome is Outcome.BETTER
    assert compare(one, zero, None).outcome is Outcome.NOT_BETTER
    assert compare(one, one, None, margin=0.1).outcome is Outcome.NOT_BETTER
