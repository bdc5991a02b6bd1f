"""The recurrence of the minimal cells as one kernel for GPUs, forward and backward.

A program of the kernel holds some grid points of one sample and goes through time with the state in registers: every
gate, candidate and state is read or written once. Activations are computed again in the backward pass rather than
kept. Gates and gradients may be of lower precision; everything in between is float32.

`run_forward` and `run_backward` compute what the functions of these names in `mcrnn.models.minimal_recurrence` do,
where the equations are; but they leave the blocks as they are.

Axes: T time, B batch, C channels, H height, W width; K blocks of C channels: the gates, then the candidate.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256
"""Elements (grid points times channels) of one sample that a program holds."""


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _update_gate(gates, offsets, mask, block_stride, GATES: tl.constexpr):
    """Return z, and the sigmoids of (f, i) where there are two gates."""
    if GATES == 1:
        z = _sigmoid(tl.load(gates + offsets, mask=mask, other=0.0).to(tl.float32))
        return z, z, z
    else:
        f = tl.load(gates + offsets, mask=mask, other=0.0).to(tl.float32)
        i = tl.load(gates + offsets + block_stride, mask=mask, other=0.0).to(tl.float32)
        # sigmoid(i) / (sigmoid(f) + sigmoid(i)), without 0 / 0 where both gates are shut
        return _sigmoid(_softplus(-f) - _softplus(-i)), _sigmoid(f), _sigmoid(i)


@triton.jit
def _forward(
    blocks, h0, h, steps, size,
    channels, points, channels_first: tl.constexpr,
    blocks_t, blocks_b, blocks_c, blocks_p,
    h_t, h_b, h_c, h_p,
    h0_b, h0_c, h0_p,
    GATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1).to(tl.int64)
    mask = element < size
    # neighbouring elements are neighbours in memory in either layout, so that reads are coalesced
    channel = element // points if channels_first else element % channels
    point = element % points if channels_first else element // channels
    block_stride = channels * blocks_c
    at_blocks = sample * blocks_b + channel * blocks_c + point * blocks_p
    at_h = sample * h_b + channel * h_c + point * h_p
    state = tl.load(h0 + sample * h0_b + channel * h0_c + point * h0_p, mask=mask, other=0.0)
    for _ in range(steps):
        z, _, _ = _update_gate(blocks, at_blocks, mask, block_stride, GATES)
        v = tl.load(blocks + at_blocks + GATES * block_stride, mask=mask, other=0.0).to(tl.float32)
        u = tl.maximum(_sigmoid(v), v + 0.5)
        state += z * (u - state)
        tl.store(h + at_h, state, mask=mask)
        at_blocks += blocks_t
        at_h += h_t


@triton.jit
def _backward(
    grad, carry, blocks, h, h0, of_blocks, of_h0, steps, size,
    channels, points, channels_first: tl.constexpr,
    grad_t, grad_b, grad_c, grad_p,
    blocks_t, blocks_b, blocks_c, blocks_p,
    h_t, h_b, h_c, h_p,
    h0_b, h0_c, h0_p,
    carry_b, carry_c, carry_p,
    HAS_CARRY: tl.constexpr, GATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1).to(tl.int64)
    mask = element < size
    channel = element // points if channels_first else element % channels
    point = element % points if channels_first else element // channels
    block_stride = channels * blocks_c
    last = sample * 0 + steps - 1  # of the sample's type, 64 bits, as the offsets need
    at_blocks = sample * blocks_b + channel * blocks_c + point * blocks_p + last * blocks_t
    at_h = sample * h_b + channel * h_c + point * h_p + last * h_t
    at_grad = sample * grad_b + channel * grad_c + point * grad_p + last * grad_t
    at_h0 = sample * h0_b + channel * h0_c + point * h0_p
    passed = tl.zeros([BLOCK], tl.float32)
    if HAS_CARRY:
        passed += tl.load(carry + sample * carry_b + channel * carry_c + point * carry_p, mask=mask, other=0.0)
    for step in range(steps):
        # time runs backward: the last of these steps is the first of the sequence, whose previous state is h0
        has_previous = (element * 0 + step) < steps - 1  # as a block, for the masks
        previous = tl.load(h + at_h - h_t, mask=mask & has_previous, other=0.0)
        previous += tl.load(h0 + at_h0, mask=mask & (has_previous == 0), other=0.0)
        z, f, i = _update_gate(blocks, at_blocks, mask, block_stride, GATES)
        v = tl.load(blocks + at_blocks + GATES * block_stride, mask=mask, other=0.0).to(tl.float32)
        sigmoid_v = _sigmoid(v)
        u = tl.maximum(sigmoid_v, v + 0.5)
        total = tl.load(grad + at_grad, mask=mask, other=0.0).to(tl.float32) + passed
        of_u = total * z
        passed = total - of_u
        of_k = total * (u - previous) * z * (1.0 - z)
        if GATES == 1:
            tl.store(of_blocks + at_blocks, of_k, mask=mask)
        else:
            tl.store(of_blocks + at_blocks, of_k * (f - 1.0), mask=mask)
            tl.store(of_blocks + at_blocks + block_stride, of_k * (1.0 - i), mask=mask)
        of_v = tl.where(v > 0, of_u, of_u * sigmoid_v * (1.0 - sigmoid_v))
        tl.store(of_blocks + at_blocks + GATES * block_stride, of_v, mask=mask)
        at_blocks -= blocks_t
        at_h -= h_t
        at_grad -= grad_t
    tl.store(of_h0 + at_h0, passed, mask=mask)


def run_forward(blocks_TBKHW: torch.Tensor, h0_BCHW: torch.Tensor, h_TBCHW: torch.Tensor) -> None:
    """Write the states into `h_TBCHW`, float32."""
    h0_BCHW = in_rows(h0_BCHW)
    grid, shared = _geometry(blocks_TBKHW, h0_BCHW)
    with torch.cuda.device_of(blocks_TBKHW):
        _forward[grid](
            blocks_TBKHW, h0_BCHW, h_TBCHW, *shared,
            *strides_of(blocks_TBKHW), *strides_of(h_TBCHW), *strides_of(h0_BCHW),
            GATES=blocks_TBKHW.shape[2] // h0_BCHW.shape[1] - 1, BLOCK=BLOCK,
        )  # fmt: skip


def run_backward(
    grad_TBCHW: torch.Tensor,
    carry_BCHW: torch.Tensor | None,
    blocks_TBKHW: torch.Tensor,
    h_TBCHW: torch.Tensor,
    h0_BCHW: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the blocks, in their precision, and of the state before the first step."""
    has_carry = carry_BCHW is not None
    grad_TBCHW, h0_BCHW = in_rows(grad_TBCHW), in_rows(h0_BCHW)
    carry_BCHW = h0_BCHW if carry_BCHW is None else in_rows(carry_BCHW)
    grid, shared = _geometry(blocks_TBKHW, h0_BCHW)
    of_blocks, of_h0 = torch.empty_like(blocks_TBKHW), torch.empty_like(h0_BCHW)
    if h0_BCHW.stride() != of_h0.stride():  # an expanded state: the kernel reads and writes both by the same strides
        h0_BCHW = torch.empty_like(of_h0).copy_(h0_BCHW)
    with torch.cuda.device_of(blocks_TBKHW):
        _backward[grid](
            grad_TBCHW, carry_BCHW, blocks_TBKHW, h_TBCHW, h0_BCHW, of_blocks, of_h0, *shared,
            *strides_of(grad_TBCHW), *strides_of(of_blocks), *strides_of(h_TBCHW), *strides_of(of_h0),
            *strides_of(carry_BCHW),
            HAS_CARRY=has_carry, GATES=blocks_TBKHW.shape[2] // h0_BCHW.shape[1] - 1, BLOCK=BLOCK,
        )  # fmt: skip
    return of_blocks, of_h0


