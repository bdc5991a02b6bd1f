"""Variables that a store holds as a logarithm, log(1 + x / SCALE), as precipitation and concentrations often are.

The logarithm is taken last: fields are averaged onto coarser grids before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data_prep.gridded_field import GriddedField
from data_prep.sources import named_variables
from mcrnn.data.logarithms import is_negative, take_logarithm
from mcrnn.errors import UserError

PREFIX = "log_"
"""Begin of the names of channels that are logarithms."""


def parse_logarithms(texts: Sequence[str], variables: Sequence[str]) -> dict[str, float]:
    """Return the scales that options `--log VARIABLE:SCALE` ask for, by variable; 1 where they name none.

    Args:
        texts: the values of the options.
        variables: the variables of the field.

    Raises:
        UserError: the field has no such variable, or a scale is no positive number.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, scale = text.partition(":")
        named = named_variables(name, variables, f"--log {text}")
        try:
            value = float(scale or 1)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UserError(f"--log {text}: the scale is a positive number, as in {name}:0.001, not '{scale}'")
        found |= dict.fromkeys(named, value)
    return found


def with_logarithms(field: GriddedField, scales: Mapping[str, float]) -> GriddedField:
    """Return a field with some variables as logarithms, whose channels are named so.

    Args:
        field: the field.
        scales: the scale of each of them, in the units of the field.
    """
    channels = tuple(replace(c, name=f"{PREFIX}{c.name}") if c.variable in scales else c for c in field.channels)
    return replace(field, channels=channels, logarithms=dict(scales))


def formulas(field: GriddedField) -> dict[str, str]:
    """Return for each channel that is a logarithm of what it is one, such as `log(1 + tp / 0.001 m)`."""
    return {
        channel.name: f"log(1 + {channel.name.removeprefix(PREFIX)} / {field.logarithms[channel.variable]:g}"
        f"{'' if field.units_of[channel.variable] == '1' else ' ' + field.units_of[channel.variable]})"
        for channel in field.channels
        if channel.variable in field.logarithms
    }


def stored_units(field: GriddedField) -> list[str]:
    """Return the units of each channel of the store; logarithms have none."""
    return ["1" if c.variable in field.logarithms else field.units_of[c.variable] for c in field.channels]


def check_signs(field: GriddedField, field_NTCHW: np.ndarray, start: int) -> None:
    """Refuse negative values of what becomes a logarithm.

    Args:
        field: the field.
        field_NTCHW: its values on the grid of the sources, the first of which are at position `start`.
        start: that position.

    Raises:
        UserError: there is one; the message names the first.
    """
    for index, channel in enumerate(field.channels):
        scale = field.logarithms.get(channel.variable)
        if scale is None or not (negative := is_negative(field_NTCHW[:, :, index], scale)).any():
            continue
        sample, time, row, column = (int(i[0]) for i in np.nonzero(negative))
        value = field_NTCHW[sample, time, index, row, column]
        at = (sample, time + start) if field.samples is None else (sample + start, time)
        raise UserError(
            f"{field.describe_position(*at, index, row, column)} is {value:g}, and --log {channel.variable} takes no "
            "negative values: correct them first, for example with cdo setrtoc"
        )


def take_logarithms(field: GriddedField, values: np.ndarray, axis: int) -> np.ndarray:
    """Return values with the logarithm of those channels that are one, computed in float64.

    Args:
        field: the field.
        values: the values.
        axis: the axis of the channels.
    """
    if not field.logarithms:
        return values
    result = values.copy()
    for index, channel in enumerate(field.channels):
        if (scale := field.logarithms.get(channel.variable)) is not None:
            place = (slice(None),) * axis + (index,)
            result[place] = take_logarithm(values[place], scale)
    return result
