"""Scores of forecasts: streaming over batches, kept window by window, exact over the whole split.

With W given frames f_0 .. f_{W-1}, step s predicts f_s. Steps 1 .. W are teacher-forced, steps W + 1 .. W + H run in
closed loop; step W + l - 1 has lead time l. What is kept of a window is a few numbers a step and channel, so that
memory does not grow with the grid, and windows can be drawn anew for confidence intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

LARGEST_RATIO, SMALLEST_RATIO = 3.0, 0.2
"""of the deviation over the grid, forecast over truth: beyond them a forecast has blown up, or gone flat"""


def latitude_weights(latitude: np.ndarray) -> np.ndarray:
    """The share of the sphere that the cells of each row cover, over the mean share; float64 (rows,).

    A row's cells reach to the middle between it and its neighbours; at the ends half a row further, or to the pole
    where there is no room for another row. The share is the difference of the sine of its two edges, exactly.

    Args:
        latitude: of the rows, in degrees, rising or falling.
    """
    rising = np.sort(np.deg2rad(np.asarray(latitude, dtype=np.float64)))
    if len(rising) == 1:
        return np.ones(1)
    between = (rising[1:] + rising[:-1]) / 2
    beyond = np.array([2 * rising[0] - rising[1], 2 * rising[-1] - rising[-2]])  # where another row would be
    ends = np.where(np.abs(beyond) < np.pi / 2 - 1e-6, (beyond + rising[[0, -1]]) / 2, np.sign(beyond) * np.pi / 2)
    edges = np.concatenate([ends[:1], between, ends[1:]])
    area = np.diff(np.sin(edges))
    area = area if latitude[0] <= latitude[-1] else area[::-1]
    return area / area.mean()


def power_spectrum(x_BTCHW: torch.Tensor) -> torch.Tensor:
    """The mean square of a periodic field by wavenumber, (B, T, C, K + 1), whose sum is the mean square.

    Shells of width 1 around the wavenumbers 0 .. K = half the shorter side; what is beyond belongs to the last. Of
    vorticity it is twice the enstrophy spectrum.
    """
    height, width = x_BTCHW.shape[-2:]
    power = torch.fft.rfft2(x_BTCHW, norm="forward").abs().square()
    power[..., 1 : (width + 1) // 2] *= 2  # the half of the plane that rfft leaves out
    k_y = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)
    k_x = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64)
    last = min(height, width) // 2
    shell_HW = torch.sqrt(k_y[:, None] ** 2 + k_x**2).round().long().clamp(max=last).to(x_BTCHW.device)
    spectrum = power.new_zeros(*x_BTCHW.shape[:3], last + 1)
    return spectrum.index_add_(-1, shell_HW.flatten(), power.flatten(-2))


@dataclass(frozen=True)
class Measures:
    """What is measured of a field beside its errors."""

    weights: np.ndarray | None = None
    """of the rows of a sphere, with mean 1"""
    spectra: bool = False
    """of periodic fields"""


@dataclass
class Scores:
    """Of the forecasts of all windows: (windows, steps, channels) float64 each, filled in batch by batch.

    Attributes:
        squared: mean over the grid of the squared error; infinite where it is not finite.
        absolute: of the absolute error.
        variance: over the grid, of forecasts and of truths, (2, windows, steps, channels).
        weighted: of the squared error, weighted by area; on a sphere.
        correlation: of the anomalies of forecast and truth, weighted by area; on a sphere.
        power: mean square by wavenumber of forecasts, truths and errors, each the mean over windows, (3, steps,
            channels, K + 1); of periodic fields.
    """

    squared: np.ndarray
    absolute: np.ndarray
    variance: np.ndarray
    weighted: np.ndarray | None
    correlation: np.ndarray | None
    power: np.ndarray | None
    filled: int = 0

    @classmethod
    def empty(cls, windows: int, steps: int, channels: int, measures: Measures, side: int) -> Scores:
        """For so many windows.

        Args:
            windows: number.
            steps: of each.
            channels: that are predicted.
            measures: what is measured.
            side: the shorter one of the grid.
        """
        shape = (windows, steps, channels)
        on_sphere = measures.weights is not None
        return cls(
            squared=np.empty(shape),
            absolute=np.empty(shape),
            variance=np.empty((2, *shape)),
            weighted=np.empty(shape) if on_sphere else None,
            correlation=np.empty(shape) if on_sphere else None,
            power=np.zeros((3, steps, channels, side // 2 + 1)) if measures.spectra else None,
        )

    def update(
        self,
        prediction_BTCHW: torch.Tensor,
        truth_BTCHW: torch.Tensor,
        measures: Measures,
        climatology_BTCHW: torch.Tensor | None = None,
    ) -> None:
        """Take the next windows.

        Args:
            prediction_BTCHW: forecasts.
            truth_BTCHW: of the same steps.
            measures: what is measured.
            climatology_BTCHW: what anomalies are from, of the same steps; on a sphere.
        """
        prediction_BTCHW, truth_BTCHW = prediction_BTCHW.double(), truth_BTCHW.double()
        error_BTCHW = prediction_BTCHW - truth_BTCHW
        rows = slice(self.filled, self.filled + len(error_BTCHW))
        total = len(self.squared)
        squared_BTCHW = error_BTCHW.square()
        self.squared[rows] = _finite(squared_BTCHW.mean((-2, -1)))
        self.absolute[rows] = _finite(error_BTCHW.abs().mean((-2, -1)))
        for i, x_BTCHW in enumerate((prediction_BTCHW, truth_BTCHW)):
            self.variance[i, rows] = _finite(x_BTCHW.var((-2, -1), correction=0))
        if self.weighted is not None and self.correlation is not None and climatology_BTCHW is not None:
            weights_H1 = torch.as_tensor(measures.weights).to(error_BTCHW)[:, None]
            self.weighted[rows] = _finite((squared_BTCHW * weights_H1).mean((-2, -1)))
            mean_BTCHW = climatology_BTCHW.to(error_BTCHW)
            correlation_BTC = _correlation(prediction_BTCHW - mean_BTCHW, truth_BTCHW - mean_BTCHW, weights_H1)
            self.correlation[rows] = torch.nan_to_num(correlation_BTC, nan=0.0).cpu().numpy()
        if self.power is not None:
            for i, x_BTCHW in enumerate((prediction_BTCHW, truth_BTCHW, error_BTCHW)):
                self.power[i] += _finite(power_spectrum(x_BTCHW).sum(0) / total)
        self.filled = rows.stop


def _finite(values: torch.Tensor) -> np.ndarray:
    return torch.nan_to_num(values, nan=torch.inf, posinf=torch.inf).cpu().numpy()


def _correlation(a_BTCHW: torch.Tensor, b_BTCHW: torch.Tensor, weights_H1: torch.Tensor) -> torch.Tensor:
    """Of two anomalies over the grid, as the WMO defines it (the mean anomaly is not taken off)."""
    covariance = (weights_H1 * a_BTCHW * b_BTCHW).mean((-2, -1))
    variances = (weights_H1 * a_BTCHW.square()).mean((-2, -1)) * (weights_H1 * b_BTCHW.square()).mean((-2, -1))
    return covariance / variances.sqrt()


def rmse(squared_NTC: np.ndarray, first: int, last: int) -> float:
    """Root of the mean over windows, steps first .. last (which count from 1), channels and grid."""
    return float(np.sqrt(squared_NTC[:, first - 1 : last].mean()))


def rmse_normalized(squared_NTC: np.ndarray, first: int, last: int, std: np.ndarray) -> float:
    """`rmse` with the error of each channel over a deviation of it."""
    return float(np.sqrt((squared_NTC[:, first - 1 : last] / std**2).mean()))


def rmse_mean_of_steps(squared_NTC: np.ndarray, first: int, last: int) -> float:
    """The paper's: the root at each step, then the mean over steps first .. last."""
    return float(np.sqrt(squared_NTC[:, first - 1 : last].mean((0, 2))).mean())


