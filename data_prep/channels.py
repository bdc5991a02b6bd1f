"""The channels of a field: variables, each at one level where it has several, as the options of a command name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.file_content import FileContent
from mcrnn.data.groups import split_group
from mcrnn.errors import UserError


@dataclass(frozen=True)
class Channel:
    """One channel of a field.

    Attributes:
        name: name of the channel.
        variable: name of the variable.
        level: value of its level, None where the variable has one level at most and none is asked for.
    """

    name: str
    variable: str
    level: float | None


def parse_variable(text: str) -> tuple[str, float | None]:
    """Return variable and level of an option `--variable z@500`, or `--variable z` without a level.

    Raises:
        UserError: the level is no number.
    """
    variable, at, level = text.lstrip("/").partition("@")
    try:
        return variable, float(level) if at else None
    except ValueError:
        raise UserError(f"--variable {text}: a level is a number, as in {variable or 'z'}@500") from None


def select_channels(
    wanted: Sequence[tuple[str, float | None]], levels: Sequence[float], contents: dict[str, list[FileContent]]
) -> tuple[Channel, ...]:
    """Return the channels that are asked for.

    They have the names of their variables without the group, but where variables of several groups have the same name:
    `obs_t` and `model_t`.

    Args:
        wanted: variables and their own levels, in order.
        levels: levels of the variables that have no level of their own.
        contents: for each variable what the sources hold of it.

    Raises:
        UserError: a level is missing in a source or must be chosen, or a channel is asked for twice.
    """
    have_levels = any(content.levels is not None for files in contents.values() for content in files)
    if levels and not have_levels:
        raise UserError(f"{wanted[0][0]} has no levels to select by --level")
    channels: list[Channel] = []
    shorts = [split_group(variable)[1] for variable in contents]
    for variable, own_level in wanted:
        files, short = contents[variable], split_group(variable)[1]
        if shorts.count(short) > 1:
            short = variable.replace("/", "_")
        if own_level is not None:
            _check_levels(variable, [own_level], files)
            channels.append(Channel(f"{short}{own_level:g}", variable, own_level))
        elif levels and files[0].levels is not None:
            _check_levels(variable, levels, files)
            names = [short] if len(levels) == 1 else [f"{short}{level:g}" for level in levels]
            channels += [Channel(name, variable, level) for name, level in zip(names, levels, strict=True)]
        else:
            _check_only_level(variable, files)
            channels.append(Channel(short, variable, None))
    names = [channel.name for channel in channels]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the channel {twice} is asked for twice")
    return tuple(channels)


def _check_levels(variable: str, levels: Sequence[float], files: list[FileContent]) -> None:
    """Refuse sources that do not have each level exactly once."""
    for content in files:
        if content.levels is None:
            raise UserError(f"{variable} in '{content.url}' has no levels to select from")
        for level in levels:
            count = int(np.isclose(content.levels, level).sum())
            if count != 1:
                has = "no level" if count == 0 else f"{count} levels"
                raise UserError(
                    f"{variable} in '{content.url}' has {has} {level:g}; there are {_listed(content.levels)}"
                    f"{content.level_units and f' {content.level_units}'}"
                )


def _check_only_level(variable: str, files: list[FileContent]) -> None:
    """Refuse sources that have several levels, or not the same one."""
    first = files[0]
    for content in files:
        if content.levels is not None and len(content.levels) > 1:
            raise UserError(
                f"{variable} has {len(content.levels)} levels; select with --level one or more of "
                f"{_listed(content.levels)}"
            )
        if (content.levels is None) != (first.levels is None) or not np.allclose(
            content.levels or (), first.levels or (), rtol=1e-6
        ):
            here, there = (_listed(c.levels) if c.levels else "none" for c in (content, first))
            raise UserError(f"{variable} is at level {here} in '{content.url}' and at level {there} in '{first.url}'")


def _listed(levels: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in levels)
