"""The gates of ConvLSTM and ConvGRU as kernels for GPUs: one for all that stands between two convolutions.

They compute what the functions of these names in `mcrnn.models.gates` do, in float32. What goes into a convolution, and
the gradient of what comes out of one, is written padded: a program holds some values of the padded grid, and reads the
grid point that each of them repeats. A result for such a point is then computed, and written, once for each repetition,
always with the same value. So no kernel may overwrite what it reads.

Tensors lie in memory with the channels last. Inputs, which may come from another layer, and gradients of states, which
may be a part of the channels of another tensor, lie in any layout: their strides are arguments.

Axes: B batch, C channels, H height, W width; K blocks of C channels, the gates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from mcrnn.models.minimal_recurrence_triton import in_rows, strides_of

if TYPE_CHECKING:
    from mcrnn.models.gated_recurrence import StepConvolution

BLOCK = 256
"""Values of one tensor of C channels that a program holds."""


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2.0 * _sigmoid(2.0 * x) - 1.0


@triton.jit
def _load(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _places(points, size, channels, grid, padded, BLOCK: tl.constexpr):
    """Return the mask and channel of a program's values, and where they are.

    These are the place on the padded grids of all samples, and the sample, its grid point, and that among the points of
    all samples.
    """
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    channel, place = element % channels, element // channels
    sample = place // padded
    point = tl.load(points + place % padded, mask=mask, other=0)
    return mask, channel, place, sample, point, sample * grid + point


@triton.jit
def _store_joined(both, x_value, state_value, place, channel, channels, mask):
    at = place * 2 * channels + channel
    tl.store(both + at, x_value, mask=mask)
    tl.store(both + at + channels, state_value, mask=mask)


@triton.jit
def _join(x, x_b, x_c, x_p, state, both, points, size, channels, grid, padded, BLOCK: tl.constexpr):
    mask, channel, place, sample, point, source = _places(points, size, channels, grid, padded, BLOCK)
    value = _load(x + sample * x_b + channel * x_c + point * x_p, mask)
    _store_joined(both, value, _load(state + source * channels + channel, mask), place, channel, channels, mask)


@triton.jit
def _lstm_gates(gates, source, channel, channels, mask):
    at = source * 4 * channels + channel
    n = _tanh(_load(gates + at, mask))
    i = _sigmoid(_load(gates + at + channels, mask))
    f = _sigmoid(_load(gates + at + 2 * channels, mask))
    o = _sigmoid(_load(gates + at + 3 * channels, mask))
    return n, i, f, o


@triton.jit
def _lstm_forward(
    gates, c_before, h, c, x, x_b, x_c, x_p, both, points, size, channels, grid, padded,
    HAS_NEXT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, channel, place, sample, point, source = _places(points, size, channels, grid, padded, BLOCK)
    n, i, f, o = _lstm_gates(gates, source, channel, channels, mask)
    new_c = f * _load(c_before + source * channels + channel, mask) + i * n
    new_h = o * _tanh(new_c)
    tl.store(c + source * channels + channel, new_c, mask=mask)
    tl.store(h + source * channels + channel, new_h, mask=mask)
    if HAS_NEXT:
        value = _load(x + sample * x_b + channel * x_c + point * x_p, mask)
        _store_joined(both, value, new_h, place, channel, channels, mask)


@triton.jit
def _lstm_backward(
    grad, grad_b, grad_c, grad_p, of_h, of_h_b, of_h_c, of_h_p, of_c, gates, c_before, c, of_gates, of_c_before,
    points, size, channels, grid, padded, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, channel, place, sample, point, source = _places(points, size, channels, grid, padded, BLOCK)
    n, i, f, o = _lstm_gates(gates, source, channel, channels, mask)
    total = _load(grad + sample * grad_b + channel * grad_c + point * grad_p, mask)
    total += _load(of_h + sample * of_h_b + channel * of_h_c + point * of_h_p, mask)
    tanh_c = _tanh(_load(c + source * channels + channel, mask))
    total_c = _load(of_c + source * channels + channel, mask) + total * o * (1.0 - tanh_c * tanh_c)
    before = _load(c_before + source * channels + channel, mask)
    at = place * 4 * channels + channel
    tl.store(of_gates + at, total_c * i * (1.0 - n * n), mask=mask)
    tl.store(of_gates + at + channels, total_c * n * i * (1.0 - i), mask=mask)
    tl.store(of_gates + at + 2 * channels, total_c * before * f * (1.0 - f), mask=mask)
    tl.store(of_gates + at + 3 * channels, total * tanh_c * o * (1.0 - o), mask=mask)
    tl.store(of_c_before + source * channels + channel, total_c * f, mask=mask)


@triton.jit
def _gru_reset(
    gates, h_before, x, x_b, x_c, x_p, both, points, size, channels, grid, padded, BLOCK: tl.constexpr
):  # fmt: skip
    mask, channel, place, sample, point, source = _places(points, size, channels, grid, padded, BLOCK)
    r = _sigmoid(_load(gates + source * 2 * channels + channel + channels, mask))
    value = _load(x + sample * x_b + channel * x_c + point * x_p, mask)
    reset = r * _load(h_before + source * channels + channel, mask)
    _store_joined(both, value, reset, place, channel, channels, mask)


@triton.jit
def _gru_update(
    candidate, gates, h_before, h, x, x_b, x_c, x_p, both, points, size, channels, grid, padded,
    HAS_NEXT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, channel, place, sample, point, source = _places(points, size, channels, grid, padded, BLOCK)
    z = _sigmoid(_load(gates + source * 2 * channels + channel, mask))
    n = _tanh(_load(candidate + source * channels + channel, mask))
    before = _load(h_before + source * channels + channel, mask)
    new_h = before + z * (n - before)
    tl.store(h + source * channels + channel, new_h, mask=mask)
    if HAS_NEXT:
        value = _load(x + sample * x_b + channel * x_c + point * x_p, mask)
        _store_joined(both, value, new_h, place, channel, channels, mask)


@triton.jit
def _gru_candidate_backward(
    grad, grad_b, grad_c, grad_p, of_h, of_h_b, of_h_c, of_h_p, carry, gates, candidate, of_candidate, total_of_h,
    points, size, channels, grid, padded, HAS_CARRY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, channel, place, sample, point, source = _places(points, size, channels, grid, padded, BLOCK)
    total = _load(grad + sample * grad_b + channel * grad_c + point * grad_p, mask)
    total += _load(of_h + sample * of_h_b + channel * of_h_c + point * of_h_p, mask)
    if HAS_CARRY:
        total += _load(carry + source * channels + channel, mask)
    z = _sigmoid(_load(gates + source * 2 * channels + channel, mask))
    n = _tanh(_load(candidate + source * channels + channel, mask))
    tl.store(of_candidate + place * channels + channel, total * z * (1.0 - n * n), mask=mask)
    tl.store(total_of_h + source * channels + channel, total, mask=mask)


@triton.jit
def _gru_gates_backward(
    total_of_h, of_reset, of_reset_b, of_reset_c, of_reset_p, gates, candidate, h_before, of_gates, of_h_before,
    points, size, channels, grid, padded, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, channel, place, sample, point, source = _places(points, size, channels, grid, padded, BLOCK)
    total = _load(total_of_h + source * channels + channel, mask)
    reset = _load(of_reset + sample * of_reset_b + channel * of_reset_c + point * of_reset_p, mask)
    z = _sigmoid(_load(gates + source * 2 * channels + channel, mask))
    r = _sigmoid(_load(gates + source * 2 * channels + channel + channels, mask))
    n = _tanh(_load(candidate + source * channels + channel, mask))
    before = _load(h_before + source * channels + channel, mask)
    at = place * 2 * channels + channel
    tl.store(of_gates + at, total * (n - before) * z * (1.0 - z), mask=mask)
    tl.store(of_gates + at + channels, reset * before * r * (1.0 - r), mask=mask)
    tl.store(of_h_before + source * channels + channel, total * (1.0 - z) + reset * r, mask=mask)


def join(x_BCHW: torch.Tensor, state_BCHW: torch.Tensor, convolution: StepConvolution) -> torch.Tensor:
    """Return [input, state], padded."""
    both = _padded(state_BCHW, 2, convolution)
    _launch(_join, state_BCHW, convolution, *_with_strides(x_BCHW), state_BCHW, both)
    return both


def lstm_forward(
    gates_BKHW: torch.Tensor, c_BCHW: torch.Tensor, x_BCHW: torch.Tensor | None, convolution: StepConvolution
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the new h and c, and what the next step convolves, None after the last step."""
    h, c = torch.empty_like(c_BCHW), torch.empty_like(c_BCHW)
    has_next = x_BCHW is not None
    x_BCHW, both = (x_BCHW, _padded(c, 2, convolution)) if x_BCHW is not None else (c_BCHW, c)
    _launch(
        _lstm_forward, c_BCHW, convolution, gates_BKHW, c_BCHW, h, c, *_with_strides(x_BCHW), both, HAS_NEXT=has_next
    )
    return h, c, both if has_next else None


