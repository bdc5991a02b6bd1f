"""The recurrences of ConvLSTM and ConvGRU over a sequence, with their gradients by hand.

A step convolves [input, state] at once. To convolve the inputs of all steps together beforehand would be the same
work in narrower convolutions; it was measured to be faster at no batch size. What makes the difference is the backward
pass: the gradient of the weights is computed for several steps at a time, while they are in the cache, and no step
leaves a graph of small operations behind.

Axes: T time, B batch, N frames (T x B, time first), C channels, H height, W width; K the gates' blocks of C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mcrnn.models.convolution import PreparedConv, empty_frames_like

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input


def tanh(x: torch.Tensor) -> torch.Tensor:
    """Return tanh(x), written 2 sigmoid(2 x) - 1: on processors a quarter of the time of torch's own, to 1e-7."""
    return torch.sigmoid(2 * x).mul_(2).sub_(1)


class _StepConvolution:
    """A convolution of [input, state] at each step of a sequence, and its gradients.

    Args:
        conv: weight and bias.
        padded: for the backward pass, what each step of the forward pass convolved.
    """

    def __init__(self, conv: PreparedConv, padded: Sequence[torch.Tensor] = ()) -> None:
        self.conv = conv
        self.padded = list(padded)
        """The padded [input, state] that each step convolves, (B, 2 C, ..)."""

    def __call__(self, x_BCHW: torch.Tensor, state_BCHW: torch.Tensor) -> torch.Tensor:
        """Convolve the next step's input and state: (B, K, H, W), channels last, of the state's dtype."""
        both_BCHW = torch.cat([x_BCHW, state_BCHW], dim=1).to(self.conv.weight.dtype)
        self.padded.append(self.conv.boundary(both_BCHW))
        return self.conv.convolve(self.padded[-1], state_BCHW.dtype)

    def backward(self, t: int, grad_BKHW: torch.Tensor, grad_x_BCHW: torch.Tensor) -> torch.Tensor:
        """Pass the gradient of a step's result on to what it was computed from.

        Args:
            t: index of the step.
            grad_BKHW: gradient of its result; also collected for the parameters.
            grad_x_BCHW: gradient of its input, to which this one is added.

        Returns:
            The gradient of its state.
        """
        self.conv.collect(grad_BKHW, self.padded[t])
        grad_BCHW = empty_frames_like(grad_BKHW, len(grad_BKHW), self.padded[t].shape[1])
        self.conv.input_gradient(grad_BKHW, grad_BCHW)
        channels = grad_x_BCHW.shape[1]
        grad_x_BCHW.add_(grad_BCHW[:, :channels])
        return grad_BCHW[:, channels:]


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
        batch, channels = h0_BCHW.shape[:2]
        steps = len(x_NCHW) // batch
        convolution = _StepConvolution(conv)
        inputs = x_NCHW.contiguous(memory_format=torch.channels_last).split(batch)
        gates, cells, states = [], [c0_BCHW], [h0_BCHW]
        for t in range(steps):
            gates_BKHW = convolution(inputs[t], states[t])
            n, i, f, o = gates_BKHW.split(channels, dim=1)
            n.mul_(2)
            gates_BKHW.sigmoid_()
            n.mul_(2).sub_(1)  # tanh
            c_BCHW = torch.mul(f, cells[t]).addcmul_(i, n)
            states.append(tanh(c_BCHW).mul_(o))
            cells.append(c_BCHW)
            gates.append(gates_BKHW)
        ctx.conv, ctx.batch, ctx.steps, ctx.dtype = conv, batch, steps, x_NCHW.dtype
        # saved but not read: autograd then notices if a weight that needed no copy is changed before the backward pass
        ctx.save_for_backward(weight, *convolution.padded, *gates, *cells)
        return torch.cat(states[1:]), states[-1], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_NCHW: torch.Tensor, grad_h: torch.Tensor, grad_c: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        _, *saved = ctx.saved_tensors
        batch, steps = ctx.batch, ctx.steps
        padded, gates, cells = saved[:steps], saved[steps : 2 * steps], saved[2 * steps :]
        convolution = _StepConvolution(ctx.conv, padded)
        channels = cells[0].shape[1]
        grad_x_NCHW = torch.zeros_like(grad_NCHW, memory_format=torch.channels_last)
        # grad_h and grad_c: the gradients of h_t and c_t, first from the steps after t, then with the output's.
        # grad_BKHW: those of the activated gates, then in place those before activation, as the convolution gave them.
        for t in range(ctx.steps - 1, -1, -1):
            frames = slice(t * batch, (t + 1) * batch)
            n, i, f, o = gates[t].split(channels, dim=1)
            grad_BKHW = torch.empty_like(gates[t])
            grad_n, grad_i, grad_f, grad_o = grad_BKHW.split(channels, dim=1)
            grad_h = grad_h + grad_NCHW[frames]
            tanh_c = tanh(cells[t + 1])
            torch.mul(grad_h, tanh_c, out=grad_o)
            grad_h.mul_(o)
            grad_c = tanh_backward(grad_h, tanh_c, grad_input=grad_h).add_(grad_c)
            torch.mul(grad_c, n, out=grad_i)
            torch.mul(grad_c, cells[t], out=grad_f)
            torch.mul(grad_c, i, out=grad_n)
            tanh_backward(grad_n, n, grad_input=grad_n)
            sigmoids = grad_BKHW[:, channels:]
            sigmoid_backward(sigmoids, gates[t][:, channels:], grad_input=sigmoids)
            grad_c = grad_c.mul_(f)
            grad_h = convolution.backward(t, grad_BKHW, grad_x_NCHW[frames])
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
        batch, channels = h0_BCHW.shape[:2]
        steps = len(x_NCHW) // batch
        convolution_a, convolution_b = _StepConvolution(conv_a), _StepConvolution(conv_b)
        inputs = x_NCHW.contiguous(memory_format=torch.channels_last).split(batch)
        gates, candidates, states = [], [], [h0_BCHW]
        for t in range(steps):
            gates_BKHW = convolution_a(inputs[t], states[t]).sigmoid_()
            z, r = gates_BKHW.split(channels, dim=1)
            n = convolution_b(inputs[t], r * states[t]).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh
            states.append(torch.lerp(states[t], n, z))
            gates.append(gates_BKHW)
            candidates.append(n)
        ctx.convs, ctx.batch, ctx.steps, ctx.dtype = (conv_a, conv_b), batch, steps, x_NCHW.dtype
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
            _StepConvolution(conv, padded) for conv, padded in zip(ctx.convs, (padded_a, padded_b), strict=True)
        )
        channels = states[0].shape[1]
        grad_x_NCHW = torch.zeros_like(grad_NCHW, memory_format=torch.channels_last)
        # grad_h: the gradient of h_t, first from the steps after t, then with the output's; at the end of the step that
        # of h_{t-1}, which reaches it by the interpolation, by the reset r h_{t-1}, and by both convolutions.
        # grad_BKHW and grad_n: those of the activated gates, then in place those before activation.
        for t in range(ctx.steps - 1, -1, -1):
            frames = slice(t * batch, (t + 1) * batch)
            z, r = gates[t].split(channels, dim=1)
            grad_BKHW, grad_n = torch.empty_like(gates[t]), torch.empty_like(candidates[t])
            grad_z, grad_r = grad_BKHW.split(channels, dim=1)
            grad_h = grad_h + grad_NCHW[frames]
            torch.sub(candidates[t], states[t], out=grad_z).mul_(grad_h)
            torch.mul(grad_h, z, out=grad_n)
            grad_h.sub_(grad_n)
            tanh_backward(grad_n, candidates[t], grad_input=grad_n)
            grad_reset = convolution_b.backward(t, grad_n, grad_x_NCHW[frames])
            torch.mul(grad_reset, states[t], out=grad_r)
            grad_h.addcmul_(grad_reset, r)
            sigmoid_backward(grad_BKHW, gates[t], grad_input=grad_BKHW)
            grad_h.add_(convolution_a.backward(t, grad_BKHW, grad_x_NCHW[frames]))
        return grad_x_NCHW.to(ctx.dtype), grad_h, None, None, None, None, None, None
