"""The recurrence of the minimal cells, h_t = (1 - z_t) h_{t-1} + z_t g(v_t), for all t at once.

Horuz et al. (2025, arXiv 2508.03614) evaluate it as a cumulative sum in log space, as Feng et al. (2024,
arXiv 2410.01201, appendix B) do. But each h_t is a convex combination of h_{t-1} and g(v_t) and cannot
overflow, so it needs no logarithms: `minimal_recurrence` runs the plain loop over time, with the gates, the
candidate's activation and the gradient by hand. `ConvolvedRecurrence` runs it behind a convolution, as the cells do.
`log_space_scan` is the paper's formulation, the reference in tests.

Axes: T time, B batch, C channels, H height, W width; K blocks of C channels: the gates, then the candidate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mcrnn import device
from mcrnn.models.prepared_convolution import PreparedConv, cache_sized_slices, empty_frames_like

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
threshold_backward = torch.ops.aten.threshold_backward.grad_input
SHUT = -20.0
"""Below it sigmoid(x) equals exp(x) to 2e-9, so the ratio of two sigmoids is unchanged if both arguments are raised."""


def g(v: torch.Tensor) -> torch.Tensor:
    """Return the positive candidate activation: v + 0.5 where v >= 0, else sigmoid(v); the larger of the two."""
    return torch.maximum(torch.sigmoid(v), v + 0.5)


def minimal_recurrence(blocks_TBKHW: torch.Tensor, h0_BCHW: torch.Tensor) -> torch.Tensor:
    """Return all h_t of h_t = (1 - z_t) h_{t-1} + z_t g(v_t), t = 1 .. T.

    With two blocks of channels (k, v), z = sigmoid(k). With three (f, i, v), z is the input gate normalised with
    the forget gate, sigmoid(i) / (sigmoid(f) + sigmoid(i)).

    Args:
        blocks_TBKHW: gates and candidate before their activations, in any memory layout.
        h0_BCHW: the state before the first step.

    Returns:
        h_TBCHW, of the state's dtype, in which everything is computed.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    steps, batch, channels = blocks_TBKHW.shape[:3]
    if channels not in (2 * h0_BCHW.shape[1], 3 * h0_BCHW.shape[1]) or h0_BCHW.shape[0] != batch or steps == 0:
        raise ValueError(
            f"expected two or three blocks of {h0_BCHW.shape[1]} channels for {h0_BCHW.shape[0]} samples and at "
            f"least one step, got {tuple(blocks_TBKHW.shape)} (time, batch, channel, height, width)"
        )
    return _MinimalRecurrence.apply(blocks_TBKHW, h0_BCHW)


def activate_(blocks_TBKHW: torch.Tensor, channels: int) -> torch.Tensor:
    """Activate gates and candidate in place: sigmoid of the gates (k) or (f, i), and u = g(v).

    Args:
        blocks_TBKHW: gates and candidate, channels last.
        channels: of a block.

    Returns:
        z_TBCHW, which may share memory with the gates.
    """
    gates, v_TBCHW = blocks_TBKHW[:, :, :-channels], blocks_TBKHW[:, :, -channels:]
    raised = v_TBCHW + 0.5
    if gates.shape[2] > channels:
        f, i = gates[:, :, :channels], gates[:, :, channels:]
        # where both gates are so far shut that their quotient would be 0 / 0, both are raised by as much
        shift = torch.maximum(f, i).sub_(SHUT).clamp_(max=0)
        f.sub_(shift)
        i.sub_(shift)
    blocks_TBKHW.sigmoid_()
    torch.maximum(v_TBCHW, raised, out=v_TBCHW)
    return update_gate(gates, channels)


def update_gate(gates_TBKHW: torch.Tensor, channels: int) -> torch.Tensor:
    """Return z, given the sigmoids of (k) or of (f, i)."""
    if gates_TBKHW.shape[2] == channels:
        return gates_TBKHW
    f, i = gates_TBKHW[:, :, :channels], gates_TBKHW[:, :, channels:]
    total = f + i
    return torch.div(i, total, out=total)


