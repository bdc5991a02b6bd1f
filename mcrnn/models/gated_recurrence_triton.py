"""The gates of ConvLSTM and ConvGRU as kernels for GPUs: one for all that stands between two convolutions.

They compute what the functions of these names in `mcrnn.models.gated_recurrence` do, in float32. A program holds some
values of the grid's points and channels. All tensors lie in memory with the channels last; where a tensor is a part of
the channels of another, the distance from point to point (`row`) is larger than the number of channels.

Axes: B batch, C channels, H height, W width; K blocks of C channels, the gates.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256
"""Values of one tensor of C channels that a program holds."""


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2.0 * _sigmoid(2.0 * x) - 1.0


@triton.jit
def _join(x, state, points, both, size, channels, grid, padded, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    channel, place = element % (2 * channels), element // (2 * channels)
    source = place // padded * grid + tl.load(points + place % padded, mask=mask, other=0)
    of_state = channel >= channels
    at = source * channels + tl.where(of_state, channel - channels, channel)
    value = tl.load(x + at, mask=mask & (of_state == 0), other=0.0)
    value += tl.load(state + at, mask=mask & of_state, other=0.0)
    tl.store(both + element, value, mask=mask)


@triton.jit
def _lstm_forward(gates, c_before, h, c, size, channels, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    at = element // channels * 4 * channels + element % channels
    n = _tanh(tl.load(gates + at, mask=mask, other=0.0))
    i = _sigmoid(tl.load(gates + at + channels, mask=mask, other=0.0))
    f = _sigmoid(tl.load(gates + at + 2 * channels, mask=mask, other=0.0))
    o = _sigmoid(tl.load(gates + at + 3 * channels, mask=mask, other=0.0))
    value = f * tl.load(c_before + element, mask=mask, other=0.0) + i * n
    tl.store(c + element, value, mask=mask)
    tl.store(h + element, o * _tanh(value), mask=mask)
    tl.store(gates + at, n, mask=mask)
    tl.store(gates + at + channels, i, mask=mask)
    tl.store(gates + at + 2 * channels, f, mask=mask)
    tl.store(gates + at + 3 * channels, o, mask=mask)


@triton.jit
def _lstm_backward(
    grad, grad_h, row, grad_c, gates, c_before, c, of_gates, of_c, size, channels, BLOCK: tl.constexpr
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    point, channel = element // channels, element % channels
    at = point * 4 * channels + channel
    n = tl.load(gates + at, mask=mask, other=0.0)
    i = tl.load(gates + at + channels, mask=mask, other=0.0)
    f = tl.load(gates + at + 2 * channels, mask=mask, other=0.0)
    o = tl.load(gates + at + 3 * channels, mask=mask, other=0.0)
    total = tl.load(grad + element, mask=mask, other=0.0)
    total += tl.load(grad_h + point * row + channel, mask=mask, other=0.0)
    tanh_c = _tanh(tl.load(c + element, mask=mask, other=0.0))
    total_c = tl.load(grad_c + element, mask=mask, other=0.0) + total * o * (1.0 - tanh_c * tanh_c)
    tl.store(of_gates + at, total_c * i * (1.0 - n * n), mask=mask)
    tl.store(of_gates + at + channels, total_c * n * i * (1.0 - i), mask=mask)
    before = tl.load(c_before + element, mask=mask, other=0.0)
    tl.store(of_gates + at + 2 * channels, total_c * before * f * (1.0 - f), mask=mask)
    tl.store(of_gates + at + 3 * channels, total * tanh_c * o * (1.0 - o), mask=mask)
    tl.store(of_c + element, total_c * f, mask=mask)


@triton.jit
def _gru_reset(gates, h_before, reset, size, channels, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    at = element // channels * 2 * channels + element % channels
    z = _sigmoid(tl.load(gates + at, mask=mask, other=0.0))
    r = _sigmoid(tl.load(gates + at + channels, mask=mask, other=0.0))
    tl.store(gates + at, z, mask=mask)
    tl.store(gates + at + channels, r, mask=mask)
    tl.store(reset + element, r * tl.load(h_before + element, mask=mask, other=0.0), mask=mask)


@triton.jit
def _gru_update(candidate, gates, h_before, h, size, channels, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    z = tl.load(gates + element // channels * 2 * channels + element % channels, mask=mask, other=0.0)
    n = _tanh(tl.load(candidate + element, mask=mask, other=0.0))
    before = tl.load(h_before + element, mask=mask, other=0.0)
    tl.store(candidate + element, n, mask=mask)
    tl.store(h + element, before + z * (n - before), mask=mask)


@triton.jit
def _gru_update_backward(
    grad, carry, grad_h, row, gates, candidate, h_before, of_gates, of_candidate, of_h, size, channels,
    BLOCK: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    point, channel = element // channels, element % channels
    at = point * 2 * channels + channel
    total = tl.load(grad + element, mask=mask, other=0.0) + tl.load(carry + element, mask=mask, other=0.0)
    total += tl.load(grad_h + point * row + channel, mask=mask, other=0.0)
    z = tl.load(gates + at, mask=mask, other=0.0)
    n = tl.load(candidate + element, mask=mask, other=0.0)
    before = tl.load(h_before + element, mask=mask, other=0.0)
    tl.store(of_gates + at, total * (n - before) * z * (1.0 - z), mask=mask)
    tl.store(of_candidate + element, total * z * (1.0 - n * n), mask=mask)
    tl.store(of_h + element, total * (1.0 - z), mask=mask)


@triton.jit
def _gru_reset_backward(grad_reset, row, gates, h_before, of_gates, of_h, size, channels, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    point, channel = element // channels, element % channels
    at = point * 2 * channels + channel + channels
    total = tl.load(grad_reset + point * row + channel, mask=mask, other=0.0)
    r = tl.load(gates + at, mask=mask, other=0.0)
    before = tl.load(h_before + element, mask=mask, other=0.0)
    tl.store(of_gates + at, total * before * r * (1.0 - r), mask=mask)
    tl.store(of_h + element, tl.load(of_h + element, mask=mask, other=0.0) + total * r, mask=mask)


def join(
    x_BCHW: torch.Tensor, state_BCHW: torch.Tensor, points: torch.Tensor, padded: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Return [input, state] padded to this height and width, whose points repeat these points of the grid."""
    batch, channels, height, width = x_BCHW.shape
    both = torch.empty((batch, *padded, 2 * channels), dtype=dtype, device=x_BCHW.device)
    numbers = both.numel(), channels, height * width, len(points)
    _launch(_join, both.numel(), x_BCHW, state_BCHW, points, both, *numbers)
    return both.permute(0, 3, 1, 2)


