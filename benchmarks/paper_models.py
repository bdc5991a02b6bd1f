"""The paper's formulation of the five models, written plainly: the baseline of the benchmarks.

The minimal cells run a cumulative sum in log space (Horuz et al. 2025, arXiv 2508.03614, sections 3.1 to 3.3)
over the teacher-forced frames, then step by step; ConvLSTM and ConvGRU go frame by frame through the whole
stack, with one convolution of [input, state] per layer. Every gate is convolved, and autograd differentiates every
step.

Axes: B batch, T time, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from mcrnn.models import Forecaster

SIZES = {"convgru": 28, "convlstm": 25, "minconvgru": 49, "minconvlstm": 40, "minconvexplstm": 40}
"""The paper's hidden sizes for Navier-Stokes: four layers on 16 x 16, about 175,000 parameters."""
LAYERS = 4


def log_g(v: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the candidate activation."""
    return torch.where(v >= 0, (F.relu(v) + 0.5).log(), -F.softplus(-v))


def g(v: torch.Tensor) -> torch.Tensor:
    """Return the candidate activation: v + 0.5 where v >= 0, else sigmoid(v)."""
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v))


def log_space(log_a_BTCHW: torch.Tensor, log_b_BTCHW: torch.Tensor, h_BCHW: torch.Tensor) -> torch.Tensor:
    """Return all h_t of h_t = a_t h_{t-1} + b_t, by a cumulative log-sum-exp over time."""
    a_star = F.pad(log_a_BTCHW.cumsum(1), (0, 0, 0, 0, 0, 0, 1, 0))
    values = torch.cat([h_BCHW.log()[:, None], log_b_BTCHW], dim=1)
    return torch.exp(a_star + torch.logcumsumexp(values - a_star, dim=1))[:, 1:]


class PaperCell(nn.Module):
    """The cell of one recurrent layer, which keeps its state between steps."""

    def __init__(self, architecture: str, hidden_size: int, padding: str) -> None:
        super().__init__()
        self.architecture, self.hidden_size = architecture, hidden_size
        self.minimal = architecture.startswith("min")
        inputs = hidden_size if self.minimal else 2 * hidden_size
        self.wrapped = {"circular": (1, 1, 1, 1), "cylinder": (1, 1, 0, 0), "zeros": (0, 0, 0, 0)}[padding]
        self.zeros = {"circular": (0, 0), "cylinder": (1, 0), "zeros": (1, 1)}[padding]
        outputs = {"convgru": 2, "convlstm": 4, "minconvgru": 2, "minconvlstm": 3, "minconvexplstm": 3}[architecture]
        self.conv = nn.Conv2d(inputs, outputs * hidden_size, 3, padding=self.zeros)
        if architecture == "convgru":
            self.conv_b = nn.Conv2d(inputs, hidden_size, 3, padding=self.zeros)
        self.state: tuple[torch.Tensor, ...] = ()

    def reset(self, x_BCHW: torch.Tensor) -> None:
        """Set the state to the one before the first frame."""
        zero = x_BCHW.new_zeros(len(x_BCHW), self.hidden_size, *x_BCHW.shape[2:])
        self.state = (zero + 0.5,) if self.minimal else (zero, zero)

    def padded(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Wrap frames around the edges that the boundary wraps."""
        return F.pad(x_NCHW, self.wrapped, mode="circular") if any(self.wrapped) else x_NCHW

    def parallel(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return all hidden states of a sequence at once; for minimal cells only."""
        out_BTCHW = self.conv(self.padded(x_BTCHW.flatten(0, 1))).unflatten(0, x_BTCHW.shape[:2])
        parts = out_BTCHW.split(self.hidden_size, dim=2)
        if self.architecture == "minconvgru":
            log_a, log_b = -F.softplus(parts[0]), -F.softplus(-parts[0])
        elif self.architecture == "minconvlstm":
            difference = F.softplus(-parts[0]) - F.softplus(-parts[1])
            log_a, log_b = -F.softplus(difference), -F.softplus(-difference)
        else:
            difference = parts[0] - parts[1]
            log_a = F.logsigmoid(difference)
            log_b = log_a - difference
        h_BTCHW = log_space(log_a, log_b + log_g(parts[-1]), self.state[0])
        self.state = (h_BTCHW[:, -1],)
        return h_BTCHW

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the hidden state after one frame."""
        h_BCHW = self.state[0]
        if self.architecture == "convlstm":
            out_BCHW = self.conv(self.padded(torch.cat([x_BCHW, h_BCHW], dim=1)))
            n, i, f, o = out_BCHW.split(self.hidden_size, dim=1)
            c_BCHW = torch.sigmoid(f) * self.state[1] + torch.sigmoid(i) * torch.tanh(n)
            self.state = (torch.sigmoid(o) * torch.tanh(c_BCHW), c_BCHW)
        elif self.architecture == "convgru":
            out_BCHW = torch.sigmoid(self.conv(self.padded(torch.cat([x_BCHW, h_BCHW], dim=1))))
            z, r = out_BCHW.chunk(2, dim=1)
            candidate = torch.tanh(self.conv_b(self.padded(torch.cat([x_BCHW, r * h_BCHW], dim=1))))
            self.state = ((1 - z) * h_BCHW + z * candidate,)
        else:
            parts = self.conv(self.padded(x_BCHW)).split(self.hidden_size, dim=1)
            if self.architecture == "minconvgru":
                b = torch.sigmoid(parts[0])
                a = 1 - b
            elif self.architecture == "minconvlstm":
                f, i = torch.sigmoid(parts[0]), torch.sigmoid(parts[1])
                a, b = f / (f + i), i / (f + i)
            else:
                a = torch.sigmoid(parts[0] - parts[1])
                b = 1 - a
            self.state = (a * h_BCHW + b * g(parts[-1]),)
        return self.state[0]


class PaperForecaster(nn.Module):
    """The network: encoder, residual recurrent layers with layer norms over the grid, decoder."""

    def __init__(
        self, architecture: str, hidden_size: int, layers: int, channels: int, grid: tuple[int, int], padding: str
    ) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(channels, hidden_size, 1)
        cells = [PaperCell(architecture, hidden_size, padding) for _ in range(layers)]
        self.cells: Iterable[PaperCell] = nn.ModuleList(cells)  # type: ignore[assignment]
        self.minimal = cells[0].minimal
        self.norms = nn.ModuleList(nn.LayerNorm(grid) for _ in range(layers))
        self.decoder = nn.Conv2d(hidden_size, channels, 1)

    def take_weights(self, model: Forecaster) -> None:
        """Copy the weights of one of our networks of the same sizes."""
        theirs = {
            name.replace("encoder.0.", "encoder.").replace("conv_a.", "conv."): value
            for name, value in model.state_dict().items()
        }
        self.load_state_dict(theirs)

    def forward(self, x_BTCHW: torch.Tensor, teacher_forcing_steps: int) -> torch.Tensor:
        """Predict, at each step, the frame after the step's input: (B, T, C, H, W)."""
        batch, steps = x_BTCHW.shape[:2]
        outputs = []
        first = 0
        for cell in self.cells:
            cell.reset(x_BTCHW[:, 0])
        y_BCHW = x_BTCHW[:, 0]
        if self.minimal:
            first = min(teacher_forcing_steps, steps)
            x_NCHW = self.encoder(x_BTCHW[:, :first].flatten(0, 1))
            for cell, norm in zip(self.cells, self.norms, strict=True):
                z_BTCHW = cell.parallel(x_NCHW.unflatten(0, (batch, first)))
                x_NCHW = norm(z_BTCHW.flatten(0, 1) + x_NCHW)
            y_BTCHW = self.decoder(x_NCHW).unflatten(0, (batch, first))
            outputs.append(y_BTCHW)
            y_BCHW = y_BTCHW[:, -1]
        for t in range(first, steps):
            x_BCHW = self.encoder(x_BTCHW[:, t] if t < teacher_forcing_steps else y_BCHW)
            for cell, norm in zip(self.cells, self.norms, strict=True):
                x_BCHW = norm(x_BCHW + cell(x_BCHW))
            y_BCHW = self.decoder(x_BCHW)
            outputs.append(y_BCHW[:, None])
        return torch.cat(outputs, dim=1)