def run_forward(blocks_TBKHW: torch.Tensor, h0_BCHW: torch.Tensor, h_TBCHW: torch.Tensor) -> None:
    """Write the states into `h_TBCHW`; the blocks are overwritten with what `run_backward` needs, their activations."""
    channels = h0_BCHW.shape[1]
    z_TBCHW = activate_(blocks_TBKHW, channels)
    u_TBCHW = blocks_TBKHW[:, :, -channels:]
    previous = h0_BCHW
    for h_BCHW, u_BCHW, z_BCHW in zip(h_TBCHW, u_TBCHW, z_TBCHW, strict=True):
        previous = torch.lerp(previous, u_BCHW, z_BCHW, out=h_BCHW)


def run_backward(
    grad_TBCHW: torch.Tensor,
    carry_BCHW: torch.Tensor | None,
    kept_TBKHW: torch.Tensor,
    h_TBCHW: torch.Tensor,
    h0_BCHW: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the blocks and of the state before the first step.

    With u_t = g(v_t) and G_t = dL/dh_t, the gradient that reaches h_t from all later outputs,

        G_t = dL/dy_t + (1 - z_{t+1}) G_{t+1},   dL/dz_t = G_t (u_t - h_{t-1}),   dL/du_t = z_t G_t,
        dL/dh_0 = (1 - z_1) G_1.

    Args:
        grad_TBCHW: dL/dy, the gradient of each state as an output.
        carry_BCHW: the gradient that reaches the last state from later steps, None if there are none.
        kept_TBKHW: the blocks as `run_forward` left them.
        h_TBCHW: the states.
        h0_BCHW: the state before the first step.
    """
    channels = h0_BCHW.shape[1]
    gates, u_TBCHW = kept_TBKHW[:, :, :-channels], kept_TBKHW[:, :, -channels:]
    z_TBCHW = update_gate(gates, channels)
    result_TBKHW = torch.empty_like(kept_TBKHW)
    grad_gates, grad_u = result_TBKHW[:, :, :-channels], result_TBKHW[:, :, -channels:]
    total_TBCHW = torch.empty_like(h_TBCHW).copy_(grad_TBCHW)
    for t in range(len(h_TBCHW) - 1, -1, -1):
        total = total_TBCHW[t]
        if carry_BCHW is not None:
            total.add_(carry_BCHW)
        torch.mul(total, z_TBCHW[t], out=grad_u[t])
        carry_BCHW = total - grad_u[t]
    assert carry_BCHW is not None
    # dL/dz, and from it the gradients of the gates before their sigmoids
    grad_z = torch.empty_like(h_TBCHW)
    torch.sub(u_TBCHW[0], h0_BCHW, out=grad_z[0])
    if len(h_TBCHW) > 1:
        torch.sub(u_TBCHW[1:], h_TBCHW[:-1], out=grad_z[1:])
    grad_z.mul_(total_TBCHW)
    if gates.shape[2] == channels:
        sigmoid_backward(grad_z, z_TBCHW, grad_input=grad_gates)
    else:
        # z = sigmoid(log sigmoid(i) - log sigmoid(f)), and d log sigmoid(x) / dx = 1 - sigmoid(x)
        grad_k = sigmoid_backward(grad_z, z_TBCHW, grad_input=grad_z)
        f, i = gates[:, :, :channels], gates[:, :, channels:]
        torch.addcmul(grad_k, grad_k, i, value=-1, out=grad_gates[:, :, channels:])
        torch.mul(grad_k, f, out=grad_gates[:, :, :channels]).sub_(grad_k)
    # dL/dv = g'(v) dL/du, where g'(v) = u (1 - u) for u <= 0.5, which is v <= 0, and 1 above. Without a branch:
    # m (1 - m) with m = min(u, 0.5), which is 1/4 where u > 0.5, and 3/4 more there. The buffers of dL/dz and G are
    # as large as needed and no longer read, so they are used again: memory decides the speed here.
    spare_1, spare_2 = grad_z, total_TBCHW
    above = threshold_backward(grad_u, u_TBCHW, 0.5, grad_input=spare_1)  # dL/du where u > 0.5, else 0
    m = torch.clamp(u_TBCHW, max=0.5, out=spare_2)
    sigmoid_backward(grad_u, m, grad_input=grad_u).add_(above, alpha=0.75)
    return result_TBKHW, carry_BCHW


class Implementation(NamedTuple):
    """The two directions of the recurrence, for one kind of device."""

    run_forward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
    run_backward: Callable[..., tuple[torch.Tensor, torch.Tensor]]


CPU = Implementation(run_forward, run_backward)


@functools.cache
def _fused() -> Implementation | None:
    """Return the fused kernel for GPUs; None without Triton, which comes with PyTorch for CUDA."""
    try:
        from mcrnn.models import minimal_recurrence_triton
    except ImportError:
        return None
    return Implementation(minimal_recurrence_triton.run_forward, minimal_recurrence_triton.run_backward)


def implementation(h_BCHW: torch.Tensor) -> Implementation:
    """Return the implementation for such states: the fused kernel for float32 on GPUs, else the functions above."""
    if not device.on_processor(h_BCHW) and not h_BCHW.is_meta and h_BCHW.dtype == torch.float32:
        return _fused() or CPU
    return CPU


class _MinimalRecurrence(torch.autograd.Function):
    """`run_forward` and `run_backward` as one function of autograd."""

    @staticmethod
    def forward(ctx: Any, blocks_TBKHW: torch.Tensor, h0_BCHW: torch.Tensor) -> torch.Tensor:
        blocks_NKHW = blocks_TBKHW.flatten(0, 1).to(h0_BCHW.dtype)
        kept_TBKHW = blocks_NKHW.clone(memory_format=torch.channels_last).unflatten(0, blocks_TBKHW.shape[:2])
        h_TBCHW = torch.empty_like(kept_TBKHW[:, :, : h0_BCHW.shape[1]])
        run_forward(kept_TBKHW, h0_BCHW, h_TBCHW)
        ctx.save_for_backward(kept_TBKHW, h_TBCHW, h0_BCHW)
        ctx.dtype = blocks_TBKHW.dtype
        return h_TBCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TBCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept_TBKHW, h_TBCHW, h0_BCHW = ctx.saved_tensors
        result_TBKHW, carry = run_backward(grad_TBCHW, None, kept_TBKHW, h_TBCHW, h0_BCHW)
        return result_TBKHW.to(ctx.dtype), carry


class ConvolvedRecurrence(torch.autograd.Function):
    """Convolution to the blocks and recurrence over them, a few steps at a time while their frames are in the cache.

    Inputs: x_NCHW (N = T x B frames, time first), h0_BCHW, weight (K, C, k, k), bias (K,) or None, and the two
    prepared.
    Outputs: h_NCHW, and the last h_BCHW.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: torch.Tensor,
        h0_BCHW: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        conv: PreparedConv,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)  # a last state without later steps needs no zeros
        batch, recurrence = len(h0_BCHW), implementation(h0_BCHW)
        # the fused kernel reads blocks of lower precision as they are
        dtype = h0_BCHW.dtype if recurrence is CPU else weight.dtype
        h_NCHW = empty_frames_like(h0_BCHW, len(x_NCHW), x_NCHW.shape[1])
        slices = cache_sized_slices(x_NCHW, batch)
        # without a backward pass nothing is kept for it
        keep = any(x is not None and x.requires_grad for x in (x_NCHW, h0_BCHW, weight, bias))
        convolved, blocks = [], []
        previous = h0_BCHW
        for frames in slices:
            blocks_NKHW, convolved_NCHW = conv.convolve(x_NCHW[frames].to(weight.dtype), dtype)
            h_TBCHW = h_NCHW[frames].unflatten(0, (-1, batch))
            recurrence.run_forward(blocks_NKHW.unflatten(0, (-1, batch)), previous, h_TBCHW)
            previous = h_TBCHW[-1]
            if keep:
                convolved.append(convolved_NCHW)
                blocks.append(blocks_NKHW)
        # saved but not read: autograd then notices if a weight that needed no copy is changed before the backward pass
        ctx.save_for_backward(weight, h0_BCHW, h_NCHW, *convolved, *blocks)
        ctx.conv, ctx.dtype, ctx.slices = conv, x_NCHW.dtype, slices
        # The last state is an output of its own: the gradient of a slice would be as large as that of all states. It is
        # a copy where it would be all that keeps the others in memory.
        return h_NCHW, previous.detach() if keep or len(h_NCHW) == batch else previous.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_NCHW: torch.Tensor | None, grad_last_BCHW: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        _, h0_BCHW, h_NCHW, *kept = ctx.saved_tensors
        if grad_NCHW is None:  # only the last state is used
            grad_NCHW = torch.zeros_like(h_NCHW)
        convolved, blocks = kept[: len(ctx.slices)], kept[len(ctx.slices) :]
        conv, batch, recurrence = ctx.conv, len(h0_BCHW), implementation(h0_BCHW)
        at_once = len(ctx.slices) == 1 and not device.on_processor(h_NCHW)
        # the norms, which the gradient goes on to, are in the default layout
        grad_x_NCHW = None if at_once else torch.empty(h_NCHW.shape, dtype=h_NCHW.dtype, device=h_NCHW.device)
        carry = grad_last_BCHW
        for frames, convolved_NCHW, kept_NKHW in zip(ctx.slices[::-1], convolved[::-1], blocks[::-1], strict=True):
            previous = h_NCHW[frames.start - batch : frames.start] if frames.start else h0_BCHW
            grad_TBCHW, kept_TBKHW, h_TBCHW = (
                tensor.unflatten(0, (-1, batch)) for tensor in (grad_NCHW[frames], kept_NKHW, h_NCHW[frames])
            )
            grad_blocks, carry = recurrence.run_backward(grad_TBCHW, carry, kept_TBKHW, h_TBCHW, previous)
            grad_blocks = grad_blocks.flatten(0, 1)
            conv.collect(grad_blocks, convolved_NCHW)
            of_frames = conv.input_gradient(grad_blocks, None if grad_x_NCHW is None else grad_x_NCHW[frames])
        grad_x_NCHW = of_frames if grad_x_NCHW is None else grad_x_NCHW
        return grad_x_NCHW.to(ctx.dtype), carry, None, None, None


def log_space_scan(
    log_a_TB: torch.Tensor, log_1ma_TB: torch.Tensor, v_TB: torch.Tensor, h0_B: torch.Tensor
) -> torch.Tensor:
    """Return all h_t of h_t = a_t h_{t-1} + (1 - a_t) g(v_t), in log space as the paper does (section 3.1).

    Slow, and in float32 wrong for large inputs: the reference in tests and benchmarks.

    Args:
        log_a_TB: log a_t, (time, batch, ...).
        log_1ma_TB: log(1 - a_t), of the same shape.
        v_TB: candidates before their activation g, of the same shape.
        h0_B: the state before the first step, positive, (batch, ...).
    """
    log_u_TB = torch.where(v_TB >= 0, (F.relu(v_TB) + 0.5).log(), F.logsigmoid(v_TB))
    summed_TB = log_a_TB.cumsum(0)
    terms = torch.cat([h0_B.log()[None], log_1ma_TB + log_u_TB - summed_TB])
    return torch.exp(summed_TB + torch.logcumsumexp(terms, dim=0)[1:])
