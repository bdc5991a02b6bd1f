"""The network of all five architectures: 1x1 encoder, stack of residual recurrent layers, 1x1 decoder.

A layer is x -> norm(x + cell(x)), the norm being a layer norm over the grid, the same for every channel
(paper, section 3.4). Input frames up to `teacher_forcing_steps` are the truth and go through the stack layer
by layer, all frames at once; after that each output is the next input.

Axes: B batch, T time, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import nn

from mcrnn.models.cells import CELLS, Cell, State, over_time


class Forecaster(nn.Module):
    """A convolutional recurrent forecaster of a field.

    Args:
        architecture: convgru, convlstm, minconvgru, minconvlstm or minconvexplstm.
        hidden_size: channels of every layer.
        layers: number of recurrent layers.
        channels: channels of the field.
        height: grid points of the field's first axis.
        width: grid points of its second axis.
        padding: circular, cylinder or zeros.
        decode: `residual` decodes the last layer's normed output; `hidden` its cell's hidden state, as the
            paper's ConvGRU does, which leaves the last norm unused (and frozen).
        tanh_encoder: a tanh after the encoder.
    """

    def __init__(
        self,
        architecture: str,
        *,
        hidden_size: int,
        layers: int,
        channels: int,
        height: int,
        width: int,
        padding: str = "circular",
        decode: str = "residual",
        tanh_encoder: bool = False,
    ) -> None:
        super().__init__()
        if architecture not in CELLS:
            raise ValueError(f"unknown architecture '{architecture}'; known: {', '.join(CELLS)}")
        if decode not in ("residual", "hidden"):
            raise ValueError(f"decode must be residual or hidden, not '{decode}'")
        self.frame_shape = (channels, height, width)
        self.decode = decode
        encoder = nn.Conv2d(channels, hidden_size, kernel_size=1)
        self.encoder = nn.Sequential(encoder, nn.Tanh()) if tanh_encoder else nn.Sequential(encoder)
        self.cells = nn.ModuleList(CELLS[architecture](hidden_size, padding) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm((height, width)) for _ in range(layers))
        self.decoder = nn.Conv2d(hidden_size, channels, kernel_size=1)
        if decode == "hidden":
            self.norms[-1].requires_grad_(False)

    def forward(
        self, x_BTCHW: torch.Tensor, teacher_forcing_steps: int | None = None, steps: int | None = None
    ) -> torch.Tensor:
        """Predict, at each step, the frame after the step's input.

        Args:
            x_BTCHW: input frames, in the units the model was trained in. Only the first
                `teacher_forcing_steps` are looked at.
            teacher_forcing_steps: steps whose input is the truth, at least 1; all frames by default. The
                input of every later step is the output of the step before, through which gradients flow.
            steps: number of steps; as many as there are frames by default.

        Returns:
            Predictions (B, steps, C, H, W): the one at index t is of frame t + 1.

        Raises:
            ValueError: the frames are not of the model's shape, or there are fewer of them than
                `teacher_forcing_steps`, or that is less than 1.
        """
        if x_BTCHW.ndim != 5 or x_BTCHW.shape[2:] != self.frame_shape:
            raise ValueError(
                f"expected frames of shape (batch, time, {', '.join(map(str, self.frame_shape))}) "
                f"(batch, time, channel, height, width), got {tuple(x_BTCHW.shape)}"
            )
        given = x_BTCHW.shape[1]
        steps = given if steps is None else steps
        forced = min(given if teacher_forcing_steps is None else teacher_forcing_steps, steps)
        if forced < 1:
            raise ValueError(f"at least one teacher-forced step is needed, got {forced}")
        if forced > given:
            raise ValueError(f"{forced} teacher-forced steps need as many frames, got {given}")
        y_BTCHW, states = self._sequence(x_BTCHW[:, :forced])
        outputs = [y_BTCHW]
        y_BCHW = y_BTCHW[:, -1]
        for _ in range(steps - forced):
            y_BCHW = self._step(y_BCHW, states)
            outputs.append(y_BCHW[:, None])
        return torch.cat(outputs, dim=1)

    def forecast(self, frames_BTCHW: torch.Tensor, steps: int) -> torch.Tensor:
        """Continue a sequence: the forecasts of lead times 1 .. steps, (B, steps, C, H, W)."""
        warm_up = frames_BTCHW.shape[1]
        return self(frames_BTCHW, warm_up, warm_up + steps - 1)[:, warm_up - 1 :]

    def _sequence(self, x_BTCHW: torch.Tensor) -> tuple[torch.Tensor, list[State]]:
        x_BTCHW = over_time(self.encoder, x_BTCHW)
        z_BTCHW = x_BTCHW
        states = []
        for index, (cell, norm) in enumerate(self._layers()):
            z_BTCHW, state = cell(x_BTCHW, cell.initial_state(x_BTCHW[:, 0]))
            states.append(state)
            if not self._skips_norm(index):
                x_BTCHW = norm(x_BTCHW + z_BTCHW)
        return over_time(self.decoder, z_BTCHW if self.decode == "hidden" else x_BTCHW), states

    def _step(self, x_BCHW: torch.Tensor, states: list[State]) -> torch.Tensor:
        """One closed-loop step; replaces the states in the list."""
        x_BCHW = self.encoder(x_BCHW)
        z_BCHW = x_BCHW
        for index, (cell, norm) in enumerate(self._layers()):
            z_BCHW, states[index] = cell.step(x_BCHW, states[index])
            if not self._skips_norm(index):
                x_BCHW = norm(x_BCHW + z_BCHW)
        return self.decoder(z_BCHW if self.decode == "hidden" else x_BCHW)

    def _layers(self) -> Iterator[tuple[Cell, nn.Module]]:
        return zip(cast("Iterable[Cell]", self.cells), self.norms, strict=True)

    def _skips_norm(self, layer: int) -> bool:
        return self.decode == "hidden" and layer == len(self.cells) - 1
