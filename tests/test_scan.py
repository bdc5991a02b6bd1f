"""The direct form of the recurrence against the paper's log-space form in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mcrnn.models.cells import CELLS, MinimalCell
from mcrnn.models.scan import g, log_space_scan, scan

MINIMAL = {name: cell for name, cell in CELLS.items() if issubclass(cell, MinimalCell)}


def log_weights(architecture: str, gates: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """log a and log(1 - a) as the paper writes them, for gates before activation."""
    if architecture == "minconvgru":  # eq. of 3.2: z = sigmoid(k)
        return -F.softplus(gates[0]), -F.softplus(-gates[0])
    if architecture == "minconvlstm":  # eq. of 3.1: f' = f / (f + i)
        diff = F.softplus(-gates[0]) - F.softplus(-gates[1])
        return -F.softplus(diff), -F.softplus(-diff)
    diff = gates[0] - gates[1]  # eq. of 3.3: exponential gates
    return F.logsigmoid(diff), F.logsigmoid(-diff)


def retention(architecture: str, gates: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """a as our cells compute it; MinConvExpLSTM's convolution already gives f - i."""
    if architecture == "minconvexplstm":
        gates = (gates[0] - gates[1],)
    return MINIMAL[architecture].retention(gates)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("architecture", MINIMAL)
def test_direct_form_agrees_with_log_space_in_float64(architecture: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    count = MINIMAL[architecture].gates + 1
    inputs = [scale * torch.randn(2, 9, 3, 4, 4, generator=generator) for _ in range(count)]
    weight = torch.randn(2, 9, 3, 4, 4, generator=generator)

    direct = [x.clone().requires_grad_() for x in inputs]
    h0 = torch.full((2, 3, 4, 4), 0.5)
    y = scan(retention(architecture, tuple(direct[:-1])), direct[-1], h0)
    (y * weight).sum().backward()

    wide = [x.double().requires_grad_() for x in inputs]
    reference = log_space_scan(*log_weights(architecture, tuple(wide[:-1])), wide[-1], h0.double())
    (reference * weight.double()).sum().backward()

    assert torch.allclose(y.double(), reference, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(direct, wide, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm()


def test_gradients_are_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(2, 5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    v = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    h0 = torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(scan, (a, v, h0))


def test_one_step_is_the_definition() -> None:
    a, v, h0 = torch.tensor([[0.25]]), torch.tensor([[2.0]]), torch.tensor([4.0])
    assert scan(a, v, h0).item() == 0.25 * 4 + 0.75 * 2.5


def test_g_is_continuous_positive_and_as_the_paper_defines_it() -> None:
    v = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    assert torch.allclose(g(v), torch.where(v >= 0, v + 0.5, torch.sigmoid(v)))
    assert g(torch.zeros(())) == 0.5
    assert (g(v) > 0).all()


def test_extreme_inputs_give_finite_outputs_and_gradients() -> None:
    gates = torch.tensor([[-1e4, 1e4, 0.0, -1e4]]).requires_grad_()
    v = torch.tensor([[1e4, -1e4, 1e4, 0.0]]).requires_grad_()
    scan(torch.sigmoid(gates), v, torch.tensor([0.5])).sum().backward()
    assert gates.grad is not None
    assert v.grad is not None
    assert gates.grad.isfinite().all()
    assert v.grad.isfinite().all()
