"""The channels of a model in a source: which variables they are, and how their values become those that it takes.

A variable is found by the name of the channel, or by what the recipe of the model's data says that the channel was made
of: a variable, in a group and at a level where it was, of which the logarithm may have been stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.data.description import FieldDescription
from mcrnn.data.forcings import STATIC
from mcrnn.data.groups import describe_fields, split_group
from mcrnn.data.units import Conversion, UnknownUnitsError, find_conversion, is_difference
from mcrnn.errors import UserError, did_you_mean
from mcrnn.forecasting.source import Source

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Logarithm:
    """The logarithm log(1 + x / scale) of a variable, which a model takes in place of the variable.

    Attributes:
        formula: the logarithm in words, such as `log(1 + tp / 0.001 m)`.
        scale: the scale, in the units that the variable is converted to before.
    """

    formula: str
    scale: float


@dataclass(frozen=True)
class GivenChannel:
    """A channel of a model in a source. `find_channels` makes one.

    Attributes:
        name: name of the channel.
        array: the variable, at the level of the channel; not loaded.
        units: units that its values are converted to, and that forecasts of it have; None where it is not known which
            of the model's units are this channel's.
        conversion: how its values are converted, None where they stay as they are.
        logarithm: what is taken of the converted values, None where the variable is the channel.
    """

    name: str
    array: xr.DataArray
    units: str | None = None
    conversion: Conversion | None = None
    logarithm: Logarithm | None = None


@dataclass(frozen=True)
class Origin:
    """What a channel was made of, as the recipe of a store says.

    Attributes:
        variable: name of the variable, behind its group as in `obs/t`.
        level: its level, None where it has one at most.
        scale: scale of the logarithm that is the channel, None where the variable itself is.
        units: units of the variable, where the channel is its logarithm.
    """

    variable: str
    level: float | None
    scale: float | None = None
    units: str = ""


def origins_of(recipe: Mapping[str, Any]) -> dict[str, Origin]:
    """Return what the channels of a store were made of, as far as its recipe says so."""
    names, variables = recipe.get("channels", []), recipe.get("variables", [])
    if not names:
        levels = recipe.get("levels") or []  # as earlier versions have written it
        return {str(v): Origin(str(v), float(levels[0])) for v in variables} if len(levels) == 1 else {}
    found = {}
    for name, text in zip(names, variables, strict=True):
        variable, at, level = str(text).partition("@")
        scale, units = recipe.get("log", {}).get(variable, (None, ""))
        found[name] = Origin(variable, float(level) if at else None, scale, units)
    return found


def find_channels(source: Source, field: FieldDescription) -> tuple[GivenChannel, ...]:
    """Find the channels of a field in a source, but for its forcings.

    Args:
        source: the source.
        field: the field of a model.

    Returns:
        The channels in the order of the model's.

    Raises:
        UserError: a variable or level is not there, or its units are not those of the model and do not convert into
            them.
    """
    origins = origins_of(field.recipe)
    names = [name for name in field.channels if field.inputs.get(name, STATIC) == STATIC]
    found = [(name, *_find(source, name, origins, field)) for name in names]
    paths_of: dict[str, set[str]] = {}
    for _, path, _ in found:
        paths_of.setdefault(split_group(path)[1], set()).add(path)
    channels = []
    for _, path, channel in found:
        short = split_group(path)[1]
        named = path.replace("/", "_") if len(paths_of[short]) > 1 else short
        channels.append(replace(channel, array=channel.array.rename(named)))
    return _with_conversions(source, channels, field)


def _find(
    source: Source, name: str, origins: Mapping[str, Origin], field: FieldDescription
) -> tuple[str, GivenChannel]:
    """Return the path of the variable that a channel is, and the channel without its conversion.

    A variable of the channel's name is the channel, unless the recipe names one in a group, and the source has it.
    """
    origin = origins.get(name)
    paths = [name]
    if origin is not None:
        short = split_group(origin.variable)[1]
        same = {each.variable for each in origins.values() if split_group(each.variable)[1] == short}
        others = [origin.variable, *([short] if len(same) == 1 else [])]
        in_group = origin.variable != short and origin.scale is None
        paths = list(dict.fromkeys([origin.variable, name, *others] if in_group else [name, *others]))
    formula = field.logarithms.get(name)
    level = None if origin is None else origin.level
    for path in paths:
        if (array := source.find(path)) is None:
            continue
        if formula is None or path == name:
            return path, GivenChannel(name, _at_level(source, array, level, field))
        if origin is not None and origin.scale is not None:
            array, taken = _at_level(source, array, level, field), Logarithm(formula, origin.scale)
            return path, GivenChannel(name, array, origin.units or "1", logarithm=taken)
    if formula is not None:
        where = describe_fields(source.groups())
        raise UserError(f"'{source.name}' has no variable '{name}', which the model takes: it is {formula}{where}")
    variables = source.dataset.data_vars
    parts = {str(v): re.fullmatch(re.escape(str(v)) + r"([0-9.]+)", name) for v in variables}
    for variable, part in parts.items():
        if part is not None and (array := source.find(variable)) is not None:
            return variable, GivenChannel(name, _at_level(source, array, float(part.group(1)), field))
    known = [str(v) for v, variable in variables.items() if variable.ndim >= 2]
    hint = did_you_mean(name, known) + describe_fields(source.groups())
    raise UserError(f"'{source.name}' has no variable '{name}', which the model takes{hint}")


def _at_level(source: Source, found: xr.DataArray, level: float | None, field: FieldDescription) -> xr.DataArray:
    """Return a variable at one level, which may be in other units than those of the model's levels.

    Raises:
        UserError: there is no such level, or it is not said which one is meant.
    """
    if source.grid is not None:  # a field store has channels
        return found
    import cf_xarray  # noqa: F401  (adds the accessor `cf`)

    recognised = [str(name) for name in found.cf.guess_coord_axis().cf.axes.get("Z", [])]
    known = (field.recipe.get("roles") or {}).get("level")
    vertical = [str(known)] if known in found.dims else []
    vertical += [name for name in recognised if name in found.dims[:-2] and name in found.coords]
    if not vertical:
        for name in recognised:
            if name in found.coords and found[name].ndim == 0 and level is not None:
                _check_only_level(source, found, name, level, field)
        return found
    dimension = vertical[0]
    if level is None and found.sizes[dimension] == 1:
        return found
    if dimension not in found.coords:  # components, which have their positions as levels
        found = found.assign_coords({dimension: np.arange(found.sizes[dimension])})
    stated, units = _levels(source, found, dimension, field)
    listed = ", ".join(f"{value:g}" for value in stated)
    if level is None:
        raise UserError(
            f"{found.name} in '{source.name}' has the levels {listed}, and the model takes only one: select it"
        )
    conversion = _level_conversion(source, found, units, field)
    values = stated if conversion is None else conversion.apply(stated)
    matching = np.flatnonzero(np.isclose(values, level))
    if len(matching) != 1:
        wanted = f"{level:g}" if conversion is None else f"{level:g} {conversion.target}"
        has = listed if conversion is None else f"{listed} {conversion.source}"
        raise UserError(f"{found.name} in '{source.name}' has no level {wanted}, which the model takes, but {has}")
    return found.isel({dimension: int(matching[0])})


def _levels(source: Source, found: xr.DataArray, name: str, field: FieldDescription) -> tuple[np.ndarray, str]:
    """Return the levels along a coordinate, float64, and their units; empty where one of both is not known."""
    values = found[name].values
    if values.dtype.kind not in "iuf":
        raise UserError(f"the coordinate {name} of '{source.name}' is no number, and the model takes one of its levels")
    units = str(found[name].attrs.get("units", "")).strip()
    return values.astype(np.float64), units if field.level_units else ""


def _level_conversion(source: Source, found: xr.DataArray, units: str, field: FieldDescription) -> Conversion | None:
    """Return how levels are converted to those of the model's data; None where their numbers are compared as they are.

    A field has one unit of levels only where those of all its variables convert into it.
    """
    if not units:
        return None
    try:
        return find_conversion(units, field.level_units)
    except ValueError as error:
        at_levels = {origin.variable for origin in origins_of(field.recipe).values() if origin.level is not None}
        if isinstance(error, UnknownUnitsError) or len(at_levels) > 1:
            return None
        raise UserError(
            f"the levels of {found.name} in '{source.name}' are in {units}, those of the model in "
            f"{field.level_units}, and {error}"
        ) from None


def _check_only_level(source: Source, found: xr.DataArray, name: str, level: float, field: FieldDescription) -> None:
    """Refuse a variable whose only level is another one than the model's, as far as the units of both tell."""
    units = str(found[name].attrs.get("units", "")).strip()
    if not units or not field.level_units or found[name].dtype.kind not in "iuf":
        return
    try:
        conversion = find_conversion(units, field.level_units)
    except ValueError:
        return
    value = np.asarray(found[name].values, np.float64)
    if not np.isclose(value if conversion is None else conversion.apply(value), level):
        raise UserError(
            f"{found.name} in '{source.name}' is at level {float(value):g} {units}, the model takes it at {level:g} "
            f"{field.level_units}"
        )


