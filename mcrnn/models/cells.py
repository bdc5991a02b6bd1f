"""The recurrent cells, behind one protocol, each with what it costs.

A cell maps hidden width to hidden width by convolutions and keeps nothing between calls: the state goes in and
comes out. `forward` takes a whole sequence, `step` one frame, with the same numbers. Any batch size, length and
grid. States are kept in float32 where the inputs are of lower precision.

`mcrnn.config.architectures` is the table of their names, and says how to add one.

Axes: B batch, T time, N frames (T x B, time first), C channels, H height, W width. States are tuples of tensors
(B, C, H, W). Sequences lie in memory time first, so that a step's frames are together.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.models.convolution import PaddedConv
from mcrnn.models.gated_recurrence import ConvGRURecurrence, ConvLSTMRecurrence
from mcrnn.models.minimal_recurrence import ConvolvedRecurrence
from mcrnn.models.prepared_convolution import PreparedConv

State = tuple[torch.Tensor, ...]
"""The tensors that a cell carries from step to step, each (B, C, H, W)."""
PreparedConvs = tuple[PreparedConv, ...]
"""A cell's convolutions, ready for use."""


def cell_class(architecture: str) -> type[Cell]:
    """Return the cell class of an architecture.

    Raises:
        ValueError: there is no such architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture '{architecture}'; known: {', '.join(ARCHITECTURES)}")
    module, _, name = ARCHITECTURES[architecture].partition(":")
    return getattr(importlib.import_module(module), name)


def to_frames(x_BTCHW: torch.Tensor) -> torch.Tensor:
    """Return the frames of a sequence, (T x B, C, H, W), time first; no copy where the sequence lies so in memory."""
    return x_BTCHW.transpose(0, 1).flatten(0, 1)


def to_sequence(x_NCHW: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the sequence (B, T, C, H, W) that `to_frames` has taken apart; no copy."""
    return x_NCHW.unflatten(0, (-1, batch)).transpose(0, 1)


@dataclass(frozen=True)
class CellCosts:
    """The costs of a cell of hidden size c: its k x k convolutions, and the activations kept for the backward pass.

    `mcrnn.models.sizing` adds these up over the layers of a network. A cell that is not made of such convolutions
    overrides the methods in a subclass.
    """

    inputs: int
    """Channels that are convolved, in multiples of c: 1 for the input alone, 2 for [input, state]."""
    blocks: int
    """Channels that the convolutions' parameters give, in multiples of c: the gates and the candidate."""
    blocks_computed: int
    """Channels that the convolutions compute, in multiples of c: fewer than `blocks` where weights are merged first."""
    activations: int
    """Activations of c channels on the grid that are kept, besides the frames that are convolved."""
    padded_activations: int
    """Activations of c channels that are convolved, kept with the padding around them."""

    def parameters(self, c: int, kernel_size: int) -> int:
        """Return the number of parameters of the cell, weights and biases."""
        return self.blocks * (self._weights(c, kernel_size) + c)

    def multiply_adds(self, c: int, kernel_size: int, points: int) -> int:
        """Return the multiply-adds of the forward pass of one frame with so many grid points."""
        return self.blocks_computed * self._weights(c, kernel_size) * points

    def kept_values(self, c: int, kernel_size: int, height: int, width: int) -> int:
        """Return how many values of one frame are kept for the backward pass."""
        padded_points = (height + kernel_size - 1) * (width + kernel_size - 1)
        return c * (self.activations * height * width + self.padded_activations * padded_points)

    def _weights(self, c: int, kernel_size: int) -> int:
        """Return the weights of one block."""
        return self.inputs * kernel_size * kernel_size * c * c


