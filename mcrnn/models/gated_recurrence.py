"""The recurrences of ConvLSTM and ConvGRU over a sequence, with their gradients by hand.

A step convolves [input, state] at once. To convolve the inputs of all steps together beforehand would be the same
work in narrower convolutions; it was measured to be faster at no batch size. What makes the difference is the backward
pass: the gradient of the weights is computed for several steps at a time, while they are in the cache, and no step
leaves a graph of small operations behind.

What stands between two convolutions is a function of `mcrnn.models.gates`, of which `gated_recurrence_triton` has one
kernel for GPUs.

Axes: T time, B batch, N frames (T x B, time first), C channels, H height, W width; K the gates' blocks of C channels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mcrnn import device
from mcrnn.models import gates
from mcrnn.models.boundary import wrapped_points
from mcrnn.models.prepared_convolution import PreparedConv


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


class StepConvolution:
    """A convolution of [input, state] at each step of a sequence, and its gradients.

    Args:
        conv: weight and bias.
        kernels: the kernels for GPUs, or None.
        x_NCHW: frames on the grid.
        convolved: for the backward pass, what each step of the forward pass convolved.
    """

    def __init__(
        self,
        conv: PreparedConv,
        kernels: ModuleType | None,
        x_NCHW: torch.Tensor,
        convolved: Sequence[torch.Tensor] = (),
    ) -> None:
        self.conv, self.kernels = conv, kernels
        self.points: torch.Tensor | None = None
        """For the kernels: the grid point that each point of the padded grid repeats, (padded height, padded width)."""
        if kernels is not None:
            (height, width), rows, columns = x_NCHW.shape[2:], conv.boundary.rows, conv.boundary.columns
            points = device.constant(wrapped_points, height, width, rows, columns, x_NCHW.device, like=x_NCHW)
            self.points = points.view(height + 2 * rows, width + 2 * columns)
        self.convolved = list(convolved)
        """The [input, state] of each step as the backward pass takes it, (B, 2 C, ..): padded, or not."""
        self._of_inputs: list[torch.Tensor] = []

    def join(self, x_BCHW: torch.Tensor, state_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [input, state] of the convolution's dtype; with kernels it is padded."""
        if self.kernels is not None:
            return self.kernels.join(x_BCHW, state_BCHW, self)
        return torch.cat([x_BCHW, state_BCHW], dim=1).to(self.conv.weight.dtype)

    def __call__(self, joined_BCHW: torch.Tensor, dtype: torch.dtype, keep: bool) -> torch.Tensor:
        """Convolve the next step's input and state: (B, K, H, W), channels last.

        Args:
            joined_BCHW: the two, as `join` has returned them; kept for the backward pass if there will be one.
            dtype: of the states, and without kernels of the result.
            keep: whether there will be a backward pass.
        """
        if self.kernels is None:
            result_BKHW, joined_BCHW = self.conv.convolve(joined_BCHW, dtype)
        else:
            result_BKHW = self.conv.convolve_padded(joined_BCHW, self.conv.weight.dtype)
        if keep:
            self.convolved.append(joined_BCHW)
        return result_BKHW

    def backward(self, t: int, grad_BKHW: torch.Tensor, grad_x_BCHW: torch.Tensor | None) -> torch.Tensor:
        """Pass the gradient of a step's result on to what it was computed from.

        Args:
            t: index of the step.
            grad_BKHW: gradient of its result, with kernels padded as the frames are; also collected for the parameters.
            grad_x_BCHW: gradient of its input, to which this one is added; None to ask `input_gradients` for it.

        Returns:
            The gradient of its state.
        """
        if self.kernels is None:
            self.conv.collect(grad_BKHW, self.convolved[t])
            grad_BCHW = self.conv.input_gradient(grad_BKHW)
        else:
            self.conv.collect(self.conv.boundary.inside(grad_BKHW), self.convolved[t])
            grad_BCHW = self.conv.input_gradient_of_padded(grad_BKHW)
        channels = grad_BCHW.shape[1] // 2
        if grad_x_BCHW is None:
            self._of_inputs.append(grad_BCHW[:, :channels])
        else:
            grad_x_BCHW.add_(grad_BCHW[:, :channels])
        return grad_BCHW[:, channels:]

    def input_gradients(self) -> torch.Tensor:
        """Return the gradients of the inputs of all steps, (N, C, H, W), where they were not added up."""
        return _one_after_another(self._of_inputs[::-1])