def _with_conversions(
    source: Source, channels: list[GivenChannel], field: FieldDescription
) -> tuple[GivenChannel, ...]:
    """Return channels with the conversion to the units of a model.

    Older models and stores of several units do not say which channel has which: these are compared together.
    """
    predicted = channels[: len(field.predicted)]
    is_field_store = source.grid is not None
    are_joined = is_field_store and any(", " in units_of(channel.array) for channel in predicted)
    if not are_joined and all(field.expected_units(channel.name) is not None for channel in predicted):
        return tuple(_converted(source, channel, field) for channel in channels)
    stated = ("1" if channel.logarithm is not None else units_of(channel.array) or "1" for channel in predicted)
    units = ", ".join(dict.fromkeys(stated))  # a set that keeps its order
    if units != field.units:
        raise UserError(
            f"'{source.name}' has the units {units}, the model takes {field.units}: convert the values; if only the "
            "spelling differs, set the attribute units"
        )
    return tuple(
        _converted(source, each, field) if each.logarithm is not None or each.name in field.inputs else each
        for each in channels
    )


def units_of(array: xr.DataArray) -> str:
    """Return the units of a variable as they are written, empty where there are none."""
    return str(array.attrs.get("units", "")).strip()


def _converted(source: Source, channel: GivenChannel, field: FieldDescription) -> GivenChannel:
    """Return a channel with the conversion to the units that the model takes it in.

    Raises:
        UserError: there is none.
    """
    found = units_of(channel.array)
    expected = channel.units or field.expected_units(channel.name) or "1"
    kept = replace(channel, units=expected)
    if (found or "1") == expected:
        return kept
    name = channel.name if channel.logarithm is None else channel.array.name
    if not found or (found == "1" and source.grid is not None):  # which a field store also has of a variable without
        raise UserError(
            f"{name} in '{source.name}' has no units, the model takes it in {expected}: write the attribute units first"
        )
    known = field.differences + tuple(source.differences)
    of_difference = is_difference(channel.array.attrs) or channel.name in known
    try:
        conversion = find_conversion(found, expected, is_difference=of_difference)
    except ValueError as error:
        raise UserError(
            f"{name} in '{source.name}' has the units {found}, the model takes {expected}, and {error}"
        ) from None
    if conversion is not None and expected == "1":
        raise UserError(
            f"{name} in '{source.name}' has the units {found}, and the model does not say whether it takes it without "
            "units or in 1: convert it to the numbers of the model's data and write them without units"
        )
    return replace(kept, conversion=conversion)


def describe_conversions(channels: Sequence[GivenChannel]) -> str:
    """Return in one line which variables are converted, and of which the logarithm is taken; empty where none is."""
    units = [f"{c.array.name} {c.conversion.words}" for c in channels if c.conversion is not None]
    logarithms = [f"{c.name} is {c.logarithm.formula} of {c.array.name}" for c in channels if c.logarithm is not None]
    return "; ".join(dict.fromkeys(units + logarithms))