class Cell(nn.Module, ABC):
    """The protocol of all cells.

    Args:
        hidden_size: channels of inputs, states and outputs.
        padding: circular, cylinder or zeros; see `convolution.BoundaryPadding`.
        kernel_size: of the convolutions, odd.
    """

    costs: ClassVar[CellCosts]
    """The costs of the cell, at any hidden size."""
    num_states: ClassVar[int] = 1
    """Number of tensors that make a state."""

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def initial_state(self, x_BCHW: torch.Tensor) -> State:
        """Return the state before the first frame, zero, for the batch size, grid, device and dtype of `x_BCHW`."""
        return tuple(self._filled(x_BCHW, 0.0) for _ in range(self.num_states))

    def _filled(self, x_BCHW: torch.Tensor, value: float) -> torch.Tensor:
        batch, _, height, width = x_BCHW.shape
        shape = (batch, self.hidden_size, height, width)
        dtype = torch.promote_types(x_BCHW.dtype, torch.float32)
        state_BCHW = torch.empty(shape, dtype=dtype, device=x_BCHW.device, memory_format=torch.channels_last)
        return state_BCHW.fill_(value)

    def prepare(self) -> PreparedConvs:
        """Make the parameters ready for use; whoever runs a cell many times in a row does it once.

        None by default, for cells that use their parameters as they are.
        """
        return ()

    @classmethod
    def prepare_layers(cls, cells: Sequence[Cell]) -> list[PreparedConvs]:
        """Do for several cells of this class what `prepare` does for one; overridden where it can be done at once."""
        return [cell.prepare() for cell in cells]

    @abstractmethod
    def run(self, x_NCHW: torch.Tensor, state: State, convs: PreparedConvs) -> tuple[torch.Tensor, State]:
        """Return the hidden states after each of the frames, which lie time first, and the state after the last.

        Args:
            x_NCHW: frames of at least one step, (T x B, C, H, W).
            state: the state before the first step.
            convs: what `prepare` has returned.

        Returns:
            The hidden states (T x B, C, H, W), and the state.
        """

    def forward(self, x_BTCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Return all hidden states (B, T, C, H, W) of a sequence of at least one frame, and the state after it."""
        h_NCHW, state = self.run(to_frames(x_BTCHW), state, self.prepare())
        return to_sequence(h_NCHW, len(x_BTCHW)), state

    def step(self, x_BCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Return the hidden state (B, C, H, W) after one frame, and the state."""
        return self.run(x_BCHW, state, self.prepare())


class MinimalCell(Cell):
    """The minimal cells: gates see the input only, so that a sequence is one convolution and one recurrence.

    The state starts at g(0) = 0.5 everywhere, in both modes: what the paper's training code, which takes the
    logarithm of g(0), effectively uses.
    """

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size, padding, kernel_size)
        self.conv = PaddedConv(hidden_size, self.costs.blocks * hidden_size, kernel_size, padding)

    def initial_state(self, x_BCHW: torch.Tensor) -> State:
        return (self._filled(x_BCHW, 0.5),)

    def prepare(self) -> PreparedConvs:
        return (self.conv.prepare(),)

    def run(self, x_NCHW: torch.Tensor, state: State, convs: PreparedConvs) -> tuple[torch.Tensor, State]:
        (conv,) = convs
        h_NCHW, last = ConvolvedRecurrence.apply(x_NCHW, *state, conv.weight, conv.bias, conv)
        return h_NCHW, (last,)


class MinConvGRUCell(MinimalCell):
    """MinConvGRU (paper, 3.2): h_t = (1 - z_t) h_{t-1} + z_t g(v_t), z = sigmoid(k); blocks k, v."""

    costs = CellCosts(inputs=1, blocks=2, blocks_computed=2, activations=3, padded_activations=1)


class MinConvLSTMCell(MinimalCell):
    """MinConvLSTM (paper, 3.1): forget and input gates normalised to sum to one; blocks f, i, v."""

    costs = CellCosts(inputs=1, blocks=3, blocks_computed=3, activations=4, padded_activations=1)


