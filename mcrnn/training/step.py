"""One step of a training: gradients, clipping, the sums of the epoch, and the update of the weights."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from mcrnn.config.sections import TrainConfig
from mcrnn.training.batch_loss import BatchLoss, StepInputs
from mcrnn.training.epoch_sums import EpochSums


class Step(Protocol):
    """Whatever takes the steps of a training."""

    def take(self, inputs: StepInputs, rate: float) -> None:
        """Take one step of the optimizer, or skip it where the gradient is not finite.

        Args:
            inputs: what the step computes with.
            rate: the learning rate.
        """


class TrainingStep:
    """Takes steps operation by operation. Nothing in a step asks for a value on the device.

    Args:
        train: the clipping.
        loss: the loss and its gradients.
        parameters: the parameters that are trained.
        optimizer: their optimizer, fused.
        sums: the sums of the epoch.
    """

    def __init__(
        self,
        train: TrainConfig,
        loss: BatchLoss,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        sums: EpochSums,
    ) -> None:
        self.train, self.loss, self.parameters, self.optimizer, self.sums = train, loss, parameters, optimizer, sums

    def take(self, inputs: StepInputs, rate: float | torch.Tensor) -> None:
        """See `Step.take`; the learning rate may also be a tensor on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.loss.backward(inputs)
        clip = self.train.gradient_clip
        largest_norm = float(rate) if clip == "learning_rate" else clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, largest_norm)
        # The fused optimizer skips the step itself where `found_inf` is 1, which a gradient scaler would set. All ranks
        # have the same gradients, so all skip the same steps.
        skip = self.sums.add(loss, norm)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, skip  # type: ignore[attr-defined]
        self.optimizer.step()
