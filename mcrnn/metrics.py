"""Errors of forecasts, streaming over batches and exact over the whole split.

Steps and lead times: with `warm_up` W given frames f_0 .. f_{W-1}, step s predicts f_s. Steps 1 .. W are
teacher-forced, steps W + 1 .. W + horizon run in closed loop; step W + l - 1 has lead time l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class SquaredError:
    """Sum of squared errors by step and channel, in float64, over samples and grid."""

    steps: int
    channels: int
    total_TC: torch.Tensor = field(init=False)
    count: int = 0
    """values summed a step and channel"""

    def __post_init__(self) -> None:
        self.total_TC = torch.zeros(self.steps, self.channels, dtype=torch.float64)

    def update(self, prediction_BTCHW: torch.Tensor, truth_BTCHW: torch.Tensor) -> None:
        """Add a batch. An error that is not finite makes the sums of its steps infinite."""
        squared_BTCHW = (prediction_BTCHW.double() - truth_BTCHW.double()).square()
        total_TC = squared_BTCHW.sum((0, 3, 4))
        self.total_TC = self.total_TC.to(total_TC.device) + torch.nan_to_num(total_TC, nan=torch.inf, posinf=torch.inf)
        self.count += squared_BTCHW[:, 0, 0].numel()

    def rmse_by_step(self) -> torch.Tensor:
        """Root of the mean over samples, channels and grid, at each step; float64 (steps,)."""
        return (self.total_TC.mean(1) / self.count).sqrt()

    def rmse(self, first: int, last: int) -> float:
        """Root of the mean over samples, steps first .. last, channels and grid (steps count from 1)."""
        return float((self.total_TC[first - 1 : last].mean() / self.count).sqrt())

    def rmse_normalized(self, first: int, last: int, std: Sequence[float]) -> float:
        """`rmse` with the error of each channel over a deviation of it."""
        scaled_TC = self.total_TC[first - 1 : last].cpu() / torch.tensor(std, dtype=torch.float64).square()
        return float((scaled_TC.mean() / self.count).sqrt())

    def rmse_mean_of_steps(self, first: int, last: int) -> float:
        """The paper's: the root at each step, then the mean over steps first .. last."""
        return float(self.rmse_by_step()[first - 1 : last].mean())
