"""Averages of the weights: what a step is worth early and late in a training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mcrnn.training.averaging import averaged_model


def shares(decay: float, steps: int) -> list[float]:
    """The weight that each step has in the average after the last one."""
    found = []
    for counted in range(steps):
        model = nn.Linear(1, 1, bias=False).double()
        average = averaged_model(model, decay)
        for step in range(steps):
            nn.init.constant_(model.weight, float(step == counted))
            average.update_parameters(model)
        found.append(average.module.weight.item())
    return found


def test_average_spans_a_tenth_of_the_first_steps() -> None:
    each = shares(0.999, 60)
    assert sum(each) == pytest.approx(1)
    assert each == sorted(each)
    assert sum(each[:30]) < 0.01  # with a decay of 0.999 throughout, the first step alone would have 94 %
    assert sum(each[-6:]) > 0.5


def test_average_has_its_decay_later() -> None:
    each = shares(0.5, 40)
    assert each[-10:] == pytest.approx([0.5**age for age in range(10, 0, -1)])


def test_average_of_a_model_in_float64_with_a_counter_stays_exact() -> None:
    model = nn.Linear(2, 2).double()
    model.register_buffer("steps", torch.tensor(0))
    average = averaged_model(model, 0.9)
    for step in range(3):
        model.steps.fill_(step)
        average.update_parameters(model)
    assert average.module.weight.dtype == torch.float64
    assert torch.equal(average.module.weight, model.weight)
    assert int(average.module.steps) == 2
