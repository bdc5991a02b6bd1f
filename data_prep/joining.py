"""Join several sources to one field: in time, or as samples. Nothing is joined that is not the same everywhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from data_prep.channels import parse_variable, select_channels
from data_prep.common_units import conversions_of, parse_units, with_common_levels, with_common_units
from data_prep.dimensions import ROLES
from data_prep.file_content import FileContent, has_fields, has_variable, only_variable, read_content, variables_of
from data_prep.gridded_field import GriddedField, Part, SampleTimes
from data_prep.resampling import Area
from data_prep.source_identity import identify
from data_prep.sources import describe_groups
from data_prep.time_axis import TimeAxis, same_calendar
from mcrnn.data.groups import split_group
from mcrnn.data.units import find_conversion
from mcrnn.errors import UserError, did_you_mean

Contents = dict[str, list[FileContent]]
"""For each variable what the sources hold of it, in the order of their names."""


def open_field(
    urls: list[str],
    variables: list[str],
    levels: list[float],
    dimensions: dict[str, str | None],
    *,
    files_are_samples: bool = False,
    group: str = "",
    units: Sequence[str] = (),
    level_units: str = "",
    differences: Collection[str] = (),
) -> GriddedField:
    """Find out what is in some sources, without reading values of the field.

    Args:
        urls: the sources.
        variables: names of the variables, such as `z` or `z@500`; may be empty where the sources have only one.
        levels: values of the level dimension, each of which becomes a channel; may be empty where there is only one.
        dimensions: names that the user gives for dimensions, see `data_prep.dimensions.find_dimensions`.
        files_are_samples: whether each source is a sample, or some samples, and not a part of a series.
        group: the group of variables that are named without one.
        units: units that variables are to have, as `--units` names them; others get those of their first source.
        level_units: units of the levels, empty for those of the first source.
        differences: variables that are known to hold differences, beside those of which a source says so.

    Raises:
        UserError: a variable, level or dimension is not there or not clear, the sources do not fit together, or the
            times repeat, or are irregular.
    """
    named = [parse_variable(text) for text in variables or [only_variable(urls[0], group)]]
    wanted = [(name if "/" in name or not group else f"{group}/{name}", level) for name, level in named]
    names = list(dict.fromkeys(variable for variable, _ in wanted))
    contents: Contents = {name: [] for name in names}
    for url in urls:
        for name in names:
            if has_variable(url, name):
                contents[name].append(read_content(url, name, dimensions))
    for name, files in contents.items():
        if not files:
            of_group, short = split_group(name)
            known = sorted({other for url in urls for other in variables_of(url, of_group)})
            in_groups = "" if any(has_fields(url, of_group) for url in urls) else describe_groups(urls[0])
            hint = in_groups or did_you_mean(short, known) or describe_groups(urls[0])
            raise UserError(f"no file has a variable '{name}'{hint}")
    level_name = dimensions.get("level")
    if level_name and all(c.dimensions.level != level_name for files in contents.values() for c in files):
        raise UserError(f"--level-dimension: {', '.join(names)} of '{urls[0]}' have no dimension '{level_name}'")
    _check_same(contents)
    asked = parse_units(units, names)
    of_sources = {name for name, files in contents.items() if any(content.is_difference for content in files)}
    of_differences = frozenset(of_sources.union(differences).intersection(names))
    contents = with_common_units(contents, asked, of_differences)
    # Those of the first source by name, before sources are sorted by time and those without times are left out.
    units_of = {name: asked.get(name) or files[0].units or "1" for name, files in contents.items()}
    contents, level_units = with_common_levels(contents, level_units)
    channels = select_channels(wanted, levels, contents)
    every = [content for files in contents.values() for content in files]
    arrays: dict[str, set[str]] = {}
    for content in every:
        arrays.setdefault(content.url, set()).update(content.arrays)
    identities = {url: identify(url, of_url) for url, of_url in arrays.items()}
    is_series = not files_are_samples and all(content.dimensions.sample is None for content in every)
    axis: TimeAxis | SampleTimes
    if is_series:
        contents, axis = _join_times(contents)
        counts = {name: [content.frames for content in files] for name, files in contents.items()}
    else:
        axis = _join_samples(contents)
        counts = {name: [content.samples for content in files] for name, files in contents.items()}
    parts = {
        name: tuple(
            Part(identities[content.url], content.dimensions, int(first), count, content.levels, content.conversion)
            for content, first, count in zip(files, np.cumsum([0, *counts[name][:-1]]), counts[name], strict=True)
        )
        for name, files in contents.items()
    }
    return GriddedField(
        channels=channels,
        parts=parts,
        axis=axis,
        samples=None if is_series else sum(counts[names[0]]),
        area=Area.all_of(every[0].grid),
        taken=None,
        units_of=units_of,
        long_name=", ".join(dict.fromkeys(files[0].long_name for files in contents.values())),
        whole_grid=every[0].grid,
        level_units=level_units if any(channel.level is not None for channel in channels) else "",
        differences=of_differences,
    )


def _check_same(contents: Contents) -> None:
    """Refuse sources that differ in what must be the same.

    Raises:
        UserError: grids differ, or a coordinate of one value that a variable has.
    """
    grid_of = next(files[0] for files in contents.values())
    for variable, files in contents.items():
        first = files[0]
        for content in files:
            if not content.grid.is_same(grid_of.grid):
                raise UserError(f"'{content.url}' has another grid than '{grid_of.url}' for {variable}")
            for name in content.fixed.keys() & first.fixed.keys():
                if content.fixed[name] != first.fixed[name]:
                    raise UserError(
                        f"{variable} is at {name} {content.fixed[name]} in '{content.url}' and at {name} "
                        f"{first.fixed[name]} in '{first.url}'"
                    )


def _join_times(contents: Contents) -> tuple[Contents, TimeAxis]:
    """Sort the sources of each variable by time, and join their times, which must be the same for all variables."""
    joined: Contents = {}
    axis: TimeAxis | None = None
    for variable, files in contents.items():
        for content in files:
            _check_dates(content, variable, files[0])
        files = sorted((c for c in files if c.frames), key=lambda content: _seconds(content)[0])
        seconds = np.concatenate([_seconds(content) for content in files]) if files else np.zeros(0)
        own_axis = TimeAxis.of(
            seconds,
            files[0].calendar or "" if files else "standard",
            f"{variable} in {len(files)} file{'s' * (len(files) != 1)}",
            max((content.rounding for content in files), default=0.0),
        )
        if axis is not None and not _same_times(axis.seconds, own_axis.seconds):
            raise UserError(f"{variable} is not given at the same times as {next(iter(contents))}")
        axis = axis or own_axis
        joined[variable] = files
    assert axis is not None
    return joined, axis


def _check_dates(content: FileContent, variable: str, first: FileContent) -> None:
    """Refuse times that are no dates, or dates of another calendar."""
    name = content.dimensions.time
    if content.times is None:
        raise UserError(
            f"'{content.url}' has no variable '{name}' with the times along {variable}'s dimension of that name; "
            "write one with units such as 'hours since 1979-01-01', or say by --sample-dimension or "
            "--files-are-samples that these are samples and no series"
        )
    if content.calendar is None:
        raise UserError(
            f"the times {name} of '{content.url}' have the units '{content.time_units}', which are none of dates; "
            "such are 'hours since 1979-01-01'"
        )
    begin = float(content.times.min()) if content.frames else np.inf
    if first.calendar is not None and not same_calendar(content.calendar, first.calendar, begin):
        raise UserError(f"'{content.url}' has the calendar {content.calendar}, others {first.calendar}")


def _seconds(content: FileContent) -> np.ndarray:
    assert content.times is not None, "sources without times are refused before"
    return content.times


def _same_times(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() < 1e-3)


def _join_samples(contents: Contents) -> SampleTimes:
    """Check that all samples have the same times, and all variables the same samples, and return the times."""
    first = next(files[0] for files in contents.values())
    totals = {variable: sum(content.samples for content in files) for variable, files in contents.items()}
    for variable, files in contents.items():
        if totals[variable] != next(iter(totals.values())):
            raise UserError(
                f"{variable} has {totals[variable]} samples, {next(iter(totals))} {next(iter(totals.values()))}"
            )
        for content in files:
            if content.frames != first.frames:
                raise UserError(
                    f"the samples of '{content.url}' have {content.frames} times, those of '{first.url}' {first.frames}"
                )
            if not _same_steps(content, first):
                raise UserError(f"the samples of '{content.url}' have other times than those of '{first.url}'")
    if first.frames < 2:
        raise UserError(f"the samples of '{first.url}' have {first.frames} times; at least 2 are needed")
    return _times_of_samples(first)


def _same_steps(content: FileContent, first: FileContent) -> bool:
    """Return whether times are the same, but for dates when they start."""
    if content.times is None or first.times is None:
        return content.times is None and first.times is None
    here, there = (times - times[0] for times in (content.times, first.times))
    if content.calendar is None and content.time_units and first.time_units:
        try:
            conversion = find_conversion(content.time_units, first.time_units)
        except ValueError:
            return False
        here = here if conversion is None else conversion.apply(here)
    unit = max(float(np.abs(there).max()), 1e-30)
    return content.calendar == first.calendar and bool(np.abs(here - there).max() <= 1e-6 * unit)


def _times_of_samples(content: FileContent) -> SampleTimes:
    if content.times is None:
        return SampleTimes(np.arange(float(content.frames)), "1", "1")
    if content.calendar is not None:
        axis = TimeAxis.of(content.times, content.calendar, f"'{content.url}'", content.rounding)
        if gaps := axis.describe_gaps():
            raise UserError(f"the samples of '{content.url}' have a gap in time, {gaps}, which only a series may have")
        return SampleTimes(axis.seconds - axis.seconds[0], f"seconds since {axis.date(0).isoformat(' ')}", axis.step)
    steps = np.diff(content.times)
    if not (steps > 0).all() or not np.allclose(steps, steps.mean(), rtol=1e-3):
        raise UserError(f"the times {content.dimensions.time} of '{content.url}' are not equally far apart")
    units = content.time_units or "1"
    step = f"{steps.mean():.6g}"
    return SampleTimes(content.times, units, step if units == "1" else f"{step} {units}")


def summary(field: GriddedField, level_dimension: str | None = None) -> dict[str, Any]:
    """Return what was found in the sources that a build must find again when it goes on, and what is appended.

    Args:
        field: the field.
        level_dimension: name that the user gives for the dimension of the levels, which the first variable may lack.
    """
    sources = {part.source.url: part.source for parts in field.parts.values() for part in parts}
    first = next(iter(field.parts.values()))[0].dimensions
    conversions = [[variable, c.source, c.target, c.scale, c.offset] for variable, c, _ in conversions_of(field)]
    return {
        "sources": [[s.url.rstrip("/").rsplit("/", 1)[-1], s.size, s.checksum] for s in sources.values()],
        "roles": {role: getattr(first, role) for role in ROLES} | {"level": level_dimension or first.level},
        "dimensions": [name for name in (first.sample, first.time, first.level, first.row, first.column) if name],
        "units": field.units,
        "calendar": field.axis.calendar if isinstance(field.axis, TimeAxis) else None,
        **({"conversions": conversions} if conversions else {}),
    }
