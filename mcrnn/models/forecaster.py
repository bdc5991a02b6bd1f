"""The network of all five architectures: 1x1 encoder, stack of residual recurrent layers, 1x1 decoder.

A layer is x -> norm(x + cell(x)), the norm being by default a layer norm over the grid, the same for every channel
(paper, section 3.4). Input frames up to `teacher_forcing_steps` are the truth and go through the stack layer by
layer, all frames at once; after that each output is the next input.

Axes: B batch, T time, N frames (T x B, time first), C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import nn

from mcrnn.config.sections import ModelConfig
from mcrnn.models.cells import CELLS, Cell, Kernels, State, frames, sequence
from mcrnn.models.convolution import PointwiseConv


class Forecaster(nn.Module):
    """A convolutional recurrent forecaster of a field.

    Args:
        architecture: convgru, convlstm, minconvgru, minconvlstm or minconvexplstm.
        hidden_size: channels of every layer, or of each; between layers of different widths stands a 1x1
            convolution.
        layers: number of recurrent layers; may be left out where `hidden_size` gives one each.
        channels: channels of the field.
        height: grid points of the field's first axis.
        width: grid points of its second axis.
        padding: circular, cylinder or zeros.
        kernel_size: of the recurrent convolutions, odd.
        prediction: `frame` decodes the next frame, `increment` what is added to the last one.
        decode: `residual` decodes the last layer's normed output; `hidden` its cell's hidden state, as the
            paper's ConvGRU does, which leaves the last norm unused (and frozen).
        norm: `layer` over the grid, or `group` over groups of channels and the grid, for which any grid will do.
        norm_groups: groups of the group norm; divides every width.
        dropout: share of a layer's hidden channels that are dropped in training, before they are added.
        tanh_encoder: a tanh after the encoder.
        channels_out: channels that are predicted, the first so many; all by default. In closed loop the others
            stay as they were in the last frame given: for what does not change, such as orography.

    Raises:
        ValueError: an argument is not one of those, or they do not fit each other.
    """

    def __init__(
        self,
        architecture: str,
        *,
        hidden_size: int | Sequence[int],
        layers: int | None = None,
        channels: int,
        height: int,
        width: int,
        padding: str = "circular",
        kernel_size: int = 3,
        prediction: str = "frame",
        decode: str = "residual",
        norm: str = "layer",
        norm_groups: int = 1,
        dropout: float = 0.0,
        tanh_encoder: bool = False,
        channels_out: int | None = None,
    ) -> None:
        super().__init__()
        if architecture not in CELLS:
            raise ValueError(f"unknown architecture '{architecture}'; known: {', '.join(CELLS)}")
        _one_of("prediction", prediction, ("frame", "increment"))
        _one_of("decode", decode, ("residual", "hidden"))
        _one_of("norm", norm, ("layer", "group"))
        widths = widths_of(hidden_size, layers)
        channels_out = channels if channels_out is None else channels_out
        if not 1 <= channels_out <= channels:
            raise ValueError(f"channels_out must be from 1 to the {channels} channels of the field, not {channels_out}")
        if norm == "group" and any(width % norm_groups for width in widths):
            raise ValueError(f"norm_groups ({norm_groups}) must divide the hidden sizes, {widths}")
        self.frame_shape = (channels, height, width)
        self.takes_any_grid = norm == "group"
        self.channels_out = channels_out
        self.prediction, self.decode = prediction, decode
        encoder = PointwiseConv(channels, widths[0])
        self.encoder = nn.Sequential(encoder, nn.Tanh()) if tanh_encoder else nn.Sequential(encoder)
        before = [widths[0], *widths[:-1]]
        self.transitions = nn.ModuleList(
            nn.Identity() if a == b else PointwiseConv(a, b) for a, b in zip(before, widths, strict=True)
        )
        self.cells = nn.ModuleList(CELLS[architecture](size, padding, kernel_size) for size in widths)
        self.norms = nn.ModuleList(
            nn.LayerNorm((height, width)) if norm == "layer" else nn.GroupNorm(norm_groups, size) for size in widths
        )
        self.dropout = nn.Dropout2d(dropout) if dropout > 0 else nn.Identity()
        self.decoder = PointwiseConv(widths[-1], channels_out)
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
            Predictions (B, steps, channels_out, H, W): the one at index t is of frame t + 1.

        Raises:
            ValueError: the frames are not of the model's shape, or there are fewer of them than
                `teacher_forcing_steps`, or that is less than 1.
        """
        axes = 1 if self.takes_any_grid else 3
        if x_BTCHW.ndim != 5 or tuple(x_BTCHW.shape[2 : 2 + axes]) != self.frame_shape[:axes]:
            grid = ("any height", "any width") if self.takes_any_grid else self.frame_shape[1:]
            raise ValueError(
                f"expected frames of shape (batch, time, {', '.join(map(str, (self.frame_shape[0], *grid)))}) "
                f"(batch, time, channel, height, width), got {tuple(x_BTCHW.shape)}"
            )
        batch, given = x_BTCHW.shape[:2]
        steps = given if steps is None else steps
        forced = min(given if teacher_forcing_steps is None else teacher_forcing_steps, steps)
        if batch < 1:
            raise ValueError("at least one sample is needed, got a batch of none")
        if forced < 1:
            raise ValueError(f"at least one teacher-forced step is needed, got {forced}")
        if forced > given:
            raise ValueError(f"{forced} teacher-forced steps need as many frames, got {given}")
        states = [cell.initial_state(x_BTCHW[:, 0]) for cell in self._cells()]
        kernels = [cell.kernels() for cell in self._cells()]
        outputs = [self._advance(frames(x_BTCHW[:, :forced]), states, kernels)]
        held_BCHW = x_BTCHW[:, forced - 1, self.channels_out :]
        for _ in range(steps - forced):
            x_BCHW = outputs[-1][-batch:]
            if held_BCHW.shape[1]:
                x_BCHW = torch.cat([x_BCHW, held_BCHW], dim=1)
            outputs.append(self._advance(x_BCHW, states, kernels))
        return sequence(torch.cat(outputs), batch)

    def forecast(self, frames_BTCHW: torch.Tensor, steps: int) -> torch.Tensor:
        """Continue a sequence: the forecasts of lead times 1 .. steps, (B, steps, channels_out, H, W)."""
        warm_up = frames_BTCHW.shape[1]
        return self(frames_BTCHW, warm_up, warm_up + steps - 1)[:, warm_up - 1 :]

    def _advance(self, given_NCHW: torch.Tensor, states: list[State], kernels: list[Kernels]) -> torch.Tensor:
        """The outputs of the steps whose inputs these frames are; replaces the states in the list."""
        x_NCHW = self.encoder(given_NCHW)
        z_NCHW = x_NCHW
        last = len(states) - 1
        for layer, (cell, norm, transition) in enumerate(zip(self._cells(), self.norms, self.transitions, strict=True)):
            x_NCHW = transition(x_NCHW)
            z_NCHW, states[layer] = cell.run(x_NCHW, states[layer], kernels[layer])
            if layer < last or self.decode == "residual":
                x_NCHW = norm(x_NCHW + self.dropout(z_NCHW))
        y_NCHW = self.decoder(z_NCHW if self.decode == "hidden" else x_NCHW)
        y_NCHW = y_NCHW.to(given_NCHW.dtype)
        return given_NCHW[:, : self.channels_out] + y_NCHW if self.prediction == "increment" else y_NCHW

    def _cells(self) -> Iterator[Cell]:
        return iter(cast("Iterable[Cell]", self.cells))


