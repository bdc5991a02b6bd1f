"""NetCDF files as one field: which variables, which dimensions, which times, and any part of it.

Only what is asked for is ever read, so the size of the files does not matter.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import netCDF4
import numpy as np

from data_prep.time_axis import TimeAxis, show, to_seconds
from mcrnn.errors import UserError, did_you_mean

TIME_NAMES = ("time", "valid_time", "date", "t")
LEVEL_NAMES = ("level", "lev", "plev", "isobaricinhpa", "pressure_level", "pressure", "height_level", "depth", "z")
ROW_NAMES = ("lat", "latitude", "nav_lat", "y", "rlat", "projection_y_coordinate", "height", "row")
COLUMN_NAMES = ("lon", "longitude", "nav_lon", "x", "rlon", "projection_x_coordinate", "width", "column")


@dataclass(frozen=True)
class Layout:
    """Names of the dimensions of a variable; found by CF attributes or name, or given."""

    time: str
    row: str
    column: str
    level: str | None
    single: tuple[str, ...]
    """dimensions of length one, which are left out"""

    @property
    def horizontal(self) -> tuple[str, str]:
        """The two dimensions of the grid."""
        return self.row, self.column


@dataclass(frozen=True)
class Channel:
    """One channel of the store: a variable, at a level where it has several."""

    name: str
    variable: str
    level: int | None
    """index along the level dimension"""


@dataclass(frozen=True)
class Part:
    """The times of one file, as places in the whole series."""

    path: str
    first: int
    count: int


@dataclass(frozen=True)
class NetcdfField:
    """The whole field: sorted by time, the same grid throughout."""

    channels: tuple[Channel, ...]
    layouts: dict[str, Layout]
    """variable -> its dimensions; time, row and column are the same for all"""
    parts: dict[str, tuple[Part, ...]]
    """variable -> files in order of time"""
    axis: TimeAxis
    rows: np.ndarray
    columns: np.ndarray
    row_is_latitude: bool
    column_is_longitude: bool
    units: str
    long_name: str

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames [start, stop): float32 (time, channel, height, width); missing values are NaN."""
        result = np.empty((stop - start, len(self.channels), len(self.rows), len(self.columns)), np.float32)
        for index, channel in enumerate(self.channels):
            for part in self.parts[channel.variable]:
                low, high = max(start, part.first), min(stop, part.first + part.count)
                if low < high:
                    with opened(part.path) as file:
                        times = slice(low - part.first, high - part.first)
                        layout = self.layouts[channel.variable]
                        values = _read(file[channel.variable], layout, times, channel.level)
                    result[low - start : high - start, index] = values
        return result

    def place(self, time: int, channel: int, row: int, column: int) -> str:
        """Where a value is, for messages."""
        variable = self.channels[channel].variable
        (path,) = [p.path for p in self.parts[variable] if p.first <= time < p.first + p.count]
        layout = self.layouts[variable]
        where = f"{layout.row} {self.rows[row]:g}, {layout.column} {self.columns[column]:g}"
        return f"{self.channels[channel].name} at {show(self.axis.date(time))}, {where} ({path})"

    @cached_property
    def latitude(self) -> list[float] | None:
        """Latitude of the rows in degrees, where they have one."""
        return self.rows.tolist() if self.row_is_latitude else None


@contextlib.contextmanager
def opened(path: str) -> Iterator[netCDF4.Dataset]:
    """A file for reading.

    Raises:
        UserError: it cannot be read as NetCDF.
    """
    try:
        file = netCDF4.Dataset(path)
    except OSError as error:
        if os.path.isdir(path):
            raise UserError(f"'{path}' is a folder; name its files, as in '{path}/*.nc'") from None
        raise UserError(f"'{path}' cannot be read as NetCDF ({error.strerror or error})") from None
    with file:
        try:
            yield file
        except (RuntimeError, OSError) as error:
            raise UserError(f"'{path}' is damaged: {error}") from None


def find_files(patterns: list[str]) -> list[str]:
    """Files that the patterns name, sorted, each once.

    Raises:
        UserError: a pattern names none.
    """
    found: set[str] = set()
    for pattern in patterns:
        names = glob.glob(pattern, recursive=True)
        if not names:
            raise UserError(f"no file matches '{pattern}'")
        found.update(names)
    return sorted(found)