def _one_after_another(steps_BCHW: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the frames of all steps, (N, C, H, W); no copy where there is one step."""
    return torch.cat(list(steps_BCHW)) if len(steps_BCHW) > 1 else steps_BCHW[0]


def _apart(x_NCHW: torch.Tensor, state_BCHW: torch.Tensor, kernels: ModuleType | None) -> tuple[torch.Tensor, ...]:
    """Return the frames of each step, channels last but for the kernels, which take any layout."""
    if kernels is None:
        x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
    return x_NCHW.split(len(state_BCHW))


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
        convolution, functions = StepConvolution(conv, kernels, x_NCHW), kernels or gates
        inputs = _apart(x_NCHW, h0_BCHW, kernels)
        h0_BCHW, c0_BCHW = (s.contiguous(memory_format=torch.channels_last) for s in (h0_BCHW, c0_BCHW))
        keep = any(x is not None and x.requires_grad for x in (x_NCHW, h0_BCHW, c0_BCHW, weight, bias))
        c_BCHW = c0_BCHW
        kept, cells, states = [], [c0_BCHW], []
        joined_BCHW = convolution.join(inputs[0], h0_BCHW)
        for x_BCHW in (*inputs[1:], None):
            gates_BKHW = convolution(joined_BCHW, c_BCHW.dtype, keep)
            h_BCHW, c_BCHW, joined_BCHW = functions.lstm_forward(gates_BKHW, c_BCHW, x_BCHW, convolution)
            states.append(h_BCHW)
            if keep:
                cells.append(c_BCHW)
                kept.append(gates_BKHW)
        ctx.conv, ctx.kernels, ctx.batch, ctx.steps, ctx.dtype = conv, kernels, batch, steps, x_NCHW.dtype
        # saved but not read: autograd then notices if a weight that needed no copy is changed before the backward pass
        ctx.save_for_backward(weight, *convolution.convolved, *kept, *cells)
        return _one_after_another(states), h_BCHW.detach(), c_BCHW

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_NCHW: torch.Tensor, grad_h: torch.Tensor, grad_c: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        _, *saved = ctx.saved_tensors
        batch, steps = ctx.batch, ctx.steps
        convolved, kept, cells = saved[:steps], saved[steps : 2 * steps], saved[2 * steps :]
        convolution, functions = StepConvolution(ctx.conv, ctx.kernels, grad_NCHW, convolved), ctx.kernels or gates
        grad_x_NCHW = None
        if ctx.kernels is None and steps > 1:  # added up at once, so that gradients of few steps are in memory
            grad_x_NCHW = torch.zeros_like(grad_NCHW, memory_format=torch.channels_last)
        # grad_h and grad_c: the gradients of h_t and c_t from the steps after t
        for t in range(steps - 1, -1, -1):
            frames = slice(t * batch, (t + 1) * batch)
            grad_BKHW, grad_c = functions.lstm_backward(
                grad_NCHW[frames], grad_h, grad_c, kept[t], cells[t], cells[t + 1], convolution
            )
            grad_h = convolution.backward(t, grad_BKHW, None if grad_x_NCHW is None else grad_x_NCHW[frames])
        if grad_x_NCHW is None:
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
        convolution_a, convolution_b = (StepConvolution(conv, kernels, x_NCHW) for conv in (conv_a, conv_b))
        functions = kernels or gates
        inputs = _apart(x_NCHW, h0_BCHW, kernels)
        keep = any(x is not None and x.requires_grad for x in (x_NCHW, h0_BCHW, weight_a, bias_a, weight_b, bias_b))
        kept, candidates, states = [], [], [h0_BCHW.contiguous(memory_format=torch.channels_last)]
        joined_BCHW = convolution_a.join(inputs[0], states[0])
        for t in range(steps):
            x_BCHW, next_BCHW = inputs[t], inputs[t + 1] if t + 1 < steps else None
            gates_BKHW = convolution_a(joined_BCHW, h0_BCHW.dtype, keep)
            reset_BCHW = functions.gru_reset(gates_BKHW, states[t], x_BCHW, convolution_b)
            n = convolution_b(reset_BCHW, h0_BCHW.dtype, keep)
            h_BCHW, joined_BCHW = functions.gru_update(n, gates_BKHW, states[t], next_BCHW, convolution_a)
            states.append(h_BCHW)
            if keep:
                kept.append(gates_BKHW)
                candidates.append(n)
        ctx.convs, ctx.kernels, ctx.batch, ctx.steps, ctx.dtype = (conv_a, conv_b), kernels, batch, steps, x_NCHW.dtype
        convolved = [*convolution_a.convolved, *convolution_b.convolved]
        # saved but not read: autograd then notices if a weight that needed no copy is changed before the backward pass
        ctx.save_for_backward(weight_a, weight_b, *convolved, *kept, *candidates, *states[:-1])
        return _one_after_another(states[1:]), h_BCHW.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NCHW: torch.Tensor, grad_h: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        batch, steps = ctx.batch, ctx.steps
        saved = ctx.saved_tensors[2:]
        convolved_a, convolved_b, kept, candidates, states = (saved[i : i + steps] for i in range(0, 5 * steps, steps))
        convolution_a, convolution_b = (
            StepConvolution(conv, ctx.kernels, grad_NCHW, convolved)
            for conv, convolved in zip(ctx.convs, (convolved_a, convolved_b), strict=True)
        )
        functions = ctx.kernels or gates
        grad_x_NCHW = None
        if ctx.kernels is None and steps > 1:  # added up at once, so that gradients of few steps are in memory
            grad_x_NCHW = torch.zeros_like(grad_NCHW, memory_format=torch.channels_last)
        # The gradient of h_t from the steps after t is the sum of grad_h, which reached it by the convolution of the
        # gates, and of carry, which did so by the interpolation and by the reset r h_t.
        carry = None
        for t in range(steps - 1, -1, -1):
            frames = slice(t * batch, (t + 1) * batch)
            grad_x_BCHW = None if grad_x_NCHW is None else grad_x_NCHW[frames]
            grad_n, total = functions.gru_candidate_backward(
                grad_NCHW[frames], grad_h, carry, kept[t], candidates[t], convolution_b
            )
            grad_reset = convolution_b.backward(t, grad_n, grad_x_BCHW)
            grad_BKHW, carry = functions.gru_gates_backward(
                total, grad_reset, kept[t], candidates[t], states[t], convolution_a
            )
            grad_h = convolution_a.backward(t, grad_BKHW, grad_x_BCHW)
        if grad_x_NCHW is None:
            grad_x_NCHW = convolution_a.input_gradients() + convolution_b.input_gradients()
        assert carry is not None
        return grad_x_NCHW.to(ctx.dtype), carry + grad_h, None, None, None, None, None, None
