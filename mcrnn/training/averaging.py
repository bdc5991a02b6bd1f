"""Averages of the weights over training steps."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a model's weights, updated by its method `update_parameters`.

    After n steps the decay is (1 + n) / (10 + n), but at most `decay`: the average spans a tenth of the steps so far
    until that is 1 / (1 - decay) steps. With the same decay from the first step on, the average would consist mostly of
    the untrained network until then, and early errors would say more of the number of steps than of the configuration.

    Args:
        model: the model that is trained.
        decay: share of the average that a step keeps, once there were enough steps; below 1.
    """
    return _MovingAverage(model, decay)


class _MovingAverage(AveragedModel):
    """PyTorch's own would copy the number of steps to the GPU in each step, and wait for it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        steps = self.n_averaged  # on the host
        share = 1 - ((1 + steps) / (10 + steps)).clamp(max=self.decay)
        averages: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for average, value in zip(_state(self.module), _state(model), strict=True):
            if average.is_floating_point() and steps > 0:
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        if averages:
            torch._foreach_lerp_(averages, values, float(share))
        steps += 1


def _state(model: nn.Module) -> itertools.chain[torch.Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