def open_field(
    paths: list[str],
    variables: list[str],
    levels: list[float],
    dimensions: dict[str, str | None],
) -> NetcdfField:
    """Find out what is in the files.

    Args:
        paths: the files.
        variables: names of the channels' variables; may be left out where the files have only one.
        levels: values of the level dimension, each a channel; may be left out where there is only one.
        dimensions: names given for time, row and column, or None to be found.

    Raises:
        UserError: a variable, level or dimension is not there or not clear, the grids differ, or the times have
            gaps or repeats.
    """
    with opened(paths[0]) as file:
        if not variables:
            variables = [_only_variable(file, paths[0])]
    located: dict[str, list[tuple[float, int, str, np.ndarray]]] = {variable: [] for variable in variables}
    first: dict[str, Any] = {}
    layouts: dict[str, Layout] = {}
    calendar = ""
    seen: set[str] = set()
    for path in paths:
        with opened(path) as file:
            seen |= set(file.variables)
            for variable in [v for v in variables if v in file.variables]:
                layout = _layout(file, variable, dimensions, path)
                grid = (_coordinate(file, layout.row), _coordinate(file, layout.column))
                if not first:
                    first = {"layout": layout, "grid": grid, "path": path}
                    first["attributes"] = _grid_attributes(file, layout)
                known = layouts.setdefault(variable, layout)
                agree = layout == known and layout.horizontal == first["layout"].horizontal
                if not agree or not all(map(_same, grid, first["grid"])):
                    raise UserError(f"'{path}' has another grid than '{first['path']}' for {variable}")
                if layout.time not in file.variables:
                    raise UserError(
                        f"'{path}' has no variable '{layout.time}' with the times along {variable}'s dimension of that "
                        "name; write one with units such as 'hours since 1979-01-01'"
                    )
                time = file[layout.time]
                own_calendar = str(getattr(time, "calendar", "standard")).lower()
                if calendar and own_calendar != calendar:
                    raise UserError(f"'{path}' has the calendar {own_calendar}, others {calendar}")
                calendar = own_calendar
                raw = np.ma.filled(time[:].astype(np.float64), np.nan)
                if not np.isfinite(raw).all():
                    raise UserError(f"'{path}' has missing times")
                seconds = to_seconds(raw, str(getattr(time, "units", "")), calendar, f"'{path}'")
                if len(seconds):
                    located[variable].append((seconds[0], len(seconds), path, seconds))
    for variable, found in located.items():
        if not found:
            raise UserError(f"no file has a variable '{variable}'{did_you_mean(variable, seen)}")
    parts, axis = _join_times(located, calendar)
    channels, units, long_names = _channels(located, variables, levels, layouts)
    row_is_latitude, column_is_longitude = first["attributes"]
    return NetcdfField(
        channels=channels,
        layouts=layouts,
        parts=parts,
        axis=axis,
        rows=first["grid"][0],
        columns=first["grid"][1],
        row_is_latitude=row_is_latitude,
        column_is_longitude=column_is_longitude,
        units=units,
        long_name=long_names,
    )


def _join_times(
    located: dict[str, list[tuple[float, int, str, np.ndarray]]], calendar: str
) -> tuple[dict[str, tuple[Part, ...]], TimeAxis]:
    parts: dict[str, tuple[Part, ...]] = {}
    axis: TimeAxis | None = None
    for variable, found in located.items():
        found.sort(key=lambda entry: entry[0])
        seconds = np.concatenate([entry[3] for entry in found])
        this = TimeAxis.of(seconds, calendar, f"{variable} in {len(found)} file{'s' * (len(found) > 1)}")
        if axis is not None and not np.array_equal(axis.seconds, this.seconds):
            raise UserError(f"{variable} is not given at the same times as {next(iter(located))}")
        axis = axis or this
        ends = np.cumsum([entry[1] for entry in found])
        parts[variable] = tuple(
            Part(entry[2], int(end) - entry[1], entry[1]) for entry, end in zip(found, ends, strict=True)
        )
    assert axis is not None
    return parts, axis


def _channels(
    located: dict[str, list[tuple[float, int, str, np.ndarray]]],
    variables: list[str],
    levels: list[float],
    layouts: dict[str, Layout],
) -> tuple[tuple[Channel, ...], str, str]:
    channels: list[Channel] = []
    units: list[str] = []
    names: list[str] = []
    if levels and all(layout.level is None for layout in layouts.values()):
        raise UserError(f"{variables[0]} has no levels to select by --level")
    for variable in variables:
        path = located[variable][0][2]
        with opened(path) as file:
            units.append(str(getattr(file[variable], "units", "1")))
            names.append(str(getattr(file[variable], "long_name", variable)))
            level_name = layouts[variable].level
            if level_name is None:
                channels.append(Channel(variable, variable, None))
                continue
            known = _coordinate(file, level_name)
            if not levels:
                listed = ", ".join(f"{value:g}" for value in known)
                raise UserError(f"{variable} has {len(known)} levels; select with --level one or more of {listed}")
            for level in levels:
                matches = np.flatnonzero(np.isclose(known, level))
                if len(matches) != 1:
                    listed = ", ".join(f"{value:g}" for value in known)
                    raise UserError(f"{variable} has no level {level:g}; there are {listed}")
                name = variable if len(levels) == 1 else f"{variable}{level:g}"
                channels.append(Channel(name, variable, int(matches[0])))
    unique = list(dict.fromkeys(units))
    return tuple(channels), ", ".join(unique), ", ".join(dict.fromkeys(names))


