"""Inputs of the minimal recurrence, and the weights of its formulation in log space."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def log_weights(gates: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """log a and log(1 - a) as the paper writes them (3.2 for one gate, 3.1 for two), of gates before activation."""
    if len(gates) == 1:
        return -F.softplus(gates[0]), -F.softplus(-gates[0])
    difference = F.softplus(-gates[0]) - F.softplus(-gates[1])
    return -F.softplus(difference), -F.softplus(-difference)


def inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks and initial state of random sizes and magnitudes up to 1e4."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    steps, batch, channels, blocks = draw(1, 12), draw(1, 3), draw(1, 5), draw(2, 3)
    height, width = draw(1, 5), draw(1, 5)
    scale = 10 ** float(4 * torch.rand((), generator=generator, dtype=torch.float64))
    shape = (steps, batch, blocks * channels, height, width)
    h0 = 0.1 + torch.rand(batch, channels, height, width, generator=generator)
    return (scale * torch.randn(shape, generator=generator)).clamp(-1e4, 1e4), h0
