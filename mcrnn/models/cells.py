"""The five recurrent cells, behind one protocol.

A cell maps hidden width to hidden width by 3 x 3 convolutions and keeps nothing between calls: the state
goes in and comes out. `forward` takes a whole sequence, `step` one frame, with the same numbers.

Axes: B batch, T time, C channels, H height, W width. States are tuples of tensors (B, C, H, W).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from mcrnn.models.scan import g, scan

State = tuple[torch.Tensor, ...]


class PaddedConv(nn.Conv2d):
    """Convolution with stride 1 that keeps the grid, padded as the field's boundary asks.

    `circular` wraps both axes, `cylinder` wraps the width (longitude) and pads the height (latitude) with
    zeros, `zeros` pads both with zeros.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, padding: str) -> None:
        if padding not in ("circular", "cylinder", "zeros"):
            raise ValueError(f"padding must be circular, cylinder or zeros, not '{padding}'")
        super().__init__(channels_in, channels_out, kernel_size)
        self.boundary = padding

    def convolve(self, x_BCHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Pad and convolve with any weights of this kernel size."""
        p = self.kernel_size[0] // 2
        if p == 0 or self.boundary == "zeros":
            return F.conv2d(x_BCHW, weight, bias, padding=p)
        if self.boundary == "circular":
            return F.conv2d(F.pad(x_BCHW, (p, p, p, p), mode="circular"), weight, bias)
        return F.conv2d(F.pad(x_BCHW, (p, p, 0, 0), mode="circular"), weight, bias, padding=(p, 0))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.convolve(x_BCHW, self.weight, self.bias)


def over_time(module: nn.Module, x_BTCHW: torch.Tensor) -> torch.Tensor:
    """Apply a module that knows (N, C, H, W) to every frame of (B, T, C, H, W)."""
    return module(x_BTCHW.flatten(0, 1)).unflatten(0, x_BTCHW.shape[:2])


class Cell(nn.Module, ABC):
    """What all five cells do. Subclasses give `initial_state`, `forward` and `step`."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    @abstractmethod
    def initial_state(self, x_BCHW: torch.Tensor) -> State:
        """The state before the first frame, for frames like `x_BCHW` (hidden width, dtype, device)."""

    @abstractmethod
    def forward(self, x_BTCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """All hidden states (B, T, C, H, W) of a sequence, and the state after it."""

    @abstractmethod
    def step(self, x_BCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """The hidden state (B, C, H, W) after one frame, and the state."""


class MinimalCell(Cell):
    """The minimal cells: gates see the input only, so that a sequence is one convolution and one scan.

    The state starts at g(0) = 0.5 everywhere, in both modes: what the paper's training code, which takes the
    logarithm of g(0), effectively uses.
    """

    gates: int

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size)
        self.conv = PaddedConv(hidden_size, (self.gates + 1) * hidden_size, kernel_size, padding)

    def weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the one convolution that gives `retention`'s gates and the candidate."""
        return self.conv.weight, self.conv.bias

    @staticmethod
    @abstractmethod
    def retention(gates: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """a, the share of the previous state that is kept, of the gates before activation."""

    def initial_state(self, x_BCHW: torch.Tensor) -> State:
        return (torch.full_like(x_BCHW, 0.5),)

    def _gates_and_candidate(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.conv.convolve(x_NCHW, *self.weights())

    def forward(self, x_BTCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        out_BTCHW = self._gates_and_candidate(x_BTCHW.flatten(0, 1)).unflatten(0, x_BTCHW.shape[:2])
        *gates, v_BTCHW = out_BTCHW.split(self.hidden_size, dim=2)
        h_BTCHW = scan(self.retention(tuple(gates)), v_BTCHW, state[0])
        return h_BTCHW, (h_BTCHW[:, -1],)

    def step(self, x_BCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        *gates, v_BCHW = self._gates_and_candidate(x_BCHW).split(self.hidden_size, dim=1)
        h_BCHW = torch.lerp(g(v_BCHW), state[0], self.retention(tuple(gates)))
        return h_BCHW, (h_BCHW,)


class MinConvGRUCell(MinimalCell):
    """MinConvGRU (paper, 3.2): h_t = (1 - z_t) h_{t-1} + z_t g(v_t), z = sigmoid(k); a = sigmoid(-k)."""

    gates = 1

    @staticmethod
    def retention(gates: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.sigmoid(-gates[0])


class MinConvLSTMCell(MinimalCell):
    """MinConvLSTM (paper, 3.1): forget and input gates normalised to sum to one.

    a = sigmoid(f) / (sigmoid(f) + sigmoid(i)), written as sigmoid(log sigmoid(f) - log sigmoid(i)), which
    does not divide zero by zero where both gates are shut.
    """

    gates = 2

    @staticmethod
    def retention(gates: tuple[torch.Tensor, ...]) -> torch.Tensor:
        f, i = gates
        return torch.sigmoid(F.logsigmoid(f) - F.logsigmoid(i))


class MinConvExpLSTMCell(MinimalCell):
    """MinConvExpLSTM (paper, 3.3): exponential gates; a = exp(f) / (exp(f) + exp(i)) = sigmoid(f - i).

    Only f - i is ever used, so the convolution runs with the difference of the two blocks of weights: the
    same function and gradients for two thirds of the work.
    """

    gates = 2

    def weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        def merge(parameter: torch.Tensor) -> torch.Tensor:
            f, i, v = parameter.split(self.hidden_size)
            return torch.cat([f - i, v])

        return merge(self.conv.weight), None if self.conv.bias is None else merge(self.conv.bias)

    @staticmethod
    def retention(gates: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.sigmoid(gates[0])


class ConvLSTMCell(Cell):
    """ConvLSTM (Shi et al. 2015, arXiv 1506.04214) without peepholes; state (h, c), zero at the start.

    Over a sequence the input's part of the convolution runs once for all frames; only the state's part
    waits for the step before.
    """

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size)
        self.conv = PaddedConv(2 * hidden_size, 4 * hidden_size, kernel_size, padding)

    def initial_state(self, x_BCHW: torch.Tensor) -> State:
        return (torch.zeros_like(x_BCHW), torch.zeros_like(x_BCHW))

    def _update(self, gates_BCHW: torch.Tensor, c_BCHW: torch.Tensor) -> State:
        candidate, i, f, o = gates_BCHW.split(self.hidden_size, dim=1)
        c_BCHW = torch.sigmoid(f) * c_BCHW + torch.sigmoid(i) * torch.tanh(candidate)
        return torch.sigmoid(o) * torch.tanh(c_BCHW), c_BCHW

    def forward(self, x_BTCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        of_input, of_state = self.conv.weight.split(self.hidden_size, dim=1)
        input_BTCHW = self.conv.convolve(x_BTCHW.flatten(0, 1), of_input, self.conv.bias).unflatten(
            0, x_BTCHW.shape[:2]
        )
        outputs = []
        for input_BCHW in input_BTCHW.unbind(1):
            h_BCHW, c_BCHW = state
            state = self._update(input_BCHW + self.conv.convolve(h_BCHW, of_state, None), c_BCHW)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state

    def step(self, x_BCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        h_BCHW, c_BCHW = state
        state = self._update(self.conv(torch.cat([x_BCHW, h_BCHW], dim=1)), c_BCHW)
        return state[0], state


class ConvGRUCell(Cell):
    """ConvGRU (Ballas et al. 2016, arXiv 1511.06432); state (h,), zero at the start.

    z, r = sigmoid(conv_a[x, h]), candidate = tanh(conv_b[x, r h]), h' = (1 - z) h + z candidate.
    """

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size)
        self.conv_a = PaddedConv(2 * hidden_size, 2 * hidden_size, kernel_size, padding)
        self.conv_b = PaddedConv(2 * hidden_size, hidden_size, kernel_size, padding)

    def initial_state(self, x_BCHW: torch.Tensor) -> State:
        return (torch.zeros_like(x_BCHW),)

    def forward(self, x_BTCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        a_of_input, a_of_state = self.conv_a.weight.split(self.hidden_size, dim=1)
        b_of_input, b_of_state = self.conv_b.weight.split(self.hidden_size, dim=1)
        bias = None
        if self.conv_a.bias is not None and self.conv_b.bias is not None:
            bias = torch.cat([self.conv_a.bias, self.conv_b.bias])
        input_BTCHW = self.conv_a.convolve(x_BTCHW.flatten(0, 1), torch.cat([a_of_input, b_of_input]), bias).unflatten(
            0, x_BTCHW.shape[:2]
        )
        (h_BCHW,) = state
        outputs = []
        for input_BCHW in input_BTCHW.unbind(1):
            a_BCHW, b_BCHW = input_BCHW.split([2 * self.hidden_size, self.hidden_size], dim=1)
            z, r = torch.sigmoid(a_BCHW + self.conv_a.convolve(h_BCHW, a_of_state, None)).chunk(2, dim=1)
            candidate = torch.tanh(b_BCHW + self.conv_b.convolve(r * h_BCHW, b_of_state, None))
            h_BCHW = torch.lerp(h_BCHW, candidate, z)
            outputs.append(h_BCHW)
        return torch.stack(outputs, dim=1), (h_BCHW,)

    def step(self, x_BCHW: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        (h_BCHW,) = state
        z, r = torch.sigmoid(self.conv_a(torch.cat([x_BCHW, h_BCHW], dim=1))).chunk(2, dim=1)
        candidate = torch.tanh(self.conv_b(torch.cat([x_BCHW, r * h_BCHW], dim=1)))
        h_BCHW = torch.lerp(h_BCHW, candidate, z)
        return h_BCHW, (h_BCHW,)


CELLS: dict[str, type[ConvGRUCell] | type[ConvLSTMCell] | type[MinimalCell]] = {
    "convgru": ConvGRUCell,
    "convlstm": ConvLSTMCell,
    "minconvgru": MinConvGRUCell,
    "minconvlstm": MinConvLSTMCell,
    "minconvexplstm": MinConvExpLSTMCell,
}