def _geometry(blocks_TBKHW: torch.Tensor, h0_BCHW: torch.Tensor) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the grid of programs, and the arguments that both kernels share.

    These are steps, size (elements of a sample), channels, points, and whether the channels come before the grid
    points in memory.
    """
    batch, channels, height, width = h0_BCHW.shape
    points = height * width
    size = channels * points
    channels_first = strides_of(blocks_TBKHW)[-1] < blocks_TBKHW.stride(2)
    return (triton.cdiv(size, BLOCK), batch), (len(blocks_TBKHW), size, channels, points, channels_first)


def _of_points(x: torch.Tensor) -> int | None:
    """Return the stride from grid point to grid point, None where the rows do not follow one another in memory."""
    height, width = x.shape[-2:]
    of_rows, of_columns = x.stride()[-2:]
    if height == 1 or width == 1:  # the stride of an axis of length one means nothing
        return of_rows if width == 1 else of_columns
    return of_columns if of_rows == of_columns * width else None


def in_rows(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor, copied if the rows of its grid do not follow one another in memory."""
    return x.contiguous() if _of_points(x) is None else x


def strides_of(x: torch.Tensor) -> tuple[int, ...]:
    """Return the strides, with one for the grid points in place of those of rows and columns."""
    of_points = _of_points(x)
    assert of_points is not None, "rows of the grid must follow each other in memory"
    return *x.stride()[:-2], of_points
