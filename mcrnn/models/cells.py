"""The five recurrent cells, behind one protocol.

A cell maps hidden width to hidden width by convolutions and keeps nothing between calls: the state goes in and
comes out. `forward` takes a whole sequence, `step` one frame, with the same numbers. Any batch size, length and
grid. States are kept in float32 where the inputs are of lower precision.

Axes: B batch, T time, C channels, H height, W width. States are tuples of tensors (B, C, H, W). Sequences lie in
memory time first, so that a step's frames are together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from mcrnn.models.convolution import Kernel, PaddedConv
from mcrnn.models.gated_recurrence import ConvGRURecurrence, ConvLSTMRecurrence
from mcrnn.models.minimal_recurrence import ConvolvedRecurrence

State = tuple[torch.Tensor, ...]
Kernels = tuple[Kernel, ...]


def frames(x_BTCHW: torch.Tensor) -> torch.Tensor:
    """All frames of a sequence, (T x B, C, H, W); no copy where the sequence lies time first."""
    return x_BTCHW.transpose(0, 1).flatten(0, 1)


def sequence(x_NCHW: torch.Tensor, batch: int) -> torch.Tensor:
    """The sequence (B, T, C, H, W) of such frames."""
    return x_NCHW.unflatten(0, (-1, batch)).transpose(0, 1)


class Cell(nn.Module, ABC):
    """What all five cells do.

    Args:
        hidden_size: channels of inputs, states and outputs.
        padding: circular, cylinder or zeros; see `convolution.Wrap`.
        kernel_size: odd.
    """

    states = 1
    """tensors that make a state"""

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def initial_state(self, x_BCHW: torch.Tensor) -> State:
        """The state before the first frame, zero, for the batch size, grid, device and dtype of `x_BCHW`."""
        return tuple(self._filled(x_BCHW, 0.0) for _ in range(self.states))

    def _filled(self, x_BCHW: torch.Tensor, value: float) -> torch.Tensor:
        batch, _, height, width = x_BCHW.shape
        shape = (batch, self.hidden_size, height, width)
        dtype = torch.promote_types(x_BCHW.dtype, torch.float32)
        return torch.full(shape, value, dtype=dtype, device=x_BCHW.device).to(memory_format=torch.channels_last)

    @abstractmethod
    def kernels(self) -> Kernels:
        """The parameters, ready for use: who calls a cell many times in a row makes them once."""

    @abstractmethod
    def run(self, x_NCHW: torch.Tensor, state: State, kernels: Kernels) -> tuple[torch.Tensor, State]:
        """`forward` over frames that lie time first, (T x B, C, H, W)."""

    def forward(self, x_BTCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """All hidden states (B, T, C, H, W) of a sequence of at least one frame, and the state after it."""
        h_NCHW, state = self.run(frames(x_BTCHW), state, self.kernels())
        return sequence(h_NCHW, len(x_BTCHW)), state

    def step(self, x_BCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """The hidden state (B, C, H, W) after one frame, and the state."""
        return self.run(x_BCHW, state, self.kernels())


class MinimalCell(Cell):
    """The minimal cells: gates see the input only, so that a sequence is one convolution and one recurrence.

    The state starts at g(0) = 0.5 everywhere, in both modes: what the paper's training code, which takes the
    logarithm of g(0), effectively uses.
    """

    blocks: int

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size, padding, kernel_size)
        self.conv = PaddedConv(hidden_size, self.blocks * hidden_size, kernel_size, padding)

    def initial_state(self, x_BCHW: torch.Tensor) -> State:
        return (self._filled(x_BCHW, 0.5),)

    def kernels(self) -> Kernels:
        return (self.conv.kernel(),)

    def run(self, x_NCHW: torch.Tensor, state: State, kernels: Kernels) -> tuple[torch.Tensor, State]:
        (kernel,) = kernels
        h_NCHW, last = ConvolvedRecurrence.apply(x_NCHW, *state, kernel.weight, kernel.bias, kernel)
        return h_NCHW, (h_NCHW if last is None else last,)


class MinConvGRUCell(MinimalCell):
    """MinConvGRU (paper, 3.2): h_t = (1 - z_t) h_{t-1} + z_t g(v_t), z = sigmoid(k); blocks k, v."""

    blocks = 2


class MinConvLSTMCell(MinimalCell):
    """MinConvLSTM (paper, 3.1): forget and input gates normalised to sum to one; blocks f, i, v."""

    blocks = 3


class MinConvExpLSTMCell(MinimalCell):
    """MinConvExpLSTM (paper, 3.3): exponential gates, z = exp(i) / (exp(f) + exp(i)) = sigmoid(i - f); blocks f, i, v.

    Only i - f is ever used, so the convolution runs with the difference of the two blocks of weights, and from there
    on it is a MinConvGRU: the same function and gradients for two thirds of the work.
    """

    blocks = 3

    def kernels(self) -> Kernels:
        def merge(parameter: torch.Tensor) -> torch.Tensor:
            f, i, v = parameter.split(self.hidden_size)
            return torch.cat([i - f, v])

        bias = None if self.conv.bias is None else merge(self.conv.bias)
        return (Kernel(merge(self.conv.weight), bias, self.conv.wrap),)


class ConvLSTMCell(Cell):
    """ConvLSTM (Shi et al. 2015, arXiv 1506.04214) without peepholes; state (h, c), zero at the start."""

    states = 2

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size, padding, kernel_size)
        self.conv = PaddedConv(2 * hidden_size, 4 * hidden_size, kernel_size, padding)

    def kernels(self) -> Kernels:
        return (self.conv.kernel(),)

    def run(self, x_NCHW: torch.Tensor, state: State, kernels: Kernels) -> tuple[torch.Tensor, State]:
        (kernel,) = kernels
        h_NCHW, *last = ConvLSTMRecurrence.apply(x_NCHW, *state, kernel.weight, kernel.bias, kernel)
        return h_NCHW, tuple(last)


class ConvGRUCell(Cell):
    """ConvGRU (Ballas et al. 2016, arXiv 1511.06432); state (h,), zero at the start.

    z, r = sigmoid(conv_a[x, h]), candidate = tanh(conv_b[x, r h]), h' = (1 - z) h + z candidate.
    """

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size, padding, kernel_size)
        self.conv_a = PaddedConv(2 * hidden_size, 2 * hidden_size, kernel_size, padding)
        self.conv_b = PaddedConv(2 * hidden_size, hidden_size, kernel_size, padding)

    def kernels(self) -> Kernels:
        return self.conv_a.kernel(), self.conv_b.kernel()

    def run(self, x_NCHW: torch.Tensor, state: State, kernels: Kernels) -> tuple[torch.Tensor, State]:
        a, b = kernels
        h_NCHW, *last = ConvGRURecurrence.apply(x_NCHW, *state, a.weight, a.bias, b.weight, b.bias, a, b)
        return h_NCHW, tuple(last)


CELLS: dict[str, type[Cell]] = {
    "convgru": ConvGRUCell,
    "convlstm": ConvLSTMCell,
    "minconvgru": MinConvGRUCell,
    "minconvlstm": MinConvLSTMCell,
    "minconvexplstm": MinConvExpLSTMCell,
}
