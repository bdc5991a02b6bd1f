"""How far a mean over windows can be trusted, where windows overlap and weather lasts from one window to the next.

The windows of a series are not independent draws: 6-hourly starts with ten days of lead share forty of their frames.
Resampling single windows then gives intervals that are several times too narrow. Here the variance of the mean comes
from the slowest waves of the series of errors: averaging the squares of its first v cosine coefficients estimates its
spectrum at frequency 0, and the mean over its standard error then has Student's distribution with v degrees of freedom
(equal-weighted cosines; Lazarus, Lewis, Stock and Watson 2018, doi 10.1080/07350015.2018.1506926). Only waves that are
slow beside the correlation may be used. The correlation is as long as windows overlap, or as the integrated
autocorrelation time of the errors where that is longer. `python -m benchmarks.intervals` shows the coverage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, special

WINDOWS_PER_DEGREE = 3
"""Correlation lengths of a series for each degree of freedom: more of them would let faster waves in."""
SOKAL_FACTOR = 5.0
"""Autocorrelations are summed up to the first lag of so many autocorrelation times (Sokal 1997)."""


@dataclass(frozen=True)
class Estimate:
    """An estimate with Student's distribution around it.

    Attributes:
        value: the estimate.
        error: its standard error.
        degrees: degrees of freedom of the distribution.
    """

    value: float
    error: float
    degrees: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the bounds of the two-sided confidence interval of a level."""
        half = float(special.stdtrit(self.degrees, (1 + level) / 2)) * self.error
        return self.value - half, self.value + half


def correlation_length(values_N: np.ndarray) -> float:
    """Return the integrated autocorrelation time of a series, at least 1: so many values are worth an independent one.

    The sum over lags ends at the first lag that is `SOKAL_FACTOR` times as long as the sum so far, because further
    autocorrelations are noise.
    """
    count = len(values_N)
    power = np.abs(fft.rfft(values_N - values_N.mean(), 2 * count)) ** 2  # padded, so that the ends do not meet
    autocovariance_N = fft.irfft(power)[:count]
    if autocovariance_N[0] <= 0:
        return 1.0
    times_N = 2 * np.cumsum(autocovariance_N / autocovariance_N[0]) - 1
    ends = np.flatnonzero(np.arange(count) >= SOKAL_FACTOR * times_N)
    return max(1.0, float(times_N[ends[0] if len(ends) else -1]))


def estimate_mean(values_N: np.ndarray, overlap: float | None) -> Estimate | None:
    """Estimate the mean of a series of windows, or of independent samples.

    Args:
        values_N: a finite value of each window, in the order of the windows.
        overlap: how many consecutive windows share a frame, at least 1; None where windows are independent.

    Returns:
        The mean and its standard error; None where there are too few windows to tell.
    """
    count = len(values_N)
    if overlap is None:
        degrees = count - 1
    else:
        degrees = min(count - 1, int(count / (WINDOWS_PER_DEGREE * max(overlap, correlation_length(values_N)))))
    if degrees < 1:
        return None
    coefficients = fft.dct(values_N, norm="ortho")[1 : degrees + 1]  # the coefficient 0 is the mean
    return Estimate(float(values_N.mean()), float(np.sqrt(np.square(coefficients).mean() / count)), degrees)


def rmse_interval(squared_N: np.ndarray, overlap: float | None) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the root of a mean squared error.

    It is symmetric in the logarithm, because errors are positive and skewed.

    Args:
        squared_N: mean squared error of each window.
        overlap: how many consecutive windows share a frame; None where windows are independent.

    Returns:
        Lower and upper bound; both infinite where an error is not finite, None where there are too few windows to tell.
    """
    if not np.isfinite(squared_N).all():
        return float("inf"), float("inf")
    mean = float(squared_N.mean())
    if mean == 0:
        return 0.0, 0.0
    relative = estimate_mean(squared_N / mean, overlap)
    if relative is None:
        return None
    low, high = Estimate(0.0, relative.error / 2, relative.degrees).interval()  # half of it, because of the root
    return float(np.sqrt(mean) * np.exp(low)), float(np.sqrt(mean) * np.exp(high))


def log_ratio(candidate_N: np.ndarray, champion_N: np.ndarray, overlap: float | None) -> Estimate | None:
    """Estimate the logarithm of the ratio of two root mean squared errors on the same windows.

    Args:
        candidate_N: mean squared error of one model in each window.
        champion_N: mean squared error of the other model in the same windows.
        overlap: how many consecutive windows share a frame; None where windows are independent.

    Returns:
        The estimate; None where there are too few windows to tell.
    """
    candidate, champion = candidate_N.mean(), champion_N.mean()
    # the derivative of the ratio's logarithm by each window; what both models find hard cancels
    paired = estimate_mean(candidate_N / candidate - champion_N / champion, overlap)
    if paired is None:
        return None
    return Estimate(float(np.log(candidate / champion)) / 2, paired.error / 2, paired.degrees)
