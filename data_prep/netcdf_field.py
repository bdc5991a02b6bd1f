"""Several NetCDF files as one field: sorted by time, on one grid, with variables and levels as channels.

Only what is asked for is ever read, so the size of the files does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import netCDF4
import numpy as np

from data_prep.netcdf_files import (
    Dimensions,
    coordinate_values,
    find_dimensions,
    is_latitude,
    is_longitude,
    only_variable,
    open_file,
    read_frames,
    read_times,
)
from data_prep.time_axis import TimeAxis, show
from mcrnn.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Channel:
    """One channel of the field: a variable, at one level where it has several.

    Attributes:
        name: name of the channel.
        variable: name of the variable.
        level: position along the level dimension, None where there is none.
    """

    name: str
    variable: str
    level: int | None


@dataclass(frozen=True)
class Part:
    """The part of the series that one file holds of a variable.

    Attributes:
        path: the file.
        first: position of its first time in the whole series.
        count: number of its times.
    """

    path: str
    first: int
    count: int


@dataclass(frozen=True)
class NetcdfField:
    """The whole field. `open_field` makes one.

    Attributes:
        channels: the channels, in order.
        dimensions: for each variable its dimensions; time, row and column are the same for all.
        parts: for each variable its files in the order of their times.
        axis: all times.
        rows: coordinate of each row.
        columns: coordinate of each column.
        row_is_latitude: whether rows are latitudes.
        column_is_longitude: whether columns are longitudes.
        units: units of each variable.
        long_name: long names of the variables, joined by commas.
    """

    channels: tuple[Channel, ...]
    dimensions: dict[str, Dimensions]
    parts: dict[str, tuple[Part, ...]]
    axis: TimeAxis
    rows: np.ndarray
    columns: np.ndarray
    row_is_latitude: bool
    column_is_longitude: bool
    units: dict[str, str]
    long_name: str

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the frames from `start` to `stop` - 1.

        Returns:
            float32 (time, channel, height, width), NaN where values are missing.
        """
        frames_TCHW = np.empty((stop - start, len(self.channels), len(self.rows), len(self.columns)), np.float32)
        for c, channel in enumerate(self.channels):
            for part in self.parts[channel.variable]:
                low, high = max(start, part.first), min(stop, part.first + part.count)
                if low >= high:
                    continue
                times = slice(low - part.first, high - part.first)
                with open_file(part.path) as file:
                    frames_TCHW[low - start : high - start, c] = read_frames(
                        file[channel.variable], self.dimensions[channel.variable], times, channel.level
                    )
        return frames_TCHW

    def describe_position(self, time: int, channel: int, row: int, column: int) -> str:
        """Say where a value is, for messages: channel, date, coordinates and file."""
        variable = self.channels[channel].variable
        (path,) = [p.path for p in self.parts[variable] if p.first <= time < p.first + p.count]
        dimensions = self.dimensions[variable]
        point = f"{dimensions.row} {self.rows[row]:g}, {dimensions.column} {self.columns[column]:g}"
        return f"{self.channels[channel].name} at {show(self.axis.date(time))}, {point} ({path})"

    @cached_property
    def latitude(self) -> list[float] | None:
        """Latitude of each row in degrees, None where rows are not latitudes."""
        return self.rows.tolist() if self.row_is_latitude else None


@dataclass(frozen=True)
class _Grid:
    """The grid of a variable in one file, which must be the same in all files.

    Attributes:
        path: the file.
        dimensions: names of the row and the column dimension.
        rows: coordinate of each row.
        columns: coordinate of each column.
        row_is_latitude: whether rows are latitudes.
        column_is_longitude: whether columns are longitudes.
    """

    path: str
    dimensions: tuple[str, str]
    rows: np.ndarray
    columns: np.ndarray
    row_is_latitude: bool
    column_is_longitude: bool

    @classmethod
    def read(cls, file: netCDF4.Dataset, dimensions: Dimensions, path: str) -> _Grid:
        """Read the grid of a variable with these dimensions."""
        return cls(
            path,
            dimensions.horizontal,
            coordinate_values(file, dimensions.row),
            coordinate_values(file, dimensions.column),
            is_latitude(file, dimensions.row),
            is_longitude(file, dimensions.column),
        )

    def is_same(self, other: _Grid) -> bool:
        """Return whether two grids have the same dimensions and, to six digits, the same coordinates."""
        return (
            self.dimensions == other.dimensions
            and _are_close(self.rows, other.rows)
            and _are_close(self.columns, other.columns)
        )


@dataclass
class _Inventory:
    """Collects what the files hold of the variables that are wanted.

    Attributes:
        grid: the grid of the first file that was added, None before.
        calendar: the calendar of the times, None before the first file was added.
        dimensions: for each variable its dimensions.
        times: for each variable the files that have it, with their times in seconds.
        all_variables: names of all variables of all files, for messages.
    """

    grid: _Grid | None = None
    calendar: str | None = None
    dimensions: dict[str, Dimensions] = field(default_factory=dict)
    times: dict[str, list[tuple[str, np.ndarray]]] = field(default_factory=dict)
    all_variables: set[str] = field(default_factory=set)

    def add(self, file: netCDF4.Dataset, variable: str, given: dict[str, str | None], path: str) -> None:
        """Add what a file holds of a variable.

        Raises:
            UserError: its dimensions are not clear, its grid or calendar differs from that of the files before, or its
                times cannot be read.
        """
        dimensions = find_dimensions(file, variable, given, path)
        grid = _Grid.read(file, dimensions, path)
        if self.grid is None:
            self.grid = grid
        if dimensions != self.dimensions.setdefault(variable, dimensions) or not grid.is_same(self.grid):
            raise UserError(f"'{path}' has another grid than '{self.grid.path}' for {variable}")
        seconds, calendar = read_times(file, variable, dimensions.time, path)
        if self.calendar is None:
            self.calendar = calendar
        if calendar != self.calendar:
            raise UserError(f"'{path}' has the calendar {calendar}, others {self.calendar}")
        if len(seconds):
            self.times.setdefault(variable, []).append((path, seconds))


