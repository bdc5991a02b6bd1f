"""Sums over the steps of an epoch: loss, gradient norm, and the steps whose gradient was not finite."""

from __future__ import annotations

import torch
import torch.distributed as dist

from mcrnn.training.session import Metrics

SKIPPED_IN_A_ROW = 5
"""Steps in a row without a finite gradient after which a run has diverged."""


class EpochSums:
    """Sums over the steps of an epoch, kept on the device so that the host need not wait for it.

    Args:
        device: the device of the training.
    """

    NAMES = ("loss", "gradient_norm", "skipped", "skipped_in_a_row", "longest_row")

    def __init__(self, device: torch.device) -> None:
        self.tensor = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
        self.diverged = False

    def start(self) -> None:
        """Set all sums to zero, in place, for the next epoch."""
        self.tensor.zero_()
        self.diverged = False

    def add(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor:
        """Add a step, or count it as skipped where its gradient is not finite.

        Args:
            loss: of the step, on this worker.
            gradient_norm: of the step, over all workers.

        Returns:
            1 where the step is to be skipped, else 0; float32, on the device.
        """
        taken = gradient_norm < torch.inf  # not of NaN
        skip = torch.where(taken, 0.0, 1.0)
        loss_and_norm, skipped_and_in_a_row = self.tensor[:2], self.tensor[2:4]
        in_a_row, longest_row = self.tensor[3], self.tensor[4]
        loss_and_norm += torch.where(taken, torch.stack([loss, gradient_norm]), 0.0)
        skipped_and_in_a_row += skip
        in_a_row *= skip
        torch.maximum(longest_row, in_a_row, out=longest_row)
        return skip

    def check_divergence(self, steps_per_epoch: int) -> bool:
        """Set and return `diverged`: whether too many steps in a row were skipped, or all of a shorter epoch.

        On a GPU this waits for the steps so far.
        """
        self.diverged = bool(self.tensor[-1] >= min(SKIPPED_IN_A_ROW, steps_per_epoch))
        return self.diverged

    def values(self) -> list[float]:
        """Return all sums, in the order of `NAMES`."""
        return self.tensor.tolist()

    def load(self, values: list[float]) -> None:
        """Continue from the values of a checkpoint."""
        self.tensor.copy_(torch.tensor(values, dtype=torch.float64))

    def metrics(self, steps: int, world_size: int, group: dist.ProcessGroup | None) -> Metrics:
        """Return means over the steps that were taken, the loss's also over all workers.

        Args:
            steps: steps of the epoch, skipped ones included.
            world_size: number of workers.
            group: the workers, for tensors on the host.
        """
        loss, norm, skipped = self.values()[:3]
        taken = max(1.0, steps - skipped)
        if world_size > 1:
            total = torch.tensor([loss], dtype=torch.float64)
            dist.all_reduce(total, group=group)
            loss = float(total[0]) / world_size
        return {"loss": loss / taken, "gradient_norm": norm / taken, "skipped_steps": skipped}
