"""Whether one of two models is better than the other on the same windows, beyond doubt.

The errors of both are compared window by window, so that what both find hard cancels, and the spread of the difference
takes into account that windows overlap; see `mcrnn.evaluation.uncertainty`. Of many candidates that are as good as the
champion, one would soon seem better by chance. The k-th candidate on a test split is therefore tested at the level
5 % / (k (k + 1)), which is 2.5 % for the first. All levels add up to 5 %, so that the probability of ever promoting a
candidate that is not better stays below 5 %, however many are tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from scipy import special

from mcrnn.evaluation.uncertainty import Estimate, log_ratio

FALSE_PROMOTIONS = 0.05
"""Largest probability that any candidate is promoted which is not better than the champion."""
MOST_TIMES = 100
"""Where it would take more than so many times the windows, the models are called as good as equal."""


class Outcome(StrEnum):
    """The answer of a comparison."""

    BETTER = "better"
    NOT_BETTER = "not better"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"


def level(number: int) -> float:
    """Return the level at which the candidate of this number, from 1, is tested."""
    return FALSE_PROMOTIONS / (number * (number + 1))


@dataclass(frozen=True)
class Comparison:
    """Closed-loop errors of a candidate and a champion on the same windows.

    Attributes:
        candidate: RMSE of the candidate over the training split's standard deviation.
        champion: the same of the champion.
        log_ratio: logarithm of candidate / champion; None where there are too few windows to tell its spread.
        windows: number of windows.
        number: how many candidates have been compared on this test split, with this one.
        margin: share by which the candidate's error must be smaller.
        quantity: name of the error that is compared.
        basis: what the errors are taken over, such as the rule of the starts and the region, as it is recorded.
    """

    candidate: float
    champion: float
    log_ratio: Estimate | None
    windows: int
    number: int = 1
    margin: float = 0.0
    quantity: str = "closed-loop RMSE over the standard deviation"
    basis: dict[str, Any] = field(default_factory=dict)

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of the relative change of the error, candidate / champion - 1, at the level of this comparison."""
        if self.log_ratio is None:
            return -1.0, math.inf
        low, high = self.log_ratio.interval(1 - 2 * level(self.number))
        return float(np.expm1(low)), float(np.expm1(high))

    @property
    def outcome(self) -> Outcome:
        """Whether the candidate is better by more than the margin, is not, or whether that cannot be told."""
        low, high = self.bounds
        if high < -self.margin:
            return Outcome.BETTER
        return Outcome.NOT_BETTER if low > -self.margin else Outcome.NOT_ENOUGH_EVIDENCE

    def windows_needed(self) -> int | None:
        """Return about how many windows would decide it, if the difference stayed; None if there is hardly any."""
        if self.log_ratio is None or self.candidate == self.champion:
            return None
        gap = abs(self.log_ratio.value - math.log1p(-min(self.margin, 0.999)))
        if not math.isfinite(gap) or gap == 0:
            return None
        for times in np.geomspace(1, MOST_TIMES, 200):  # more windows have a smaller error, and more degrees of freedom
            quantile = -special.stdtrit(times * self.log_ratio.degrees, level(self.number))
            if quantile * self.log_ratio.error / math.sqrt(times) <= gap:
                return math.ceil(times * self.windows)
        return None

    @property
    def figures(self) -> dict[str, Any]:
        """The comparison as it is recorded."""
        return {
            "rmse_candidate": self.candidate,
            "rmse_champion": self.champion,
            "change": list(self.bounds) if self.log_ratio else None,
            "windows": self.windows,
            "tried": self.number,
            "level": level(self.number),
            "outcome": self.outcome,
            **self.basis,
        }

    @property
    def advice(self) -> str:
        """What it would take to decide, in a sentence."""
        if self.log_ratio is None:
            return f"{self.windows} windows, as far as they overlap, are too few to compare errors"
        needed = self.windows_needed()
        if needed is None:
            return f"the errors are so close that {MOST_TIMES} times the windows would not tell them apart"
        more = max(1, needed - self.windows)
        return f"if the difference stays as it is, it takes about {more} more such windows ({needed} in all)"

    def __str__(self) -> str:
        change = 100 * (self.candidate / self.champion - 1) if self.champion else math.nan
        low, high = self.bounds
        interval = f"{100 * (1 - 2 * level(self.number)):.4g} % interval {100 * low:+.1f} to {100 * high:+.1f} %; "
        return (
            f"{self.quantity}, test split: "
            f"candidate {self.candidate:.4f}, champion {self.champion:.4f}: {change:+.1f} % "
            f"({interval if self.log_ratio else ''}{self.windows} windows; comparison {self.number} on this test split)"
        )


def compare(
    candidate_N: np.ndarray, champion_N: np.ndarray, overlap: float | None, number: int = 1, margin: float = 0.0
) -> Comparison:
    """Compare the errors of two models on the same windows.

    Args:
        candidate_N: mean squared error of the candidate in each window.
        champion_N: mean squared error of the champion in the same windows.
        overlap: how many consecutive windows share a frame; None where windows are independent.
        number: how many candidates have been compared on this test split, with this one.
        margin: share by which the candidate's error must be smaller.
    """
    rmse_candidate, rmse_champion = (float(np.sqrt(errors_N.mean())) for errors_N in (candidate_N, champion_N))
    if np.array_equal(candidate_N, champion_N):
        ratio: Estimate | None = Estimate(0.0, 0.0, 1)  # of one model twice, the difference has no spread
    elif min(rmse_candidate, rmse_champion) == 0:  # a perfect model is better beyond doubt than one that is not
        ratio = Estimate(math.copysign(math.inf, rmse_candidate - rmse_champion), 0.0, 1)
    else:
        ratio = log_ratio(candidate_N, champion_N, overlap)
    return Comparison(rmse_candidate, rmse_champion, ratio, len(candidate_N), number, margin)
