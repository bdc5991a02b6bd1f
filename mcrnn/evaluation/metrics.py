"""Metrics of forecasts: scores of every window, collected batch by batch, and the errors computed from them.

With W given frames f_0 .. f_{W-1}, step s predicts f_s. Steps 1 .. W are teacher-forced, steps W + 1 .. W + H run in
closed loop; step W + l - 1 has lead time l. Of each window a few numbers per step and channel are kept: memory does not
grow with the grid, averages over the split are exact, and the spread over windows gives confidence intervals.

Array axes: N windows, T steps, C channels, K wavenumbers; B windows of a batch, H and W rows and columns of the grid.
Figures of a region are scores of their own, of the part of each field that lies in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mcrnn.evaluation.measures import Measures

LARGEST_RATIO, SMALLEST_RATIO = 3.0, 0.2
"""Bounds of the ratio of standard deviations over the grid, forecast over truth.

A forecast above the first has blown up, one below the second has gone flat."""
VALUES_AT_A_TIME = 2**21
"""Values that are scored at a time. Each array of them takes 16 MB, and about a dozen are needed."""
ARRAYS = ("squared", "absolute", "bias", "variance", "weighted", "weighted_absolute", "correlation", "power")
"""Fields of `Scores` that are arrays, or None."""


@dataclass
class Scores:
    """Scores of the forecasts of all windows, filled in batch by batch; float64 (windows, steps, channels) each.

    Where there is a mask, the grid stands for its points.

    Attributes:
        squared: mean over the grid of the squared error; infinite where it is not finite.
        absolute: mean over the grid of the absolute error; infinite where it is not finite.
        bias: mean over the grid of the error, area-weighted on a sphere; infinite where it is not finite.
        variance: variance over the grid of forecasts and of truths, (2, windows, steps, channels).
        weighted: area-weighted mean of the squared error; None unless the grid is on a sphere.
        weighted_absolute: area-weighted mean of the absolute error; None unless the grid is on a sphere.
        correlation: area-weighted correlation of the anomalies of forecast and truth; None unless on a sphere.
        power: mean square by wavenumber of forecasts, truths and errors, averaged over windows, (3, steps, channels,
            K + 1); None unless the field is periodic, or goes around a globe, and has no mask.
        regions: scores of the part of the field in each region, by name; they have no spectra.
        filled: number of windows that are filled in.
    """

    squared: np.ndarray
    absolute: np.ndarray
    bias: np.ndarray
    variance: np.ndarray
    weighted: np.ndarray | None
    weighted_absolute: np.ndarray | None
    correlation: np.ndarray | None
    power: np.ndarray | None
    regions: dict[str, Scores] = field(default_factory=dict)
    filled: int = 0

    @classmethod
    def empty(cls, windows: int, steps: int, channels: int, measures: Measures, grid: tuple[int, int]) -> Scores:
        """Return scores to be filled in.

        Args:
            windows: number of windows.
            steps: number of steps of each window.
            channels: number of predicted channels.
            measures: what is measured beside the errors.
            grid: height and width of the grid.
        """
        shape = (windows, steps, channels)
        on_sphere = measures.weights is not None
        wavenumbers = measures.num_wavenumbers(*grid)
        return cls(
            squared=np.empty(shape),
            absolute=np.empty(shape),
            bias=np.empty(shape),
            variance=np.empty((2, *shape)),
            weighted=np.empty(shape) if on_sphere else None,
            weighted_absolute=np.empty(shape) if on_sphere else None,
            correlation=np.empty(shape) if on_sphere else None,
            power=np.zeros((3, steps, channels, wavenumbers)) if wavenumbers else None,
            regions={
                name: cls.empty(windows, steps, channels, of_region, grid)
                for name, of_region in measures.of_regions.items()
            },
        )

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Return the scores of consecutive parts of the windows as those of all windows.

        Args:
            parts: scores of each part, in the order of the windows; they are filled in.
        """
        if len(parts) == 1:
            return parts[0]
        windows_P = [each.filled for each in parts]
        arrays: dict[str, np.ndarray | None] = {}
        for name in ARRAYS:
            of_parts = [array for each in parts if (array := getattr(each, name)) is not None]
            if not of_parts:
                arrays[name] = None
            elif name == "power":  # a mean over windows already
                total = sum(count * array for count, array in zip(windows_P, of_parts, strict=True))
                arrays[name] = total / sum(windows_P)
            else:
                arrays[name] = np.concatenate(of_parts, axis=-3)
        regions = {name: cls.joined([each.regions[name] for each in parts]) for name in parts[0].regions}
        return cls(**arrays, regions=regions, filled=sum(windows_P))  # type: ignore[arg-type]

    def update(
        self,
        prediction_BTCHW: torch.Tensor,
        truth_BTCHW: torch.Tensor,
        measures: Measures,
        climatology_BTCHW: torch.Tensor | None = None,
    ) -> None:
        """Fill in the next windows, a part of them at a time, so that memory beside the forecasts stays bounded.

        Args:
            prediction_BTCHW: forecasts.
            truth_BTCHW: truth at the same steps.
            measures: what is measured beside the errors.
            climatology_BTCHW: climatology at the same steps, from which anomalies are taken; needed on a sphere.
        """
        first, self.filled = self.filled, self.filled + len(truth_BTCHW)
        batch, steps, *frame_shape = truth_BTCHW.shape
        frames = max(1, VALUES_AT_A_TIME // math.prod(frame_shape))
        for windows in torch.arange(batch).split(min(batch, frames)):
            for times in torch.arange(steps).split(max(1, frames // len(windows))):
                part = np.s_[int(windows[0]) : int(windows[-1]) + 1, int(times[0]) : int(times[-1]) + 1]
                at = np.s_[first + int(windows[0]) : first + int(windows[-1]) + 1, part[1]]
                mean = None if climatology_BTCHW is None else climatology_BTCHW[part]
                self._update_part(at, prediction_BTCHW[part].double(), truth_BTCHW[part].double(), measures, mean)
        for each in self.regions.values():
            each.filled = self.filled

    def _update_part(
        self,
        at: tuple[slice, slice],
        prediction_BTCHW: torch.Tensor,
        truth_BTCHW: torch.Tensor,
        measures: Measures,
        climatology_BTCHW: torch.Tensor | None,
    ) -> None:
        """Fill in some windows and steps, from values in float64."""
        prediction_BTCHW, truth_BTCHW = measures.within_mask(prediction_BTCHW), measures.within_mask(truth_BTCHW)
        error_BTCHW = prediction_BTCHW - truth_BTCHW
        squared_BTCHW, absolute_BTCHW = error_BTCHW.square(), error_BTCHW.abs()
        self.squared[at] = _finite(measures.mean(squared_BTCHW))
        self.absolute[at] = _finite(measures.mean(absolute_BTCHW))
        for i, x_BTCHW in enumerate((prediction_BTCHW, truth_BTCHW)):
            self.variance[i][at] = _finite(_variance(x_BTCHW, measures))
        if self.weighted is None or self.weighted_absolute is None or self.correlation is None:
            self.bias[at] = _finite(measures.mean(error_BTCHW))
        else:
            assert climatology_BTCHW is not None
            self.bias[at] = _finite(measures.mean(error_BTCHW, by_area=True))
            self.weighted[at] = _finite(measures.mean(squared_BTCHW, by_area=True))
            self.weighted_absolute[at] = _finite(measures.mean(absolute_BTCHW, by_area=True))
            mean_BTCHW = measures.within_mask(climatology_BTCHW.to(error_BTCHW))
            weights = measures.weights_for(error_BTCHW, by_area=True)
            assert weights is not None
            correlation_BTC = _correlation(prediction_BTCHW - mean_BTCHW, truth_BTCHW - mean_BTCHW, weights)
            self.correlation[at] = torch.nan_to_num(correlation_BTC, nan=0.0).cpu().numpy()
        if self.power is not None:
            for i, x_BTCHW in enumerate((prediction_BTCHW, truth_BTCHW, error_BTCHW)):
                self.power[i, at[1]] += _finite(measures.power(x_BTCHW).sum(0) / len(self.squared))
        for name, points in measures.regions.items():
            assert climatology_BTCHW is not None
            prediction, truth, mean = map(points.of, (prediction_BTCHW, truth_BTCHW, climatology_BTCHW))
            self.regions[name]._update_part(at, prediction, truth, measures.of_regions[name], mean)


def _finite(values: torch.Tensor) -> np.ndarray:
    """Return an array in which NaN is infinite, so that a forecast that has blown up never looks good."""
    return torch.nan_to_num(values, nan=torch.inf, posinf=torch.inf).cpu().numpy()


def _variance(x_BTCHW: torch.Tensor, measures: Measures) -> torch.Tensor:
    """Return the variance over the grid, or over the points of the mask, (B, T, C)."""
    if measures.mask_CHW is None:
        return x_BTCHW.var((-2, -1), correction=0)
    return measures.mean((x_BTCHW - measures.mean(x_BTCHW)[..., None, None]).square())


def _correlation(a_BTCHW: torch.Tensor, b_BTCHW: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the anomaly correlation over the grid, uncentred as the WMO defines it; (B, T, C)."""
    covariance = (weights * a_BTCHW * b_BTCHW).mean((-2, -1))
    variances = (weights * a_BTCHW.square()).mean((-2, -1)) * (weights * b_BTCHW.square()).mean((-2, -1))
    return covariance / variances.sqrt()


def rmse(squared_NTC: np.ndarray, first: int, last: int) -> float:
    """Return the root of the mean over windows, steps first .. last (counted from 1), channels and grid."""
    return float(np.sqrt(squared_NTC[:, first - 1 : last].mean()))


def rmse_normalized(squared_NTC: np.ndarray, first: int, last: int, std: np.ndarray) -> float:
    """Return `rmse` with the error of each channel divided by a standard deviation of that channel, `std` (C,)."""
    return float(np.sqrt((squared_NTC[:, first - 1 : last] / std**2).mean()))


def rmse_mean_of_steps(squared_NTC: np.ndarray, first: int, last: int) -> float:
    """Return the paper's RMSE (arXiv 2508.03614): the root at each step, then the mean over steps first .. last."""
    return float(np.sqrt(squared_NTC[:, first - 1 : last].mean((0, 2))).mean())


def rmse_by_step(squared_NTC: np.ndarray) -> np.ndarray:
    """Return the root of the mean over windows, channels and grid at each step; (T,)."""
    return np.sqrt(squared_NTC.mean((0, 2)))


def instability(variance_2NTC: np.ndarray, first: int) -> str | None:
    """Say whether forecasts blow up or go flat, and when.

    Args:
        variance_2NTC: variance over the grid of forecasts and of truths.
        first: first step to look at, which has lead time 2.

    Returns:
        Such as "blows up at lead time 7"; None for stable forecasts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_T = np.sqrt(variance_2NTC[0].mean(0) / variance_2NTC[1].mean(0)).mean(-1)[first - 1 :]
    too_large_T = ~(ratio_T < LARGEST_RATIO)  # so that NaN is too large
    for name, unstable_T in (("blows up", too_large_T), ("goes flat", ratio_T < SMALLEST_RATIO)):
        if unstable_T.any():
            return f"{name} at lead time {int(np.argmax(unstable_T)) + 2}"
    return None


def skill_horizon(rmse_by_lead: np.ndarray, baseline_by_lead: np.ndarray) -> int | None:
    """Return the lead time at which a forecast loses its skill: its error, once below a baseline's, reaches it again.

    Args:
        rmse_by_lead: errors of the forecast at lead times 1, 2, ...
        baseline_by_lead: errors of the baseline at the same lead times.

    Returns:
        The lead time; 1 where the error never is below the baseline's, None where it stays below.
    """
    better = rmse_by_lead < baseline_by_lead
    if not better.any():
        return 1
    first_better = int(np.argmax(better))
    lost = ~better[first_better:]
    return first_better + int(np.argmax(lost)) + 1 if lost.any() else None


def spectrum_error(power_3TCK: np.ndarray) -> float:
    """Return the root mean square difference of log10 power between forecast and truth.

    The mean is over steps, channels and the wavenumbers from 1 at which the truth has noticeable power.

    Args:
        power_3TCK: mean square by wavenumber of forecasts, truths and errors, see `Scores`.
    """
    forecast, truth = power_3TCK[0][..., 1:], power_3TCK[1][..., 1:]
    used = truth > 1e-12 * truth.max()
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.log10(np.maximum(forecast, 1e-300)) - np.log10(truth)
    return float(np.sqrt(np.square(difference[used]).mean()))