def widths_of(hidden_size: int | Sequence[int], layers: int | None) -> list[int]:
    """The width of each layer.

    Raises:
        ValueError: there is none, or one is less than 1, or there are more or fewer than `layers`.
    """
    if isinstance(hidden_size, int):
        widths = [hidden_size] * (1 if layers is None else layers)
    else:
        widths = list(hidden_size)
        if layers is not None and layers != len(widths):
            raise ValueError(f"layers ({layers}) and hidden_size, which gives {len(widths)} widths, do not agree")
    if not widths or min(widths) < 1:
        raise ValueError(f"at least one layer of at least one channel is needed, not {widths}")
    return widths


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(known)}, not '{value}'")


def build_model(config: ModelConfig, frame_shape: tuple[int, int, int], padding: str) -> Forecaster:
    """The network of a configuration.

    Args:
        config: its sizes and options.
        frame_shape: channels, height, width of the field the model sees.
        padding: what the field's boundary asks for, unless the configuration says otherwise.
    """
    channels, height, width = frame_shape
    return Forecaster(
        config.architecture,
        hidden_size=config.widths,
        channels=channels,
        height=height,
        width=width,
        padding=config.padding or padding,
        kernel_size=config.kernel_size,
        prediction=config.prediction,
        decode=config.decode,
        norm=config.norm,
        norm_groups=config.norm_groups,
        dropout=config.dropout,
        tanh_encoder=config.tanh_encoder,
        channels_out=config.channels_out,
    )
