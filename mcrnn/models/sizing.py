"""How large a network is and what it costs, without building it; and how wide it may be for a budget.

Axes: C channels, H height, W width of the field as the network sees it.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from mcrnn.config.sections import Configuration, ModelConfig
from mcrnn.errors import UserError

LARGEST_WIDTH = 4096
FrameShape = tuple[int, int, int]
"""channels, height, width"""


@dataclass(frozen=True)
class _Cell:
    """What a cell of hidden size c holds and does, in multiples of c (convolutions: of c x c)."""

    convolved_inputs: int
    blocks: int
    """of the convolution's results, as its parameters have them"""
    blocks_computed: int
    kept: int
    """activations that the backward pass needs, besides what is convolved"""
    padded_activations: int
    """frames that are convolved, continued beyond their edges"""


_CELLS = {
    "convgru": _Cell(2, 3, 3, 5, 4),
    "convlstm": _Cell(2, 4, 4, 6, 2),
    "minconvgru": _Cell(1, 2, 2, 4, 1),
    "minconvlstm": _Cell(1, 3, 3, 5, 1),
    "minconvexplstm": _Cell(1, 3, 2, 4, 1),
}


@dataclass(frozen=True)
class ModelCost:
    """What a configuration costs."""

    parameters: int
    multiply_adds: int
    """of one frame, forward"""
    activation_bytes: int
    """that a training step keeps for its backward pass, for one frame of one sample in float32"""

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters; a frame costs {_metric(self.multiply_adds)} multiply-adds, and in "
            f"training {_metric(self.activation_bytes)}B of activations"
        )


def _metric(value: float) -> str:
    """Three significant figures with a metric prefix."""
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 999.5:
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}"


def model_cost(config: ModelConfig, frame_shape: FrameShape) -> ModelCost:
    """Parameters, work and memory of a configuration on a field of this shape."""
    channels, height, width = frame_shape
    points = height * width
    cell, k = _CELLS[config.architecture], config.kernel_size
    wrapped_points = (height + k - 1) * (width + k - 1)
    parameters = multiply_adds = activations = 0
    before = config.widths[0]
    for c in config.widths:
        if c != before:
            parameters += (before + 1) * c
            multiply_adds += before * c * points
            activations += before * points
        weights = cell.convolved_inputs * k * k * c * c
        parameters += cell.blocks * (weights + c) + 2 * (points if config.norm == "layer" else c)
        multiply_adds += cell.blocks_computed * weights * points
        activations += c * (cell.kept * points + cell.padded_activations * wrapped_points)
        before = c
    first, last, out = config.widths[0], config.widths[-1], config.channels_out or channels
    parameters += (channels + 1) * first + (last + 1) * out
    multiply_adds += (channels * first + last * out) * points
    activations += (channels + last) * points
    return ModelCost(parameters, multiply_adds, 4 * activations)


def parameter_count(config: ModelConfig, frame_shape: FrameShape) -> int:
    """Number of parameters of the network of a configuration, those that decoding leaves unused included."""
    return model_cost(config, frame_shape).parameters


def width_for(config: ModelConfig, frame_shape: FrameShape, parameters: int) -> int:
    """The hidden size, the same for all layers, whose number of parameters comes nearest to a budget.

    Args:
        config: everything but the hidden size, which is not looked at.
        frame_shape: channels, height, width of the field.
        parameters: the budget. Of two widths equally near the narrower is taken.

    Raises:
        ValueError: the narrowest network has more than twice the budget, or the widest less than half of it.
    """
    step = config.norm_groups if config.norm == "group" else 1
    widths = range(step, LARGEST_WIDTH + 1, step)

    def count(hidden_size: int) -> int:
        wide = config.model_copy(update={"hidden_size": hidden_size, "layers": len(config.widths)})
        return parameter_count(wide, frame_shape)

    above = bisect.bisect_left(widths, parameters, key=count)
    near = widths[max(0, above - 1) : above + 1]
    best = min(near, key=lambda hidden_size: abs(count(hidden_size) - parameters))
    if not parameters / 2 <= count(best) <= 2 * parameters:
        raise ValueError(
            f"no width of {config.architecture} with {len(config.widths)} layers comes near {parameters:,} parameters: "
            f"a width of {best} has {count(best):,}"
        )
    return best


def with_resolved_width(config: Configuration, frame_shape: FrameShape) -> Configuration:
    """The same with the hidden size that its budget of parameters allows, where it has one.

    Raises:
        UserError: no width comes near it.
    """
    model = config.model
    if model.parameters is None:
        return config
    try:
        width = width_for(model, frame_shape, model.parameters)
    except ValueError as error:
        raise UserError(f"model.parameters: {error}") from None
    update = {"hidden_size": width, "parameters": None, "layers": model.layers}
    return config.model_copy(update={"model": ModelConfig.model_validate(model.model_dump() | update)})
