"""The network of all architectures: 1x1 encoder, stack of residual recurrent layers, 1x1 decoder.

A layer is x -> norm(x + cell(x)), the norm being by default a layer norm over the grid, the same for every channel
(paper, section 3.4). Input frames up to `teacher_forcing_steps` are the truth and go through the stack layer by
layer, all frames at once; after that each output is the next input.

Axes: B batch, T time, N frames (T x B, time first), C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mcrnn.config.sections import ModelConfig
from mcrnn.models.cells import Cell, PreparedConvs, State, cell_class, to_frames, to_sequence
from mcrnn.models.convolution import PointwiseConv
from mcrnn.models.prepared_convolution import PreparedConv

Norms = list[tuple[torch.Tensor, torch.Tensor]]
"""The weight and bias of each layer's norm."""


class _Prepared(NamedTuple):
    """The convolutions of a network, ready for the steps of one sequence."""

    encoder: PreparedConv
    transitions: list[PreparedConv | None]
    """Those between layers of different widths."""
    cells: list[PreparedConvs]
    decoder: PreparedConv


class Forecaster(nn.Module):
    """A convolutional recurrent forecaster of a field.

    Args:
        architecture: a name of `mcrnn.config.architectures.ARCHITECTURES`, such as minconvgru.
        hidden_size: channels of every layer, or a list with those of each; between layers of different widths
            stands a 1x1 convolution.
        layers: number of recurrent layers; may be left out where `hidden_size` is a list.
        channels: channels of the field.
        height: grid points of the field's first axis.
        width: grid points of its second axis.
        padding: circular, cylinder or zeros.
        kernel_size: side of the recurrent convolutions, odd.
        prediction: `frame` decodes the next frame, `increment` what is added to the last one.
        decode: `residual` decodes the last layer's normed output; `hidden` its cell's hidden state, as the
            paper's ConvGRU does, which leaves the last norm unused, so it is frozen.
        norm: `layer` normalises over the grid, whose size is then fixed; `group` over groups of channels and the
            grid, of any size.
        norm_groups: groups of the group norm; divides every width.
        dropout: share of a layer's hidden channels that are dropped in training, before they are added.
        tanh_encoder: a tanh after the encoder.
        channels_out: number of channels that are predicted, the first ones of the field; all by default. In closed
            loop the others keep the values of the last given frame: for what does not change, such as orography.
        inputs: number of channels, the last ones, that are inputs only and known ahead, such as the solar angle. They
            are not predicted, and have their true values in closed loop, too.

    Raises:
        ValueError: an argument is none of these values, or the arguments do not fit each other.
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
        inputs: int = 0,
    ) -> None:
        super().__init__()
        kind = cell_class(architecture)
        _one_of("prediction", prediction, ("frame", "increment"))
        _one_of("decode", decode, ("residual", "hidden"))
        _one_of("norm", norm, ("layer", "group"))
        widths = layer_widths(hidden_size, layers)
        most = channels - inputs
        channels_out = most if channels_out is None else channels_out
        if not 1 <= channels_out <= most:
            of_field = f"{channels} channels of the field" if not inputs else f"{most} channels that are no inputs"
            raise ValueError(f"channels_out must be from 1 to the {of_field}, not {channels_out}")
        if norm == "group" and any(width % norm_groups for width in widths):
            raise ValueError(f"norm_groups ({norm_groups}) must divide the hidden sizes, {widths}")
        self.frame_shape = (channels, height, width)
        self.takes_any_grid = norm == "group"
        self.channels_out, self.inputs = channels_out, inputs
        self.prediction, self.decode = prediction, decode
        encoder = PointwiseConv(channels, widths[0])
        self.encoder = nn.Sequential(encoder, nn.Tanh()) if tanh_encoder else nn.Sequential(encoder)
        before = [widths[0], *widths[:-1]]
        self.transitions = nn.ModuleList(
            nn.Identity() if a == b else PointwiseConv(a, b) for a, b in zip(before, widths, strict=True)
        )
        self.cells = nn.ModuleList(kind(size, padding, kernel_size) for size in widths)
        self.norms = nn.ModuleList(
            nn.LayerNorm((height, width)) if norm == "layer" else nn.GroupNorm(norm_groups, size) for size in widths
        )
        self.dropout = nn.Dropout2d(dropout) if dropout > 0 else nn.Identity()
        self.decoder = PointwiseConv(widths[-1], channels_out)
        self.mask_CHW: torch.Tensor | None
        self.outside_C11: torch.Tensor
        self.register_buffer("mask_CHW", None, persistent=False)
        if decode == "hidden":
            self.norms[-1].requires_grad_(False)

    def set_mask(self, mask_CHW: np.ndarray, outside: Sequence[float]) -> None:
        """Let the network see, and predict, a constant at the points outside of a mask, whatever the frames hold there.

        Its grid is then fixed. The loss says nothing of these points, so that what the decoder makes of them would
        otherwise be anything, and would be read again in closed loop.

        Args:
            mask_CHW: the points that have values.
            outside: the constant of each channel, in the units the model is trained in.
        """
        self.register_buffer("mask_CHW", torch.tensor(mask_CHW), persistent=False)
        self.register_buffer("outside_C11", torch.tensor(outside)[:, None, None], persistent=False)
        self.takes_any_grid = False

    def _within_mask(self, x: torch.Tensor) -> torch.Tensor:
        """Return frames (..., C, H, W), of all channels or the first ones, with the constant outside of the mask."""
        if self.mask_CHW is None:
            return x
        channels = x.shape[-3]
        return torch.where(self.mask_CHW[:channels], x, self.outside_C11[:channels].to(x.dtype))

    def forward(
        self, x_BTCHW: torch.Tensor, teacher_forcing_steps: int | None = None, steps: int | None = None
    ) -> torch.Tensor:
        """Predict, at each step, the frame after the step's input.

        Args:
            x_BTCHW: input frames, in the units the model was trained in. Only the first
                `teacher_forcing_steps` are read, and of those of the other steps the channels that are known ahead.
            teacher_forcing_steps: steps whose input is the truth, at least 1; all frames by default. The
                input of every later step is the output of the step before, through which gradients flow.
            steps: number of steps; as many as there are frames by default.

        Returns:
            Predictions (B, steps, channels_out, H, W): the one at index t is of frame t + 1.

        Raises:
            ValueError: the frames are not of the model's shape, or there are fewer of them than `frames_read` says, or
                `teacher_forcing_steps` is less than 1.
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
        if self.frames_read(forced, steps) > given:
            raise ValueError(
                f"{self.inputs} channels are known ahead, so {steps} steps need as many frames, got {given}"
            )
        known = self.frame_shape[0] - self.inputs
        x_BTCHW = self._within_mask(x_BTCHW)
        states = [cell.initial_state(x_BTCHW[:, 0]) for cell in self._cells()]
        convs, norms = self._prepare(), self._norms_of_uses(1 + steps - forced)
        outputs = [self._advance(to_frames(x_BTCHW[:, :forced]), states, convs, norms[0])]
        held_BCHW = x_BTCHW[:, forced - 1, self.channels_out : known]
        for step in range(forced, steps):
            x_BCHW = outputs[-1] if len(outputs[-1]) == batch else outputs[-1][-batch:]
            if held_BCHW.shape[1]:
                x_BCHW = torch.cat([x_BCHW, held_BCHW], dim=1)
            if self.inputs:
                x_BCHW = torch.cat([x_BCHW, x_BTCHW[:, step, known:]], dim=1)
            outputs.append(self._advance(x_BCHW, states, convs, norms[1 + step - forced]))
        return to_sequence(torch.cat(outputs), batch)

    def frames_read(self, teacher_forcing_steps: int, steps: int) -> int:
        """Return how many frames `forward` reads: those of all steps where channels are known ahead."""
        return max(teacher_forcing_steps, steps) if self.inputs else teacher_forcing_steps

    def forecast(
        self, frames_BTCHW: torch.Tensor, steps: int, inputs_BTIHW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Continue a sequence.

        Args:
            frames_BTCHW: the given frames, at least one, in the units the model was trained in.
            steps: number of lead times.
            inputs_BTIHW: the channels that are known ahead, at lead times 1 .. steps - 1; None where there is none.

        Returns:
            The forecasts of lead times 1 .. steps, (B, steps, channels_out, H, W).

        Raises:
            ValueError: the frames are not of the model's shape, or there is none, or inputs are missing.
        """
        warm_up = frames_BTCHW.shape[1]
        frames_BTCHW = with_inputs(frames_BTCHW, inputs_BTIHW)
        return self(frames_BTCHW, warm_up, warm_up + steps - 1)[:, warm_up - 1 :]

    def _prepare(self) -> _Prepared:
        """Make the convolutions ready for a sequence."""
        cells = list(self._cells())
        transitions = [t.prepare() if isinstance(t, PointwiseConv) else None for t in self.transitions]
        encoder = cast("PointwiseConv", self.encoder[0])
        return _Prepared(encoder.prepare(), transitions, cells[0].prepare_layers(cells), self.decoder.prepare())

    def _norms_of_uses(self, uses: int) -> list[Norms]:
        """Return the parameters of the norms for each of the times that the network is run over a sequence.

        Autograd would add up the gradients of the uses one by one, by an operation for each parameter and each use. Of
        the parts of one repeated tensor it adds up all at once.
        """
        parameters = [cast("torch.Tensor", p) for norm in self.norms for p in (norm.weight, norm.bias)]
        parts: Sequence[torch.Tensor] = parameters * uses
        if uses > 1 and torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            repeated = torch.cat([p.flatten() for p in parameters]).repeat(uses)
            whole = repeated.split([p.numel() for p in parameters] * uses)
            parts = [part.view_as(p) for part, p in zip(whole, parameters * uses, strict=True)]
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        return [pairs[use * len(self.norms) : (use + 1) * len(self.norms)] for use in range(uses)]

    def _advance(self, given_NCHW: torch.Tensor, states: list[State], convs: _Prepared, norms: Norms) -> torch.Tensor:
        """Run the network over some steps.

        Args:
            given_NCHW: the inputs of the steps, time first.
            states: the state of each layer; replaced, in the list, by the state after the last step.
            convs: the prepared convolutions.
            norms: the parameters of the norms.

        Returns:
            The outputs of the steps, (N, channels_out, H, W).
        """
        encoder, *activation = self.encoder
        x_NCHW = encoder(given_NCHW, convs.encoder)
        for function in activation:
            x_NCHW = function(x_NCHW)
        z_NCHW = x_NCHW
        last = len(states) - 1
        for layer, (cell, transition) in enumerate(zip(self._cells(), self.transitions, strict=True)):
            if isinstance(transition, PointwiseConv):
                x_NCHW = transition(x_NCHW, convs.transitions[layer])
            z_NCHW, states[layer] = cell.run(x_NCHW, states[layer], convs.cells[layer])
            if layer < last or self.decode == "residual":
                x_NCHW = _normalise(self.norms[layer], x_NCHW + self.dropout(z_NCHW), *norms[layer])
        y_NCHW = self.decoder(z_NCHW if self.decode == "hidden" else x_NCHW, convs.decoder)
        y_NCHW = y_NCHW.to(given_NCHW.dtype)
        return self._within_mask(
            given_NCHW[:, : self.channels_out] + y_NCHW if self.prediction == "increment" else y_NCHW
        )

    def _cells(self) -> Iterator[Cell]:
        return iter(cast("Iterable[Cell]", self.cells))


def _normalise(norm: nn.Module, x_NCHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Apply a norm with these parameters in place of its own."""
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x_NCHW, norm.normalized_shape, weight, bias, norm.eps)
    assert isinstance(norm, nn.GroupNorm)
    return F.group_norm(x_NCHW, norm.num_groups, weight, bias, norm.eps)