def _layout(file: netCDF4.Dataset, variable: str, given: dict[str, str | None], path: str) -> Layout:
    """Which dimension is which.

    Raises:
        UserError: one is not found, or one is left over.
    """
    names = list(file[variable].dimensions)
    sizes = {name: len(file.dimensions[name]) for name in names}
    for role, name in given.items():
        if name is not None and name not in names:
            raise UserError(
                f"--{role}-dimension: {variable} in '{path}' has no dimension '{name}'; it has {', '.join(names)}"
            )

    def find(role: str, known: tuple[str, ...], axis: str, standard: tuple[str, ...], units: str) -> str | None:
        if given.get(role):
            return given[role]
        for name in names:
            attributes = file[name] if name in file.variables else None
            if getattr(attributes, "axis", "").upper() == axis or getattr(attributes, "standard_name", "") in standard:
                return name
            if units and str(getattr(attributes, "units", "")).startswith(units):
                return name
        by_name = [name for name in names if name.lower() in known]
        return by_name[0] if by_name else None

    row = find("row", ROW_NAMES, "Y", ("latitude", "projection_y_coordinate", "grid_latitude"), "degrees_n")
    column = find("column", COLUMN_NAMES, "X", ("longitude", "projection_x_coordinate", "grid_longitude"), "degrees_e")
    time = find("time", TIME_NAMES, "T", ("time",), "")
    missing = [role for role, name in (("time", time), ("row", row), ("column", column)) if name is None]
    if time is None or row is None or column is None:
        options = " and ".join(f"--{role}-dimension" for role in missing)
        raise UserError(
            f"cannot tell which dimension of {variable} in '{path}' is the {' and the '.join(missing)}: it has "
            f"{', '.join(names)}; say so by {options}"
        )
    rest = [name for name in names if name not in (time, row, column)]
    many = [name for name in rest if sizes[name] > 1]
    levels = ("air_pressure", "height", "depth", "altitude", "model_level_number")
    level = find("level", LEVEL_NAMES, "Z", levels, "") if many else None
    if len(many) > 1 or (many and level != many[0]):
        raise UserError(
            f"{variable} in '{path}' has dimensions that are not understood: "
            f"{', '.join(n for n in many if n != level)}; select from them first, for example with ncks or cdo"
        )
    return Layout(time, row, column, many[0] if many else None, tuple(n for n in rest if sizes[n] == 1))


def _grid_attributes(file: netCDF4.Dataset, layout: Layout) -> tuple[bool, bool]:
    """Whether rows are latitudes and columns longitudes."""

    def is_one(name: str, standard: str, units: str, known: tuple[str, ...]) -> bool:
        attributes = file[name] if name in file.variables else None
        return (
            getattr(attributes, "standard_name", "") == standard
            or str(getattr(attributes, "units", "")).startswith(units)
            or name.lower() in known
        )

    return (
        is_one(layout.row, "latitude", "degrees_n", ("lat", "latitude")),
        is_one(layout.column, "longitude", "degrees_e", ("lon", "longitude")),
    )


def _coordinate(file: netCDF4.Dataset, name: str) -> np.ndarray:
    """Values of a dimension, its indices where it has no coordinate."""
    if name in file.variables and file[name].dimensions == (name,):
        return np.asarray(np.ma.filled(file[name][:].astype(np.float64), np.nan))
    return np.arange(len(file.dimensions[name]), dtype=np.float64)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=1e-6)


def _only_variable(file: netCDF4.Dataset, path: str) -> str:
    """The one variable with at least three dimensions."""
    names = [name for name, variable in file.variables.items() if len(variable.dimensions) >= 3]
    if len(names) == 1:
        return names[0]
    raise UserError(f"'{path}' has {len(names)} fields ({', '.join(names) or 'none'}); name those wanted by --variable")


def _read(variable: netCDF4.Variable, layout: Layout, times: slice, level: int | None) -> np.ndarray:
    """(time, row, column) of a variable whose dimensions may be in any order, float32, NaN where missing."""
    index: list[Any] = []
    kept: list[str] = []
    for name in variable.dimensions:
        if name in layout.single:
            index.append(0)
        elif name == layout.level:
            index.append(level)
        else:
            index.append(times if name == layout.time else slice(None))
            kept.append(name)
    values = np.ma.filled(np.ma.asarray(variable[tuple(index)]).astype(np.float32), np.nan)
    return values.transpose([kept.index(name) for name in (layout.time, layout.row, layout.column)])
