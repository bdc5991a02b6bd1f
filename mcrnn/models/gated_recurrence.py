"""The recurrences of ConvLSTM and ConvGRU over a sequence, with their gradients by hand.

A step convolves [input, state] at once. To convolve the inputs of all steps together beforehand would be the same
work in narrower convolutions; it was measured to be faster at no batch size. What makes the difference is the backward
pass: the gradient of the weights is computed for several steps at a time, while they are in the cache, and no step
leaves a graph of small operations behind.

Axes: T time, B batch, N frames (T x B, time first), C channels, H height, W width; K the gates' blocks of C channels.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mcrnn import device
from mcrnn.models.convolution import PreparedConv, wrapped_points

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input


_THIS_MODULE = sys.modules[__name__]


def tanh(x: torch.Tensor) -> torch.Tensor:
    """Return tanh(x), written 2 sigmoid(2 x) - 1: on processors a quarter of the time of torch's own, to 1e-7."""
    return torch.sigmoid(2 * x).mul_(2).sub_(1)


def lstm_forward(gates_BKHW: torch.Tensor, c_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Activate the gates (n, i, f, o) in place, and return the new h and c."""
    n, i, f, o = gates_BKHW.split(c_BCHW.shape[1], dim=1)
    n.mul_(2)
    gates_BKHW.sigmoid_()
    n.mul_(2).sub_(1)  # tanh
    c = torch.mul(f, c_BCHW).addcmul_(i, n)
    return tanh(c).mul_(o), c


def lstm_backward(
    grad_BCHW: torch.Tensor,
    grad_h: torch.Tensor,
    grad_c: torch.Tensor,
    gates_BKHW: torch.Tensor,
    c_before: torch.Tensor,
    c: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the gates before their activation, and of the c before the step.

    Args:
        grad_BCHW: gradient of the step's h as an output.
        grad_h: gradient of its h from the next step.
        grad_c: gradient of its c from the next step.
        gates_BKHW: the activated gates.
        c_before: c before the step.
        c: c after the step.
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


def gru_reset(gates_BKHW: torch.Tensor, h_BCHW: torch.Tensor) -> torch.Tensor:
    """Activate the gates (z, r) in place, and return r h."""
    _, r = gates_BKHW.sigmoid_().split(h_BCHW.shape[1], dim=1)
    return r * h_BCHW


def gru_update(candidate_BCHW: torch.Tensor, gates_BKHW: torch.Tensor, h_BCHW: torch.Tensor) -> torch.Tensor:
    """Activate the candidate n in place, and return the new h."""
    n = candidate_BCHW.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh
    return torch.lerp(h_BCHW, n, gates_BKHW[:, : h_BCHW.shape[1]])


def gru_update_backward(
    grad_BCHW: torch.Tensor,
    carry: torch.Tensor,
    grad_h: torch.Tensor,
    gates_BKHW: torch.Tensor,
    candidate: torch.Tensor,
    h_before: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of the gates, of which r's is missing, of the candidate and, in part, of h before the step.

    Args:
        grad_BCHW: gradient of the step's h as an output.
        carry: gradient of its h from the next step, by all but the convolution of the gates.
        grad_h: gradient of its h by that convolution.
        gates_BKHW: the activated gates.
        candidate: the activated candidate.
        h_before: h before the step.
    """
    z = gates_BKHW[:, : candidate.shape[1]]
    of_gates, of_candidate = torch.empty_like(gates_BKHW), torch.empty_like(candidate)
    of_z = of_gates[:, : candidate.shape[1]]
    grad_h = (carry + grad_h).add_(grad_BCHW)
    torch.sub(candidate, h_before, out=of_z).mul_(grad_h)
    sigmoid_backward(of_z, z, grad_input=of_z)
    torch.mul(grad_h, z, out=of_candidate)
    grad_h.sub_(of_candidate)
    tanh_backward(of_candidate, candidate, grad_input=of_candidate)
    return of_gates, of_candidate, grad_h


def gru_reset_backward(
    grad_reset: torch.Tensor,
    gates_BKHW: torch.Tensor,
    h_before: torch.Tensor,
    of_gates: torch.Tensor,
    of_h: torch.Tensor,
) -> None:
    """Given the gradient of r h, write that of r before its activation, and add to that of h before the step."""
    (_, r), (_, of_r) = (x.split(h_before.shape[1], dim=1) for x in (gates_BKHW, of_gates))
    torch.mul(grad_reset, h_before, out=of_r)
    sigmoid_backward(of_r, r, grad_input=of_r)
    of_h.addcmul_(grad_reset, r)


@functools.cache
def _kernels() -> ModuleType | None:
    """Return the kernels for GPUs; None without Triton."""
    try:
        from mcrnn.models import gated_recurrence_triton
    except ImportError:
        return None
    return gated_recurrence_triton


def kernels_for(h_BCHW: torch.Tensor) -> ModuleType | None:
    """Return the kernels for states in float32 on GPUs, if MCRNN_FUSED_GATES=1 asks for them; else None."""
    if os.environ.get("MCRNN_FUSED_GATES") != "1" or device.on_processor(h_BCHW) or h_BCHW.is_meta:
        return None
    return _kernels() if h_BCHW.dtype == torch.float32 else None


class _StepConvolution:
    """A convolution of [input, state] at each step of a sequence, and its gradients.

    Args:
        conv: weight and bias.
        kernels: the kernels for GPUs, or None.
        padded: for the backward pass, what each step of the forward pass convolved.
    """

    def __init__(self, conv: PreparedConv, kernels: ModuleType | None, padded: Sequence[torch.Tensor] = ()) -> None:
        self.conv, self.kernels = conv, kernels
        self.padded = list(padded)
        """The padded [input, state] that each step convolves, (B, 2 C, ..)."""
        self._of_inputs: list[torch.Tensor] = []

    def __call__(self, x_BCHW: torch.Tensor, state_BCHW: torch.Tensor, keep: bool) -> torch.Tensor:
        """Convolve the next step's input and state: (B, K, H, W), channels last, of the state's dtype.

        What is convolved is kept for the backward pass if there will be one.
        """
        boundary, dtype = self.conv.boundary, self.conv.weight.dtype
        if self.kernels is None:
            padded = boundary(torch.cat([x_BCHW, state_BCHW], dim=1).to(dtype))
        else:
            (height, width), rows, columns = x_BCHW.shape[2:], boundary.rows, boundary.columns
            points = device.constant(wrapped_points, height, width, rows, columns, x_BCHW.device, like=x_BCHW)
            grid = height + 2 * rows, width + 2 * columns
            padded = self.kernels.join(x_BCHW, state_BCHW, points, grid, dtype)
        if keep:
            self.padded.append(padded)
        return self.conv.convolve(padded, state_BCHW.dtype)

    def backward(self, t: int, grad_BKHW: torch.Tensor, grad_x_BCHW: torch.Tensor) -> torch.Tensor:
        """Pass the gradient of a step's result on to what it was computed from.

        Args:
            t: index of the step.
            grad_BKHW: gradient of its result; also collected for the parameters.
            grad_x_BCHW: gradient of its input, to which this one is added; with kernels, `input_gradients` has it.

        Returns:
            The gradient of its state.
        """
        self.conv.collect(grad_BKHW, self.padded[t])
        grad_BCHW = self.conv.input_gradient(grad_BKHW)
        channels = grad_x_BCHW.shape[1]
        if self.kernels is None:
            grad_x_BCHW.add_(grad_BCHW[:, :channels])
        else:
            self._of_inputs.append(grad_BCHW[:, :channels])
        return grad_BCHW[:, channels:]

    def input_gradients(self) -> torch.Tensor:
        """Return the gradients of the inputs of all steps, (N, C, H, W), where they were not added up."""
        return torch.cat(self._of_inputs[::-1])


class ConvLSTMRecurrence(torch.autograd.Function):
    """c_t = f c_{t-1} + i n, h_t = o tanh(c_t), with (n, i, f, o) of weight * [x_t, h_{t-1}] + bias.

    Inputs: x_NCHW, h0_BCHW, c0_BCHW, weight (4 C, 2 C, k, k), bias (4 C,) or None, and the two prepared.
    Outputs: h_NCHW, and the last h_BCHW and c_BCHW.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: torch.Tensor,
        h0_BCHW: torch.Tensor,
        c0_BCHW: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        conv: PreparedConv,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = len(h0_BCHW)
        steps = len(x_NCHW) // batch
        kernels = kernels_for(h0_BCHW)
        convolution, functions = _StepConvolution(conv, kernels), kernels or _THIS_MODULE
        inputs = x_NCHW.contiguous(memory_format=torch.channels_last).split(batch)
        h0_BCHW, c0_BCHW = (s.contiguous(memory_format=torch.channels_last) for s in (h0_BCHW, c0_BCHW))
        keep = any(x is not None and x.requires_grad for x in (x_NCHW, h0_BCHW, c0_BCHW, weight, bias))
        c_BCHW = c0_BCHW
        gates, cells, states = [], [c0_BCHW], [h0_BCHW]
        for t in range(steps):
            gates_BKHW = convolution(inputs[t], states[t], keep)
            h_BCHW, c_BCHW = functions.lstm_forward(gates_BKHW, c_BCHW)
            states.append(h_BCHW)
            if keep:
                cells.append(c_BCHW)
                gates.append(gates_BKHW)
        ctx.conv, ctx.kernels, ctx.batch, ctx.steps, ctx.dtype = conv, kernels, batch, steps, x_NCHW.dtype
        # saved but not read: autograd then notices if a weight that needed no copy is changed before the backward pass
        ctx.save_for_backward(weight, *convolution.padded, *gates, *cells)
        return torch.cat(states[1:]), states[-1], c_BCHW.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_NCHW: torch.Tensor, grad_h: torch.Tensor, grad_c: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        _, *saved = ctx.saved_tensors
        batch, steps = ctx.batch, ctx.steps
        padded, gates, cells = saved[:steps], saved[steps : 2 * steps], saved[2 * steps :]
        convolution, functions = _StepConvolution(ctx.conv, ctx.kernels, padded), ctx.kernels or _THIS_MODULE
        zeros = torch.zeros_like if ctx.kernels is None else torch.empty_like
        grad_x_NCHW = zeros(grad_NCHW, memory_format=torch.channels_last)
        if ctx.kernels is not None:
            grad_NCHW, grad_h, grad_c = (
                x.contiguous(memory_format=torch.channels_last) for x in (grad_NCHW, grad_h, grad_c)
            )
        # grad_h and grad_c: the gradients of h_t and c_t from the steps after t
        for t in range(ctx.steps - 1, -1, -1):
            frames = slice(t * batch, (t + 1) * batch)
            grad_BKHW, grad_c = functions.lstm_backward(
                grad_NCHW[frames], grad_h, grad_c, gates[t], cells[t], cells[t + 1]
            )
            grad_h = convolution.backward(t, grad_BKHW, grad_x_NCHW[frames])
        if ctx.kernels is not None:
            grad_x_NCHW = convolution.input_gradients()
        return grad_x_NCHW.to(ctx.dtype), grad_h, grad_c, None, None, None


class ConvGRURecurrence(torch.autograd.Function):
    """h_t = (1 - z) h_{t-1} + z n, with (z, r) of weight_a * [x_t, h_{t-1}] and n of weight_b * [x_t, r h_{t-1}].

    Inputs: x_NCHW, h0_BCHW, weight_a (2 C, 2 C, k, k), bias_a, weight_b (C, 2 C, k, k), bias_b, and the
    two pairs prepared.
    Outputs: h_NCHW and the last h_BCHW.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: torch.Tensor,
        h0_BCHW: torch.Tensor,
        weight_a: torch.Tensor,
        bias_a: torch.Tensor | None,
        weight_b: torch.Tensor,
        bias_b: torch.Tensor | None,
        conv_a: PreparedConv,
        conv_b: PreparedConv,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch = len(h0_BCHW)
        steps = len(x_NCHW) // batch
        kernels = kernels_for(h0_BCHW)
        convolution_a, convolution_b = _StepConvolution(conv_a, kernels), _StepConvolution(conv_b, kernels)
        functions = kernels or _THIS_MODULE
        inputs = x_NCHW.contiguous(memory_format=torch.channels_last).split(batch)
        keep = any(x is not None and x.requires_grad for x in (x_NCHW, h0_BCHW, weight_a, bias_a, weight_b, bias_b))
        gates, candidates, states = [], [], [h0_BCHW.contiguous(memory_format=torch.channels_last)]
        for t in range(steps):
            gates_BKHW = convolution_a(inputs[t], states[t], keep)
            n = convolution_b(inputs[t], functions.gru_reset(gates_BKHW, states[t]), keep)
            states.append(functions.gru_update(n, gates_BKHW, states[t]))
            if keep:
                gates.append(gates_BKHW)
                candidates.append(n)
        ctx.convs, ctx.kernels, ctx.batch, ctx.steps, ctx.dtype = (conv_a, conv_b), kernels, batch, steps, x_NCHW.dtype
        padded = [*convolution_a.padded, *convolution_b.padded]
        # saved but not read: autograd then notices if a weight that needed no copy is changed before the backward pass
        ctx.save_for_backward(weight_a, weight_b, *padded, *gates, *candidates, *states[:-1])
        return torch.cat(states[1:]), states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NCHW: torch.Tensor, grad_h: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        batch, steps = ctx.batch, ctx.steps
        saved = ctx.saved_tensors[2:]
        padded_a, padded_b, gates, candidates, states = (saved[i : i + steps] for i in range(0, 5 * steps, steps))
        convolution_a, convolution_b = (
            _StepConvolution(conv, ctx.kernels, padded)
            for conv, padded in zip(ctx.convs, (padded_a, padded_b), strict=True)
        )
        functions = ctx.kernels or _THIS_MODULE
        zeros = torch.zeros_like if ctx.kernels is None else torch.empty_like
        grad_x_NCHW = zeros(grad_NCHW, memory_format=torch.channels_last)
        if ctx.kernels is not None:
            grad_NCHW, grad_h = (x.contiguous(memory_format=torch.channels_last) for x in (grad_NCHW, grad_h))
        # carry and grad_h: the gradient of h_t from the steps after t is their sum. The second reached it by the
        # convolution of the gates, the first by the interpolation and by the reset r h_t.
        carry = torch.zeros_like(grad_h)
        for t in range(ctx.steps - 1, -1, -1):
            frames = slice(t * batch, (t + 1) * batch)
            grad_BKHW, grad_n, carry = functions.gru_update_backward(
                grad_NCHW[frames], carry, grad_h, gates[t], candidates[t], states[t]
            )
            grad_reset = convolution_b.backward(t, grad_n, grad_x_NCHW[frames])
            functions.gru_reset_backward(grad_reset, gates[t], states[t], grad_BKHW, carry)
            grad_h = convolution_a.backward(t, grad_BKHW, grad_x_NCHW[frames])
        if ctx.kernels is not None:
            grad_x_NCHW = convolution_a.input_gradients().add_(convolution_b.input_gradients())
        return grad_x_NCHW.to(ctx.dtype), carry + grad_h, None, None, None, None, None, None