def with_inputs(frames_BTCHW: torch.Tensor, inputs_BTIHW: torch.Tensor | None) -> torch.Tensor:
    """Return given frames followed by those whose last channels are known ahead. Their other channels are not read."""
    if inputs_BTIHW is None or not inputs_BTIHW.shape[1]:
        return frames_BTCHW
    others = frames_BTCHW.shape[2] - inputs_BTIHW.shape[2]
    unread_BTCHW = frames_BTCHW[:, -1:, :others].expand(-1, inputs_BTIHW.shape[1], -1, -1, -1)
    return torch.cat([frames_BTCHW, torch.cat([unread_BTCHW, inputs_BTIHW.to(frames_BTCHW)], dim=2)], dim=1)


def layer_widths(hidden_size: int | Sequence[int], layers: int | None) -> list[int]:
    """Return the width of each layer.

    Raises:
        ValueError: there is no layer, or a width is less than 1, or the number of widths is not `layers`.
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


def build_model(config: ModelConfig, frame_shape: tuple[int, int, int], padding: str, inputs: int = 0) -> Forecaster:
    """Build the network of a configuration, with random weights.

    Args:
        config: sizes and options of the network.
        frame_shape: channels, height, width of the field as the network sees it.
        padding: the padding that the field's boundary asks for; the configuration's own has precedence.
        inputs: number of channels, the last ones, that are inputs only.
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
        inputs=inputs,
    )
