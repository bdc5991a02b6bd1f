"""Averages of the weights over training steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

Weights = tuple[torch.Tensor, ...] | list[torch.Tensor]
Update = Callable[[Weights, Weights, torch.Tensor | int], None]


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a model's weights, updated by its method `update_parameters`.

    Args:
        model: the model that is trained.
        decay: share of the average that a step keeps, once there were enough steps; see `moving_average`.
    """
    return AveragedModel(model, multi_avg_fn=moving_average(decay), use_buffers=True)


def moving_average(decay: float) -> Update:
    """Return the function that takes the weights of a step into an average.

    After n steps the decay is (1 + n) / (10 + n), but at most `decay`: the average spans a tenth of the steps so far
    until that is 1 / (1 - decay) steps. With the same decay from the first step on, the average would consist mostly of
    the untrained network until then, and early errors would say more of the number of steps than of the configuration.

    Args:
        decay: largest decay, below 1.
    """

    @torch.no_grad()
    def update(averaged: Weights, current: Weights, steps: torch.Tensor | int) -> None:
        steps = torch.as_tensor(steps)
        weight = 1 - ((1 + steps) / (10 + steps)).clamp(max=decay)  # a tensor: reading it would wait for the device
        for average, value in zip(averaged, current, strict=True):
            if average.is_floating_point():
                average.lerp_(value, weight.to(average.dtype))
            else:
                average.copy_(value)

    return update