def lstm_forward(gates_BKHW: torch.Tensor, c_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Activate the gates in place, and return the new h and c."""
    h, c = torch.empty_like(c_BCHW), torch.empty_like(c_BCHW)
    _launch(_lstm_forward, c.numel(), gates_BKHW, c_BCHW, h, c, c.numel(), c.shape[1])
    return h, c


def lstm_backward(
    grad_BCHW: torch.Tensor,
    grad_h: torch.Tensor,
    grad_c: torch.Tensor,
    gates_BKHW: torch.Tensor,
    c_before: torch.Tensor,
    c: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the gates before their activation, and of the c before the step."""
    of_gates, of_c = torch.empty_like(gates_BKHW), torch.empty_like(c)
    numbers = c.numel(), c.shape[1]
    _launch(
        _lstm_backward, c.numel(),
        grad_BCHW, grad_h, _row(grad_h), grad_c, gates_BKHW, c_before, c, of_gates, of_c, *numbers,
    )  # fmt: skip
    return of_gates, of_c


def gru_reset(gates_BKHW: torch.Tensor, h_BCHW: torch.Tensor) -> torch.Tensor:
    """Activate the gates in place, and return r h."""
    reset = torch.empty_like(h_BCHW)
    _launch(_gru_reset, reset.numel(), gates_BKHW, h_BCHW, reset, reset.numel(), reset.shape[1])
    return reset


def gru_update(candidate_BCHW: torch.Tensor, gates_BKHW: torch.Tensor, h_BCHW: torch.Tensor) -> torch.Tensor:
    """Activate the candidate in place, and return the new h."""
    h = torch.empty_like(h_BCHW)
    _launch(_gru_update, h.numel(), candidate_BCHW, gates_BKHW, h_BCHW, h, h.numel(), h.shape[1])
    return h


def gru_update_backward(
    grad_BCHW: torch.Tensor,
    carry: torch.Tensor,
    grad_h: torch.Tensor,
    gates_BKHW: torch.Tensor,
    candidate: torch.Tensor,
    h_before: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of the gates, of which r's is missing, of the candidate and, in part, of h before the step.

    The gradient of the new h is the sum of the first three arguments.
    """
    of_gates, of_candidate, of_h = (torch.empty_like(x) for x in (gates_BKHW, candidate, candidate))
    numbers = candidate.numel(), candidate.shape[1]
    _launch(
        _gru_update_backward, candidate.numel(),
        grad_BCHW, carry, grad_h, _row(grad_h), gates_BKHW, candidate, h_before, of_gates, of_candidate, of_h, *numbers,
    )  # fmt: skip
    return of_gates, of_candidate, of_h


def gru_reset_backward(
    grad_reset: torch.Tensor,
    gates_BKHW: torch.Tensor,
    h_before: torch.Tensor,
    of_gates: torch.Tensor,
    of_h: torch.Tensor,
) -> None:
    """Given the gradient of r h, write that of r, and add to that of h before the step."""
    numbers = h_before.numel(), h_before.shape[1]
    _launch(
        _gru_reset_backward, h_before.numel(),
        grad_reset, _row(grad_reset), gates_BKHW, h_before, of_gates, of_h, *numbers,
    )  # fmt: skip


def _launch(kernel, size: int, *arguments: torch.Tensor | int) -> None:
    with torch.cuda.device_of(arguments[0]):
        kernel[(triton.cdiv(size, BLOCK),)](*arguments, BLOCK=BLOCK)


def _row(part_BCHW: torch.Tensor) -> int:
    """Return the distance in memory from point to point of a tensor, or of a part of its channels."""
    channels, height, width = part_BCHW.shape[1:]
    if width > 1:
        return part_BCHW.stride(3)
    return part_BCHW.stride(2) if height > 1 else part_BCHW.stride(0) if len(part_BCHW) > 1 else channels
