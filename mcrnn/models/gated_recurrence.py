"""The recurrences of ConvLSTM and ConvGRU over a sequence, with their gradients by hand.

A step convolves [input, state] at once: running the input's part over all frames together beforehand is the same
work in narrower convolutions, and was faster at no batch size. What pays is the backward pass: the gradient of the
weights takes several steps at a time while they are in the cache, and no step leaves a graph of small operations
behind. tanh(x) is written 2 sigmoid(2 x) - 1, on processors a quarter of the time of torch's own, to 1e-7.

Axes: T time, B batch, N frames (time first), C channels, H height, W width; K the gates' blocks of C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mcrnn.models.convolution import Kernel, frames_like

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input


def tanh(x: torch.Tensor) -> torch.Tensor:
    """2 sigmoid(2 x) - 1."""
    return torch.sigmoid(2 * x).mul_(2).sub_(1)


class _Convolution:
    """A convolution of [input, state] at each step of a sequence, and its gradients."""

    def __init__(self, kernel: Kernel, wrapped: Sequence[torch.Tensor] = ()) -> None:
        self.kernel = kernel
        self.wrapped = list(wrapped)
        """what each step convolved, continued beyond its edges"""

    def __call__(self, x_BCHW: torch.Tensor, state_BCHW: torch.Tensor) -> torch.Tensor:
        """The result at the next step, (B, K, H, W), channels last, of the state's dtype."""
        both_BCHW = torch.cat([x_BCHW, state_BCHW], dim=1).to(self.kernel.weight.dtype)
        self.wrapped.append(self.kernel.wrap(both_BCHW))
        return self.kernel.convolve(self.wrapped[-1], state_BCHW.dtype)

    def backward(self, t: int, grad_BKHW: torch.Tensor, grad_x_BCHW: torch.Tensor) -> torch.Tensor:
        """Hand a step's gradient on: to the parameters, to the step's input (added), to its state (returned)."""
        self.kernel.collect(grad_BKHW, self.wrapped[t])
        grad_BCHW = frames_like(grad_BKHW, len(grad_BKHW), self.wrapped[t].shape[1])
        self.kernel.input_gradient(grad_BKHW, grad_BCHW)
        channels = grad_x_BCHW.shape[1]
        grad_x_BCHW.add_(grad_BCHW[:, :channels])
        return grad_BCHW[:, channels:]


class ConvLSTMRecurrence(torch.autograd.Function):
    """c_t = f c_{t-1} + i n, h_t = o tanh(c_t), with (n, i, f, o) of weight * [x_t, h_{t-1}] + bias.

    Inputs: x_NCHW, h0_BCHW, c0_BCHW, weight (4 C, 2 C, k, k), bias (4 C,) or None, the kernel of both.
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
        kernel: Kernel,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, channels = h0_BCHW.shape[:2]
        steps = len(x_NCHW) // batch
        convolution = _Convolution(kernel)
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
        ctx.kernel, ctx.batch, ctx.steps, ctx.dtype = kernel, batch, steps, x_NCHW.dtype
        ctx.save_for_backward(weight, *convolution.wrapped, *gates, *cells)
        return torch.cat(states[1:]), states[-1], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_NCHW: torch.Tensor, grad_h: torch.Tensor, grad_c: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        _, *saved = ctx.saved_tensors
        batch, steps = ctx.batch, ctx.steps
        wrapped, gates, cells = saved[:steps], saved[steps : 2 * steps], saved[2 * steps :]
        convolution = _Convolution(ctx.kernel, wrapped)
        channels = cells[0].shape[1]
        grad_x_NCHW = torch.zeros_like(grad_NCHW, memory_format=torch.channels_last)
        for t in range(ctx.steps - 1, -1, -1):
            frames = slice(t * batch, (t + 1) * batch)
            n, i, f, o = gates[t].split(channels, dim=1)
            grad_BKHW = torch.empty_like(gates[t])
            grad_n, grad_i, grad_f, grad_o = grad_BKHW.split(channels, dim=1)
            grad_h = grad_h + grad_NCHW[frames]
            squashed = tanh(cells[t + 1])
            torch.mul(grad_h, squashed, out=grad_o)
            grad_h.mul_(o)
            grad_c = tanh_backward(grad_h, squashed, grad_input=grad_h).add_(grad_c)
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

    Inputs: x_NCHW, h0_BCHW, weight_a (2 C, 2 C, k, k), bias_a, weight_b (C, 2 C, k, k), bias_b, their kernels.
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
        kernel_a: Kernel,
        kernel_b: Kernel,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, channels = h0_BCHW.shape[:2]
        steps = len(x_NCHW) // batch
        convolution_a, convolution_b = _Convolution(kernel_a), _Convolution(kernel_b)
        inputs = x_NCHW.contiguous(memory_format=torch.channels_last).split(batch)
        gates, candidates, states = [], [], [h0_BCHW]
        for t in range(steps):
            gates_BKHW = convolution_a(inputs[t], states[t]).sigmoid_()
            z, r = gates_BKHW.split(channels, dim=1)
            n = convolution_b(inputs[t], r * states[t]).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh
            states.append(torch.lerp(states[t], n, z))
            gates.append(gates_BKHW)
            candidates.append(n)
        ctx.kernels, ctx.batch, ctx.steps, ctx.dtype = (kernel_a, kernel_b), batch, steps, x_NCHW.dtype
        wrapped = [*convolution_a.wrapped, *convolution_b.wrapped]
        ctx.save_for_backward(weight_a, weight_b, *wrapped, *gates, *candidates, *states[:-1])
        return torch.cat(states[1:]), states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NCHW: torch.Tensor, grad_h: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        batch, steps = ctx.batch, ctx.steps
        saved = ctx.saved_tensors[2:]
        wrapped_a, wrapped_b, gates, candidates, states = (saved[i : i + steps] for i in range(0, 5 * steps, steps))
        convolution_a, convolution_b = (
            _Convolution(kernel, wrapped) for kernel, wrapped in zip(ctx.kernels, (wrapped_a, wrapped_b), strict=True)
        )
        channels = states[0].shape[1]
        grad_x_NCHW = torch.zeros_like(grad_NCHW, memory_format=torch.channels_last)
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