def open_field(
    paths: list[str],
    variables: list[str],
    levels: list[float],
    dimensions: dict[str, str | None],
) -> NetcdfField:
    """Find out what is in some files, without reading values of the field.

    Args:
        paths: the files.
        variables: names of the variables; may be empty where the files have only one.
        levels: values of the level dimension, each of which becomes a channel; may be empty where there is only one.
        dimensions: names that the user gives for the dimensions time, row and column, None for those to be recognised.

    Raises:
        UserError: a variable, level or dimension is not there or not clear, the grids differ, or the times have gaps or
            repeats.
    """
    if not variables:
        with open_file(paths[0]) as file:
            variables = [only_variable(file, paths[0])]
    inventory = _Inventory()
    for path in paths:
        with open_file(path) as file:
            inventory.all_variables |= set(file.variables)
            for variable in variables:
                if variable in file.variables:
                    inventory.add(file, variable, dimensions, path)
    for variable in variables:
        if variable not in inventory.times:
            raise UserError(f"no file has a variable '{variable}'{did_you_mean(variable, inventory.all_variables)}")
    grid, calendar = inventory.grid, inventory.calendar
    assert grid is not None
    assert calendar is not None
    parts, axis = _join_times({variable: inventory.times[variable] for variable in variables}, calendar)
    channels, units, long_names = _select_channels(parts, inventory.dimensions, levels)
    return NetcdfField(
        channels=channels,
        dimensions=inventory.dimensions,
        parts=parts,
        axis=axis,
        rows=grid.rows,
        columns=grid.columns,
        row_is_latitude=grid.row_is_latitude,
        column_is_longitude=grid.column_is_longitude,
        units=units,
        long_name=long_names,
    )


def _join_times(
    times: dict[str, list[tuple[str, np.ndarray]]], calendar: str
) -> tuple[dict[str, tuple[Part, ...]], TimeAxis]:
    """Sort the files of each variable by time, and join their times, which must be the same for all variables."""
    parts: dict[str, tuple[Part, ...]] = {}
    axis: TimeAxis | None = None
    for variable, files in times.items():
        files = sorted(files, key=lambda entry: entry[1][0])
        seconds = np.concatenate([seconds for _, seconds in files])
        own_axis = TimeAxis.of(seconds, calendar, f"{variable} in {len(files)} file{'s' * (len(files) > 1)}")
        if axis is not None and not np.array_equal(axis.seconds, own_axis.seconds):
            raise UserError(f"{variable} is not given at the same times as {next(iter(times))}")
        axis = axis or own_axis
        counts = [len(seconds) for _, seconds in files]
        firsts = np.cumsum([0, *counts[:-1]]).tolist()
        parts[variable] = tuple(
            Part(path, first, count) for (path, _), first, count in zip(files, firsts, counts, strict=True)
        )
    assert axis is not None
    return parts, axis


def _select_channels(
    parts: dict[str, tuple[Part, ...]], dimensions: dict[str, Dimensions], levels: list[float]
) -> tuple[tuple[Channel, ...], dict[str, str], str]:
    """Return the channels, the units of each variable, and the long names of the variables."""
    variables = list(parts)
    if levels and all(dimensions[variable].level is None for variable in variables):
        raise UserError(f"{variables[0]} has no levels to select by --level")
    channels: list[Channel] = []
    units: dict[str, str] = {}
    long_names: dict[str, None] = {}  # a dictionary for a set that keeps its order
    for variable in variables:
        with open_file(parts[variable][0].path) as file:
            units[variable] = str(getattr(file[variable], "units", "1"))
            long_names[str(getattr(file[variable], "long_name", variable))] = None
            level_dimension = dimensions[variable].level
            if level_dimension is None:
                channels.append(Channel(variable, variable, None))
            else:
                channels += _channels_of_levels(variable, coordinate_values(file, level_dimension), levels)
    return tuple(channels), units, ", ".join(long_names)


def _channels_of_levels(variable: str, known: np.ndarray, levels: list[float]) -> list[Channel]:
    """Return a channel for each level that is asked for."""
    listed = ", ".join(f"{value:g}" for value in known)
    if not levels:
        raise UserError(f"{variable} has {len(known)} levels; select with --level one or more of {listed}")
    channels = []
    for level in levels:
        matches = np.flatnonzero(np.isclose(known, level))
        if len(matches) != 1:
            raise UserError(f"{variable} has no level {level:g}; there are {listed}")
        name = variable if len(levels) == 1 else f"{variable}{level:g}"
        channels.append(Channel(name, variable, int(matches[0])))
    return channels


def _are_close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=1e-6)