def rmse_by_step(squared_NTC: np.ndarray) -> np.ndarray:
    """Root of the mean over windows, channels and grid at each step."""
    return np.sqrt(squared_NTC.mean((0, 2)))


def bootstrap(squared_NTC: np.ndarray, first: int, last: int, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The bounds of `rmse` that 95 % of the draws of windows keep (percentile bootstrap).

    Args:
        squared_NTC: by window.
        first: step, from 1.
        last: step.
        draws: of as many windows as there are, with replacement.
        seed: of the draws.
    """
    by_window = squared_NTC[:, first - 1 : last].mean((1, 2))
    if not np.isfinite(by_window).all():
        return float("inf"), float("inf")
    rng = np.random.default_rng(seed)
    means = [by_window[rng.integers(0, len(by_window), len(by_window))].mean() for _ in range(draws)]
    low, high = np.sqrt(np.quantile(means, [0.025, 0.975]))
    return float(low), float(high)


def instability(variance_2NTC: np.ndarray, first: int) -> str | None:
    """Whether forecasts blow up or go flat, and when.

    Args:
        variance_2NTC: over the grid, of forecasts and of truths.
        first: step from which on it is looked at, which has lead time 2.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_T = np.sqrt(variance_2NTC[0].mean(0) / variance_2NTC[1].mean(0)).mean(-1)[first - 1 :]
    for name, is_so in (("blows up", ~(ratio_T < LARGEST_RATIO)), ("goes flat", ratio_T < SMALLEST_RATIO)):
        if is_so.any():
            return f"{name} at lead time {int(np.argmax(is_so)) + 2}"
    return None


def skill_horizon(rmse_by_lead: np.ndarray, baseline_by_lead: np.ndarray) -> int | None:
    """The lead time, from 1, at which an error that was smaller than a baseline's passes it; None where it does not.

    An error that never was smaller passes it at once.
    """
    better = rmse_by_lead < baseline_by_lead
    if not better.any():
        return 1
    after = ~better[int(np.argmax(better)) :]
    return int(np.argmax(after)) + int(np.argmax(better)) + 1 if after.any() else None


def spectrum_error(power_3TCK: np.ndarray) -> float:
    """Root of the mean over steps, channels and wavenumbers from 1 of the squared difference of log10 power."""
    forecast, truth = power_3TCK[0][..., 1:], power_3TCK[1][..., 1:]
    used = truth > 1e-12 * truth.max()
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.log10(np.maximum(forecast, 1e-300)) - np.log10(truth)
    return float(np.sqrt(np.square(difference[used]).mean()))
