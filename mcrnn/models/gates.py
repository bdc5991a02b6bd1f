"""The gates of ConvLSTM and ConvGRU: what stands between the convolutions of a step, forward and backward.

`mcrnn.models.gated_recurrence_triton` has a kernel for GPUs in place of each function. They differ in two things. The
functions overwrite gates with their activations, the kernels leave them and activate them again in the backward pass.
And the gradients of a convolution's results are unpadded here, where the next convolution pads them; the kernels write
them padded.

Axes: B batch, C channels, H height, W width; K the gates' blocks of C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mcrnn.models.gated_recurrence import StepConvolution

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input


def tanh(x: torch.Tensor) -> torch.Tensor:
    """Return tanh(x), written 2 sigmoid(2 x) - 1: on processors a quarter of the time of torch's own, to 1e-7."""
    return torch.sigmoid(2 * x).mul_(2).sub_(1)


def lstm_forward(
    gates_BKHW: torch.Tensor, c_BCHW: torch.Tensor, x_BCHW: torch.Tensor | None, convolution: StepConvolution
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Activate the gates (n, i, f, o) in place; return the new h and c, and what the next step convolves.

    Args:
        gates_BKHW: result of the step's convolution.
        c_BCHW: c before the step.
        x_BCHW: input of the next step, None after the last one.
        convolution: the convolution of the next step.
    """
    n, i, f, o = gates_BKHW.split(c_BCHW.shape[1], dim=1)
    n.mul_(2)
    gates_BKHW.sigmoid_()
    n.mul_(2).sub_(1)  # tanh
    c = torch.mul(f, c_BCHW).addcmul_(i, n)
    h = tanh(c).mul_(o)
    return h, c, None if x_BCHW is None else convolution.join(x_BCHW, h)


def lstm_backward(
    grad_BCHW: torch.Tensor,
    grad_h: torch.Tensor,
    grad_c: torch.Tensor,
    gates_BKHW: torch.Tensor,
    c_before: torch.Tensor,
    c: torch.Tensor,
    convolution: StepConvolution,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the gates before their activation, and of the c before the step.

    Args:
        grad_BCHW: gradient of the step's h as an output.
        grad_h: gradient of its h from the next step.
        grad_c: gradient of its c from the next step.
        gates_BKHW: the activated gates.
        c_before: c before the step.
        c: c after the step.
        convolution: the convolution of the step.
    """
    channels = c.shape[1]
    n, i, f, o = gates_BKHW.split(channels, dim=1)
    of_gates = torch.empty_like(gates_BKHW)  # first those of the activated gates
    of_n, of_i, of_f, of_o = of_gates.split(channels, dim=1)
    grad_h = grad_h + grad_BCHW
    tanh_c = tanh(c)
    torch.mul(grad_h, tanh_c, out=of_o)
    grad_h.mul_(o)
    grad_c = tanh_backward(grad_h, tanh_c, grad_input=grad_h).add_(grad_c)
    torch.mul(grad_c, n, out=of_i)
    torch.mul(grad_c, c_before, out=of_f)
    torch.mul(grad_c, i, out=of_n)
    tanh_backward(of_n, n, grad_input=of_n)
    sigmoids = of_gates[:, channels:]
    sigmoid_backward(sigmoids, gates_BKHW[:, channels:], grad_input=sigmoids)
    return of_gates, grad_c.mul_(f)


def gru_reset(
    gates_BKHW: torch.Tensor, h_BCHW: torch.Tensor, x_BCHW: torch.Tensor, convolution: StepConvolution
) -> torch.Tensor:
    """Activate the gates (z, r) in place, and return what the candidate's convolution takes: [x, r h]."""
    _, r = gates_BKHW.sigmoid_().split(h_BCHW.shape[1], dim=1)
    return convolution.join(x_BCHW, r * h_BCHW)


def gru_update(
    candidate_BCHW: torch.Tensor,
    gates_BKHW: torch.Tensor,
    h_BCHW: torch.Tensor,
    x_BCHW: torch.Tensor | None,
    convolution: StepConvolution,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Activate the candidate n in place; return the new h, and what the next step convolves for its gates.

    Args:
        candidate_BCHW: result of the candidate's convolution.
        gates_BKHW: the gates as `gru_reset` has left them.
        h_BCHW: h before the step.
        x_BCHW: input of the next step, None after the last one.
        convolution: the convolution of the next step's gates.
    """
    n = candidate_BCHW.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh
    h = torch.lerp(h_BCHW, n, gates_BKHW[:, : h_BCHW.shape[1]])
    return h, None if x_BCHW is None else convolution.join(x_BCHW, h)


def gru_candidate_backward(
    grad_BCHW: torch.Tensor,
    grad_h: torch.Tensor,
    carry: torch.Tensor | None,
    gates_BKHW: torch.Tensor,
    candidate: torch.Tensor,
    convolution: StepConvolution,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of the candidate before its activation, and that of the step's h.

    Args:
        grad_BCHW: gradient of the step's h as an output.
        grad_h: gradient of its h by the convolution of the next step's gates; of the last step, from beyond.
        carry: gradient of its h by all else of the next step, None of the last step.
        gates_BKHW: the gates as `gru_reset` has left them.
        candidate: the candidate as `gru_update` has left it.
        convolution: the candidate's convolution.
    """
    total, of_candidate = torch.empty_like(candidate), torch.empty_like(candidate)
    torch.add(grad_h, grad_BCHW, out=total)
    if carry is not None:
        total.add_(carry)
    torch.mul(total, gates_BKHW[:, : candidate.shape[1]], out=of_candidate)
    return tanh_backward(of_candidate, candidate, grad_input=of_candidate), total


def gru_gates_backward(
    total: torch.Tensor,
    grad_reset: torch.Tensor,
    gates_BKHW: torch.Tensor,
    candidate: torch.Tensor,
    h_before: torch.Tensor,
    convolution: StepConvolution,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the gates before their activation and, but for their convolution's, of h before the step.

    Args:
        total: gradient of the step's h, overwritten.
        grad_reset: gradient of r h.
        gates_BKHW: the gates as `gru_reset` has left them.
        candidate: the candidate as `gru_update` has left it.
        h_before: h before the step.
        convolution: the convolution of the gates.
    """
    z, r = gates_BKHW.split(h_before.shape[1], dim=1)
    of_gates = torch.empty_like(gates_BKHW)  # first those of the activated gates
    of_z, of_r = of_gates.split(h_before.shape[1], dim=1)
    torch.sub(candidate, h_before, out=of_z).mul_(total)
    torch.mul(grad_reset, h_before, out=of_r)
    sigmoid_backward(of_gates, gates_BKHW, grad_input=of_gates)
    of_h = total.addcmul_(total, z, value=-1).addcmul_(grad_reset, r)
    return of_gates, of_h