class MinConvExpLSTMCell(MinimalCell):
    """MinConvExpLSTM (paper, 3.3): exponential gates, z = exp(i) / (exp(f) + exp(i)) = sigmoid(i - f); blocks f, i, v.

    Only i - f is ever used, so the convolution runs with the difference of the two blocks of weights, and from there
    on it is a MinConvGRU: the same function and gradients for two thirds of the work.
    """

    costs = CellCosts(inputs=1, blocks=3, blocks_computed=2, activations=3, padded_activations=1)

    def prepare(self) -> PreparedConvs:
        return self.prepare_layers([self])[0]

    @classmethod
    def prepare_layers(cls, cells: Sequence[Cell]) -> list[PreparedConvs]:
        convs = [cast("MinConvExpLSTMCell", cell).conv for cell in cells]
        merged = _MergeGates.apply(*(conv.weight for conv in convs), *(conv.bias for conv in convs))
        weights, biases = merged[: len(convs)], merged[len(convs) :]
        return [
            (PreparedConv(weight, bias, conv.boundary),)
            for weight, bias, conv in zip(weights, biases, convs, strict=True)
        ]


class _MergeGates(torch.autograd.Function):
    """Blocks (f, i, v) of parameters to (i - f, v), of all parameters at once: on GPUs by two kernels each way."""

    @staticmethod
    def forward(ctx: Any, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = [len(parameter) // 3 for parameter in parameters]
        of_i_and_v = [parameter[size:] for parameter, size in zip(parameters, sizes, strict=True)]
        merged = [torch.empty_like(blocks) for blocks in of_i_and_v]
        torch._foreach_copy_(merged, of_i_and_v)
        torch._foreach_sub_(
            [blocks[:size] for blocks, size in zip(merged, sizes, strict=True)],
            [parameter[:size] for parameter, size in zip(parameters, sizes, strict=True)],
        )
        return tuple(merged)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = [len(gradient) // 2 for gradient in gradients]
        # with the strides of the gradients, so that one kernel can copy all
        results = [
            gradient.new_empty_strided((3 * size, *gradient.shape[1:]), gradient.stride())
            for gradient, size in zip(gradients, sizes, strict=True)
        ]
        of_f = [result[:size] for result, size in zip(results, sizes, strict=True)]
        of_i_and_v = [result[size:] for result, size in zip(results, sizes, strict=True)]
        of_difference = [gradient[:size] for gradient, size in zip(gradients, sizes, strict=True)]
        torch._foreach_copy_([*of_f, *of_i_and_v], [*of_difference, *gradients])
        torch._foreach_neg_(of_f)
        return tuple(results)


class ConvLSTMCell(Cell):
    """ConvLSTM (Shi et al. 2015, arXiv 1506.04214) without peepholes; state (h, c), zero at the start."""

    costs = CellCosts(inputs=2, blocks=4, blocks_computed=4, activations=5, padded_activations=2)
    num_states = 2

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size, padding, kernel_size)
        self.conv = PaddedConv(2 * hidden_size, 4 * hidden_size, kernel_size, padding)

    def prepare(self) -> PreparedConvs:
        return (self.conv.prepare(),)

    def run(self, x_NCHW: torch.Tensor, state: State, convs: PreparedConvs) -> tuple[torch.Tensor, State]:
        (conv,) = convs
        h_NCHW, *last = ConvLSTMRecurrence.apply(x_NCHW, *state, conv.weight, conv.bias, conv)
        return h_NCHW, tuple(last)


class ConvGRUCell(Cell):
    """ConvGRU (Ballas et al. 2016, arXiv 1511.06432); state (h,), zero at the start.

    z, r = sigmoid(conv_a[x, h]), candidate = tanh(conv_b[x, r h]), h' = (1 - z) h + z candidate.
    """

    costs = CellCosts(inputs=2, blocks=3, blocks_computed=3, activations=4, padded_activations=4)

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size, padding, kernel_size)
        self.conv_a = PaddedConv(2 * hidden_size, 2 * hidden_size, kernel_size, padding)
        self.conv_b = PaddedConv(2 * hidden_size, hidden_size, kernel_size, padding)

    def prepare(self) -> PreparedConvs:
        return self.conv_a.prepare(), self.conv_b.prepare()

    def run(self, x_NCHW: torch.Tensor, state: State, convs: PreparedConvs) -> tuple[torch.Tensor, State]:
        a, b = convs
        h_NCHW, *last = ConvGRURecurrence.apply(x_NCHW, *state, a.weight, a.bias, b.weight, b.bias, a, b)
        return h_NCHW, tuple(last)
