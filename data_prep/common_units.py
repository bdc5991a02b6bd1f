"""Bring sources of one variable to the same units: those of the first one, or those that are asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from data_prep.file_content import FileContent
from data_prep.gridded_field import GriddedField
from data_prep.sources import named_variables
from mcrnn.data.units import Conversion, UnknownUnitsError, find_conversion
from mcrnn.errors import UserError


def parse_units(texts: Sequence[str], variables: Sequence[str]) -> dict[str, str]:
    """Return the units that options `--units VARIABLE=UNITS` ask for, by variable.

    Args:
        texts: the values of the options; where there is one variable, UNITS alone will do.
        variables: the variables of the field.

    Raises:
        UserError: the field has no such variable, or it is not said which one is meant.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, units = text.rpartition("=")
        if not equals and len(variables) > 1:
            raise UserError(f"--units {text}: say of which variable, as in --units {variables[0]}={text}")
        named = named_variables(name, variables, f"--units {text}") if equals else list(variables)
        if not units.strip():
            raise UserError(f"--units {text} names no units; such are {name or 't'}=K")
        found |= dict.fromkeys(named, units.strip())
    return found


def with_common_units(
    contents: dict[str, list[FileContent]], asked: Mapping[str, str], differences: Collection[str]
) -> dict[str, list[FileContent]]:
    """Return what sources hold, with the conversion of those whose units are others.

    Args:
        contents: for each variable what the sources hold of it.
        asked: units that are asked for, by variable; others get those of their first source.
        differences: variables whose values are differences, such as anomalies of temperature.

    Raises:
        UserError: units do not convert into each other.
    """
    result = {}
    for variable, files in contents.items():
        result[variable] = [
            _converted(variable, content, files[0], asked.get(variable), variable in differences) for content in files
        ]
    return result


def _converted(
    variable: str, content: FileContent, first: FileContent, asked: str | None, is_difference: bool
) -> FileContent:
    found, target = content.units, first.units if asked is None else asked
    try:
        if (found or "1") != (target or "1"):
            if not found or not target:
                raise ValueError("no units do not convert into any: write the attribute units first")
            return replace(content, conversion=find_conversion(found, target, is_difference=is_difference))
    except ValueError as error:
        here = f"{variable} is in {found or 'no units'} in '{content.url}'"
        there = f"is to be in {asked}" if asked else f"in {target or 'no units'} in '{first.url}'"
        raise UserError(f"{here} and {there}, and {error}") from None
    return content


def with_common_levels(contents: dict[str, list[FileContent]], units: str) -> tuple[dict[str, list[FileContent]], str]:
    """Return what sources hold with all levels in the same units, such as hPa, as far as these convert.

    Args:
        contents: for each variable what the sources hold of it.
        units: units that the levels are to have; where it is empty, those of the first level that has some.

    Returns:
        What the sources hold, and the units of the levels, empty where there are none.

    Raises:
        UserError: the levels of one variable have units that do not convert into each other; where one is not known,
            levels with the same numbers are taken as they are.
    """
    first_of = {name: next((c for c in files if c.level_units), None) for name, files in contents.items()}
    units = units or next((first.level_units for first in first_of.values() if first is not None), "")
    result = {}
    for variable, files in contents.items():
        first = first_of[variable]
        if first is not None:
            target = units if _is_convertible(first.level_units, units) else first.level_units
            files = [_with_levels(variable, content, first, target) for content in files]
        result[variable] = files
    return result, units


def _is_convertible(source: str, target: str) -> bool:
    try:
        find_conversion(source, target)
    except ValueError:
        return False
    return True


def _with_levels(variable: str, content: FileContent, first: FileContent, target: str) -> FileContent:
    if content.levels is None or not content.level_units:
        return content
    try:
        conversion = find_conversion(content.level_units, target)
    except ValueError as error:
        if isinstance(error, UnknownUnitsError) and content.levels == first.levels:
            return content
        raise UserError(
            f"the levels of {variable} are in {content.level_units} in '{content.url}' and in {first.level_units} in "
            f"'{first.url}', and {error}"
        ) from None
    if conversion is None:
        return content
    levels = tuple(conversion.apply(np.array(content.levels)).tolist())
    return replace(content, levels=levels, level_units=target)


def conversions_of(field: GriddedField) -> list[tuple[str, Conversion, int]]:
    """Return each conversion of a field with its variable and the number of sources that it converts."""
    found: dict[tuple[str, Conversion], int] = {}
    for variable, parts in field.parts.items():
        for part in parts:
            if part.conversion is not None:
                key = variable, part.conversion
                found[key] = found.get(key, 0) + 1
    return [(variable, conversion, count) for (variable, conversion), count in found.items()]


def describe_conversions(field: GriddedField) -> str:
    """Return in one line which variables are converted, from which units to which; empty where none is."""
    found = [
        f"{variable} {conversion.words}"
        + ("" if count == len(field.parts[variable]) else f" in {count} of {len(field.parts[variable])} sources")
        for variable, conversion, count in conversions_of(field)
    ]
    return "; ".join(found)
