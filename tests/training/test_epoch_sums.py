"""Sums over the steps of an epoch."""

from __future__ import annotations

import torch

from mcrnn.training.epoch_sums import EpochSums


def test_steps_without_a_finite_gradient_are_counted_and_left_out_of_the_sums() -> None:
    sums = EpochSums(torch.device("cpu"))
    norms = (1.0, torch.nan, torch.inf, 2.0, torch.nan)
    skips = [sums.add(torch.tensor(norm + 10), torch.tensor(norm)) for norm in norms]
    assert [float(skip) for skip in skips] == [0, 1, 1, 0, 1]
    assert all(skip.dtype == torch.float32 for skip in skips)  # as the fused optimizer takes it
    assert dict(zip(sums.NAMES, sums.values(), strict=True)) == {
        "loss": 23.0,
        "gradient_norm": 3.0,
        "skipped": 3.0,
        "skipped_in_a_row": 1.0,
        "longest_row": 2.0,
    }
    assert sums.check_divergence(steps_per_epoch=2)
    assert not sums.check_divergence(steps_per_epoch=3)
