"""Several sources as one field: joined in time or as samples, on one grid, with variables and levels as channels.

Only what is asked for is ever read, so the size of the sources does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr

from data_prep import resampling
from data_prep.channels import Channel
from data_prep.dimensions import Dimensions
from data_prep.grid import Grid
from data_prep.resampling import Area, Remapping
from data_prep.source_identity import SourceIdentity
from data_prep.sources import has_netcdf_conventions, open_source, request
from data_prep.time_axis import TimeAxis
from mcrnn.data.groups import split_group
from mcrnn.data.missing_values import without_invalid
from mcrnn.data.time_step import show
from mcrnn.data.units import Conversion
from mcrnn.errors import UserError


@dataclass(frozen=True)
class Part:
    """What one source holds of a variable: a part of the times of a series, or some of the samples.

    Attributes:
        source: the source.
        dimensions: which dimension of the variable is which.
        first: position of its first time or sample in the whole field.
        count: number of its times or samples.
        levels: values of its levels, None where there is no level.
        conversion: how its values are converted, None where they stay as they are.
    """

    source: SourceIdentity
    dimensions: Dimensions
    first: int
    count: int
    levels: tuple[float, ...] | None
    conversion: Conversion | None = None


@dataclass(frozen=True)
class SampleTimes:
    """The times of samples, which are the same for all.

    Attributes:
        values: the times, float64.
        units: their units, "1" where there are none.
        step: the interval between two.
    """

    values: np.ndarray
    units: str
    step: str


@dataclass(frozen=True)
class GriddedField:
    """The whole field. `data_prep.joining.open_field` makes one.

    Attributes:
        channels: the channels, in order.
        parts: for each variable its sources in the order of the field.
        axis: all times of a series; the times of each sample otherwise.
        samples: number of samples, None for a series.
        area: the part of the grid that is read.
        taken: positions in the sources of the times that are taken, None for all.
        units_of: units of each variable, after conversion.
        long_name: long names of the variables, joined by commas.
        whole_grid: the grid of the sources.
        remapping: how the grid is made coarser, None if it is not.
        level_units: units of the levels of channels, empty where there are none.
        differences: variables whose values are differences, such as anomalies of temperature, as far as sources say so.
        logarithms: scale of each variable that is stored as a logarithm, see `data_prep.logarithms`. It is no matter of
            this class, which reads the variables themselves.
    """

    channels: tuple[Channel, ...]
    parts: dict[str, tuple[Part, ...]]
    axis: TimeAxis | SampleTimes
    samples: int | None
    area: Area
    taken: np.ndarray | None
    units_of: dict[str, str]
    long_name: str
    whole_grid: Grid
    remapping: Remapping | None = None
    level_units: str = ""
    logarithms: dict[str, float] = field(default_factory=dict)
    differences: frozenset[str] = frozenset()

    @property
    def store_grid(self) -> Grid:
        """The grid after all selections."""
        return self.remapping.grid if self.remapping is not None else self.area.grid

    @property
    def units(self) -> str:
        """Units of the variables, joined by commas where they differ."""
        return ", ".join(dict.fromkeys(self.units_of.values()))

    @property
    def frames(self) -> int:
        """Number of times."""
        return len(self.axis.seconds if isinstance(self.axis, TimeAxis) else self.axis.values)

    def select(self, area: str | None, every: str | None, block: int | None, regrid: str | None) -> GriddedField:
        """Return what the options of a conversion select; None selects all.

        Args:
            area: a part of the globe, see `select_area`.
            every: an interval, see `every`.
            block: side of the blocks that are averaged.
            regrid: height and width of the grid onto which cells are averaged.

        Raises:
            UserError: an option does not fit the field.
        """
        selected = self if area is None else self.select_area(area)
        if every is not None:
            selected = selected.every(every)
        if block is not None:
            selected = replace(selected, remapping=resampling.coarsen(selected.area.grid, block))
        if regrid is not None:
            selected = replace(selected, remapping=resampling.regrid(selected.area.grid, regrid))
        return selected

    def select_area(self, text: str) -> GriddedField:
        """Return the same of a part of the grid, see `Area.select`."""
        return replace(self, area=Area.select(self.area.grid, text))

    def every(self, text: str) -> GriddedField:
        """Return the same with fewer times, see `TimeAxis.every`.

        Raises:
            UserError: the times are no dates, or the interval is none of theirs.
        """
        if not isinstance(self.axis, TimeAxis):
            raise UserError("--every needs a series whose times are dates; samples are taken with all their times")
        axis, taken = self.axis.every(text)
        return replace(self, axis=axis, taken=taken)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the times of a series, or the samples, from `start` to `stop` - 1, on the grid of the sources.

        Returns:
            float32 (sample, time, channel, height, width), NaN where values are missing.
        """
        is_series = self.samples is None
        shape = (1, stop - start) if is_series else (stop - start, self.frames)
        field_NTCHW = np.empty((*shape, len(self.channels), *self.area.grid.shape), np.float32)
        positions = np.arange(start, stop) if self.taken is None else self.taken[start:stop]
        for variable, parts in self.parts.items():
            channels = [c for c, channel in enumerate(self.channels) if channel.variable == variable]
            for part in parts:
                low, high = np.searchsorted(positions, (part.first, part.first + part.count))
                if low == high:
                    continue
                target = slice(int(low), int(high))
                wanted = _as_slice(positions[target] - part.first)
                place = (slice(None), target) if is_series else (target, slice(None))
                values = self._read_part(part, variable, channels, wanted)
                for position, channel in enumerate(channels):
                    field_NTCHW[(*place, channel)] = values[:, :, position]
        return field_NTCHW

    def _read_part(self, part: Part, variable: str, channels: list[int], wanted: slice | np.ndarray) -> np.ndarray:
        """Read some times or samples of one source, (sample, time, channel, height, width)."""
        part.source.check()
        dimensions = part.dimensions
        levels: int | np.ndarray = 0
        order = None
        if part.levels is not None and dimensions.level is not None:
            of_channels = [level_position(part.levels, self.channels[c].level) for c in channels]
            positions, order = np.unique(of_channels, return_inverse=True)
            levels = int(positions[0]) if len(positions) == 1 else positions
        array = open_source(part.source.url, variable)[split_group(variable)[1]].variable
        index: dict[str, slice | int | np.ndarray] = dict.fromkeys(dimensions.single, 0)
        index[dimensions.time] = wanted if self.samples is None else slice(None)
        if dimensions.sample is not None:
            index[dimensions.sample] = wanted
        if dimensions.level is not None:
            index[dimensions.level] = levels
        index[dimensions.row] = self.area.rows
        index = {name: place for name, place in index.items() if name in array.dims}

        is_netcdf = has_netcdf_conventions(part.source.url)

        def read(columns: slice) -> np.ndarray:
            piece = array.isel(index | {dimensions.column: columns})
            dtype = np.float32 if part.conversion is None else np.float64
            values = without_invalid(piece, np.asarray(piece.values), is_netcdf=is_netcdf, dtype=dtype)
            if part.conversion is not None:
                with np.errstate(over="ignore"):  # what is beyond the range of float32 is refused as missing
                    values = part.conversion.apply(values).astype(np.float32)
            return _in_order(piece, dimensions, values)

        pieces = [request_part(part, read, columns) for columns in self.area.columns]
        values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)
        return values if order is None else values[:, :, order]

    def describe_position(self, sample: int, time: int, channel: int, row: int, column: int) -> str:
        """Say where a value is, for messages: channel, date or sample, coordinates and source."""
        position = time if self.samples is None else sample
        in_source = position if self.taken is None else int(self.taken[position])
        parts = self.parts[self.channels[channel].variable]
        (url,) = [p.source.url for p in parts if p.first <= in_source < p.first + p.count]
        grid = self.area.grid
        point = f"{grid.names[0]} {grid.rows[row]:g}, {grid.names[1]} {grid.columns[column]:g}"
        return f"{self.channels[channel].name} at {self.describe_time(position, time)}, {point} ({url})"

    def describe_time(self, position: int, time: int) -> str:
        """Return the date at a position of a series, or the sample at that position and the number of its time."""
        return show(self.axis.date(position)) if isinstance(self.axis, TimeAxis) else f"sample {position}, time {time}"


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """Return increasing positions as a slice where they are equally far apart, which reads faster."""
    steps = np.diff(positions)
    if len(steps) and (steps != steps[0]).any():
        return positions
    return slice(int(positions[0]), int(positions[-1]) + 1, int(steps[0]) if len(steps) else 1)


def level_position(levels: tuple[float, ...], level: float | None) -> int:
    """Return the position of a level among those of a source; the only one where no level is asked for."""
    if level is None:
        return 0
    (position,) = np.flatnonzero(np.isclose(levels, level))
    return int(position)


def request_part(part: Part, read: Callable[[slice], np.ndarray], columns: slice) -> np.ndarray:
    """Read from a source.

    Raises:
        UserError: it is damaged, or out of reach.
    """
    url = part.source.url

    def checked() -> np.ndarray:
        try:
            return read(columns)
        except (RuntimeError, ValueError, EOFError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"'{url}' is damaged: {error}") from None

    return request(url, checked)


def _in_order(piece: xr.Variable, dimensions: Dimensions, values: np.ndarray) -> np.ndarray:
    """Return values as (sample, time, level, height, width); what a source does not have gets the length one."""
    names = [str(name) for name in piece.dims]
    wanted = (dimensions.sample, dimensions.time, dimensions.level, dimensions.row, dimensions.column)
    present = [name for name in wanted if name in names]
    values = values.transpose([names.index(name) for name in present if name is not None])
    shape = iter(values.shape)
    return values.reshape([next(shape) if name in names else 1 for name in wanted])
