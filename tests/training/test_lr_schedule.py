from __future__ import annotations

from typing import Any

import pytest
import torch

from mcrnn.training.lr_schedule import learning_rate
from mcrnn.training.session import OBJECTIVE, Metrics
from tests.training.test_trainer import configuration


def test_learning_rate_follows_its_schedule() -> None:
    def rates(steps: int, history: list[Metrics] | None = None, **train: Any) -> list[float]:
        config = configuration(learning_rate=1.0, **train).train
        return [learning_rate(config, step, 4, history or []) for step in range(steps)]

    assert rates(3, schedule="constant") == [1.0, 1.0, 1.0]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    for rate in rates(12, schedule="cosine"):
        assert rate == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()
    assert rates(4, schedule="constant", warm_up_epochs=0.5) == [0.5, 1.0, 1.0, 1.0]
    worse = [{OBJECTIVE: value} for value in (3.0, 2.0, 2.5, 2.4, 2.3, 2.2)]
    assert rates(1, worse, schedule="plateau", plateau_epochs=2) == [0.25]
    assert rates(1, worse[:3], schedule="plateau", plateau_epochs=2) == [1.0]
