"""Errors of forecasts on the validation windows, added up over batches, exact over the whole split.

Steps and lead times: with `warm_up` W given frames f_0 .. f_{W-1}, step s predicts f_s. Steps 1 .. W are
teacher-forced, steps W + 1 .. W + horizon run in closed loop; step W + l - 1 has lead time l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from mcrnn.data.description import Scaling
from mcrnn.data.splits import Split
from mcrnn.data.windows import Starts
from mcrnn.models import Forecaster
from mcrnn.training.session import OBJECTIVE, PENALTY, Metrics


@dataclass
class SquaredError:
    """Sums of squared errors over samples and grid, for each step and channel, in float64."""

    steps: int
    """Number of steps."""
    channels: int
    """Number of channels."""
    weights_CHW: torch.Tensor | None = None
    """Weights of the points, whose mean over the grid is 1; None if all count the same."""
    total_TC: torch.Tensor = field(init=False)
    """The sums, (steps, channels)."""
    count: int = 0
    """Number of values in each sum."""

    def __post_init__(self) -> None:
        self.total_TC = torch.zeros(self.steps, self.channels, dtype=torch.float64)

    def update(self, prediction_BTCHW: torch.Tensor, truth_BTCHW: torch.Tensor) -> None:
        """Add a batch. An error that is not finite makes the sum of its step and channel infinite.

        Args:
            prediction_BTCHW: forecasts of all steps.
            truth_BTCHW: the field, of the same shape and units.
        """
        squared_BTCHW = (prediction_BTCHW.double() - truth_BTCHW.double()).square()
        if self.weights_CHW is not None:
            squared_BTCHW = torch.where(self.weights_CHW > 0, squared_BTCHW, 0.0) * self.weights_CHW
        total_TC = squared_BTCHW.sum((0, 3, 4))
        self.total_TC = self.total_TC.to(total_TC.device) + torch.nan_to_num(total_TC, nan=torch.inf, posinf=torch.inf)
        self.count += squared_BTCHW[:, 0, 0].numel()

    def rmse_by_step(self) -> torch.Tensor:
        """Return the root of the mean over samples, channels and grid at each step; float64 (steps,)."""
        return (self.total_TC.mean(1) / self.count).sqrt()

    def rmse(self, first: int, last: int) -> float:
        """Return the root of the mean over samples, steps first .. last, channels and grid (steps count from 1)."""
        return float((self.total_TC[first - 1 : last].mean() / self.count).sqrt())

    def rmse_normalized(self, first: int, last: int, std: Sequence[float]) -> float:
        """Return `rmse` with the error of each channel divided by its standard deviation `std`."""
        scaled_TC = self.total_TC[first - 1 : last].cpu() / torch.tensor(std, dtype=torch.float64).square()
        return float((scaled_TC.mean() / self.count).sqrt())

    def rmse_mean_of_steps(self, first: int, last: int) -> float:
        """Return the paper's error: the root at each step, then the mean over steps first .. last."""
        return float(self.rmse_by_step()[first - 1 : last].mean())


@torch.no_grad()
def validate(
    model: Forecaster,
    split: Split,
    windows: Starts,
    scaling: Scaling,
    *,
    warm_up: int,
    horizon: int,
    batch_size: int,
    weights_CHW: torch.Tensor | None = None,
    rank: int = 0,
    world_size: int = 1,
    group: dist.ProcessGroup | None = None,
) -> SquaredError:
    """Forecast all windows: `warm_up` teacher-forced steps, then `horizon` steps in closed loop.

    The result does not depend on the batch size or on the number of workers, except for rounding.

    Args:
        model: the forecaster, in the model's units.
        split: the split that the windows are read from.
        windows: sample and first frame of each window.
        scaling: conversion between the field's units and the model's.
        warm_up: number of given frames.
        horizon: number of closed-loop steps after them.
        batch_size: windows at a time.
        weights_CHW: weights of the points of the predicted channels, see `mask_weights`; None if all count the same.
        rank: number of this worker.
        world_size: number of workers that share the windows.
        group: the workers, for tensors on the host; the default group by default.

    Returns:
        The squared errors of all workers, in the field's units.
    """
    steps = warm_up + horizon
    error = SquaredError(steps, model.channels_out, weights_CHW)
    like = next(model.parameters())
    model.eval()
    samples, starts = (part[rank::world_size].split(batch_size) for part in windows)
    for sample_B, start_B in zip(samples, starts, strict=True):
        if not len(sample_B):
            break  # there are fewer windows than workers
        batch_BTCHW = split.windows(sample_B, start_B, steps + 1).to(like)
        given_BTCHW = scaling.to_model(batch_BTCHW[:, : model.frames_read(warm_up, steps)])
        prediction_BTCHW = scaling.to_physical(model(given_BTCHW, warm_up, steps))
        error.update(prediction_BTCHW, batch_BTCHW[:, 1 : steps + 1, : model.channels_out])
    model.train()
    error.total_TC = error.total_TC.cpu()
    if world_size > 1:
        count = torch.tensor(error.count)
        dist.all_reduce(error.total_TC, group=group)
        dist.all_reduce(count, group=group)
        error.count = int(count)
    return error


def validation_metrics(error: SquaredError, warm_up: int, std: tuple[float, ...], scales: tuple[float, ...]) -> Metrics:
    """Return the metrics of a validation, cut off at `PENALTY` standard deviations so that all are finite.

    Args:
        error: squared errors of the validation windows.
        warm_up: number of teacher-forced steps, which come first.
        std: the training split's standard deviation of each predicted channel.
        scales: what normalised errors are divided by; see `ValidationConfig.error_scales`.
    """
    largest = PENALTY * max(std)
    return {
        "rmse_teacher_forced": min(error.rmse(1, warm_up), largest),
        "rmse_closed_loop": min(error.rmse(warm_up + 1, error.steps), largest),
        "rmse_teacher_forced_normalized": min(error.rmse_normalized(1, warm_up, scales), PENALTY),
        OBJECTIVE: min(error.rmse_normalized(warm_up + 1, error.steps, scales), PENALTY),
    }
