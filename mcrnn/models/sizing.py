"""The costs of a network, computed without building it, and the width that a budget of parameters allows."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from mcrnn.config.sections import Configuration, ModelConfig
from mcrnn.errors import UserError
from mcrnn.models.cells import cell_class

LARGEST_WIDTH = 4096
BYTES_OF_FLOAT32 = 4
FrameShape = tuple[int, int, int]
"""Channels, height and width of a frame."""


@dataclass(frozen=True)
class ModelCost:
    """The costs of the network of a configuration."""

    parameters: int
    """Number of parameters."""
    multiply_adds: int
    """Multiply-adds of the forward pass of one frame."""
    activation_bytes: int
    """Bytes that a training step keeps for its backward pass, for one frame of one sample in float32."""

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters; a frame costs {_metric(self.multiply_adds)} multiply-adds, and in "
            f"training {_metric(self.activation_bytes)}B of activations"
        )


def _metric(value: float) -> str:
    """Format a number with three significant figures and a metric prefix."""
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 999.5:
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}"


def model_cost(config: ModelConfig, frame_shape: FrameShape) -> ModelCost:
    """Add up the parameters, work and memory of the network of a configuration.

    Args:
        config: with a hidden size, not with a budget of parameters.
        frame_shape: channels, height, width of the field as the network sees it.
    """
    channels, height, width = frame_shape
    points = height * width
    costs, k = cell_class(config.architecture).costs, config.kernel_size
    first, last, out = config.widths[0], config.widths[-1], config.channels_out or channels
    # encoder and decoder, 1x1 convolutions
    parameters = (channels + 1) * first + (last + 1) * out
    multiply_adds = (channels * first + last * out) * points
    kept_values = (channels + last) * points
    before = first
    for c in config.widths:
        if c != before:  # a 1x1 convolution between layers of different widths
            parameters += (before + 1) * c
            multiply_adds += before * c * points
            kept_values += before * points
        parameters += costs.parameters(c, k)
        multiply_adds += costs.multiply_adds(c, k, points)
        kept_values += costs.kept_values(c, k, height, width)
        # the norm: weight and bias, and the input that it keeps
        parameters += 2 * (points if config.norm == "layer" else c)
        kept_values += c * points
        before = c
    return ModelCost(parameters, multiply_adds, BYTES_OF_FLOAT32 * kept_values)


def parameter_count(config: ModelConfig, frame_shape: FrameShape) -> int:
    """Return the number of parameters of a configuration's network, those that decoding leaves unused included."""
    return model_cost(config, frame_shape).parameters


def width_for(config: ModelConfig, frame_shape: FrameShape, parameters: int) -> int:
    """Return the hidden size, the same for all layers, with which a network comes nearest to a budget of parameters.

    It is a multiple of `width_multiple`, and of the groups of a group norm.

    Args:
        config: everything but the hidden size, which is ignored.
        frame_shape: channels, height, width of the field as the network sees it.
        parameters: the budget. Of two widths equally near, the narrower is returned.

    Raises:
        ValueError: the narrowest network has more than twice the budget, or the widest less than half of it.
    """
    step = math.lcm(config.norm_groups if config.norm == "group" else 1, config.width_multiple)
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


def with_resolved_sizes(config: Configuration, frame_shape: FrameShape, inputs: int = 0) -> Configuration:
    """Return the configuration with the number of channels to predict where a field has inputs, and with a hidden size.

    Args:
        config: the configuration.
        frame_shape: channels, height, width of the field as the network sees it.
        inputs: number of its channels, the last ones, that are inputs only.

    Returns:
        The configuration, with `channels_out` where there are inputs, and with the hidden size that comes nearest to
        its budget of parameters, if it has one.

    Raises:
        UserError: no width comes near the budget.
    """
    model = config.model
    if inputs and model.channels_out is None:
        model = model.model_copy(update={"channels_out": frame_shape[0] - inputs})
        config = config.model_copy(update={"model": model})
    if model.parameters is None:
        return config
    try:
        width = width_for(model, frame_shape, model.parameters)
    except ValueError as error:
        raise UserError(f"model.parameters: {error}") from None
    update = {"hidden_size": width, "parameters": None, "width_multiple": 1, "layers": model.layers}
    return config.model_copy(update={"model": ModelConfig.model_validate(model.model_dump() | update)})