def lstm_backward(
    grad_BCHW: torch.Tensor,
    grad_h: torch.Tensor,
    grad_c: torch.Tensor,
    gates_BKHW: torch.Tensor,
    c_before: torch.Tensor,
    c: torch.Tensor,
    convolution: StepConvolution,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the gates before their activation, padded, and of the c before the step."""
    grad_c = grad_c.contiguous(memory_format=torch.channels_last)
    of_gates, of_c = _padded(c, 4, convolution), torch.empty_like(c)
    of_states = *_with_strides(grad_BCHW), *_with_strides(grad_h), grad_c
    _launch(_lstm_backward, c, convolution, *of_states, gates_BKHW, c_before, c, of_gates, of_c)
    return of_gates, of_c


def gru_reset(
    gates_BKHW: torch.Tensor, h_BCHW: torch.Tensor, x_BCHW: torch.Tensor, convolution: StepConvolution
) -> torch.Tensor:
    """Return what the candidate's convolution takes, [x, r h], padded."""
    both = _padded(h_BCHW, 2, convolution)
    _launch(_gru_reset, h_BCHW, convolution, gates_BKHW, h_BCHW, *_with_strides(x_BCHW), both)
    return both


def gru_update(
    candidate_BCHW: torch.Tensor,
    gates_BKHW: torch.Tensor,
    h_BCHW: torch.Tensor,
    x_BCHW: torch.Tensor | None,
    convolution: StepConvolution,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the new h, and what the next step convolves for its gates, None after the last step."""
    h = torch.empty_like(h_BCHW)
    has_next = x_BCHW is not None
    x_BCHW, both = (x_BCHW, _padded(h, 2, convolution)) if x_BCHW is not None else (h_BCHW, h)
    tensors = candidate_BCHW, gates_BKHW, h_BCHW, h
    _launch(_gru_update, h_BCHW, convolution, *tensors, *_with_strides(x_BCHW), both, HAS_NEXT=has_next)
    return h, both if has_next else None


def gru_candidate_backward(
    grad_BCHW: torch.Tensor,
    grad_h: torch.Tensor,
    carry: torch.Tensor | None,
    gates_BKHW: torch.Tensor,
    candidate: torch.Tensor,
    convolution: StepConvolution,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of the candidate before its activation, padded, and that of the step's h."""
    has_carry = carry is not None
    total = torch.empty_like(candidate, dtype=torch.float32)
    of_candidate = _padded(total, 1, convolution)
    of_states = *_with_strides(grad_BCHW), *_with_strides(grad_h), total if carry is None else carry
    tensors = gates_BKHW, candidate, of_candidate, total
    _launch(_gru_candidate_backward, total, convolution, *of_states, *tensors, HAS_CARRY=has_carry)
    return of_candidate, total


def gru_gates_backward(
    total: torch.Tensor,
    grad_reset: torch.Tensor,
    gates_BKHW: torch.Tensor,
    candidate: torch.Tensor,
    h_before: torch.Tensor,
    convolution: StepConvolution,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the gates before their activation, padded, and in part of h before the step."""
    of_gates, of_h = _padded(h_before, 2, convolution), torch.empty_like(h_before)
    tensors = gates_BKHW, candidate, h_before, of_gates, of_h
    _launch(_gru_gates_backward, h_before, convolution, total, *_with_strides(grad_reset), *tensors)
    return of_gates, of_h


def _padded(like_BCHW: torch.Tensor, blocks: int, convolution: StepConvolution) -> torch.Tensor:
    """Return uninitialised memory for so many blocks of channels on the padded grid, of the convolution's dtype."""
    assert convolution.points is not None
    batch, channels = like_BCHW.shape[:2]
    shape = (batch, blocks * channels, *convolution.points.shape)
    dtype = convolution.conv.weight.dtype
    return torch.empty(shape, dtype=dtype, device=like_BCHW.device, memory_format=torch.channels_last)


def _with_strides(x_BCHW: torch.Tensor) -> tuple[torch.Tensor | int, ...]:
    """Return a tensor of any layout and its strides, of samples, channels and grid points."""
    x_BCHW = in_rows(x_BCHW)
    return x_BCHW, *strides_of(x_BCHW)


def _launch(kernel, state_BCHW: torch.Tensor, convolution: StepConvolution, *arguments, **flags: bool) -> None:
    """Run a kernel on the padded grid, for states of this shape."""
    batch, channels, height, width = state_BCHW.shape
    points = convolution.points
    assert points is not None
    size = batch * points.numel() * channels
    with torch.cuda.device_of(state_BCHW):
        kernel[(triton.cdiv(size, BLOCK),)](
            *arguments, points, size, channels, height * width, points.numel(), **flags, BLOCK=BLOCK
        )
