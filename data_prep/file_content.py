"""What one source holds of one variable: dimensions, grid, times, levels and units. No value of it is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from data_prep.dimensions import LEVEL, TIME, Dimensions, attribute, find_dimensions, recognise
from data_prep.grid import Grid, coordinate_values
from data_prep.sources import (
    NoGroupError,
    check_groups,
    describe_groups,
    open_group,
    open_source,
    request,
    source_format,
)
from data_prep.time_axis import calendar_name, rounding_in_seconds, to_seconds
from mcrnn.data.groups import groups_above, split_group
from mcrnn.data.units import Conversion, is_difference
from mcrnn.errors import UserError


@dataclass(frozen=True)
class FileContent:
    """What one source holds of a variable. `read_content` makes one.

    Attributes:
        url: path or URL of the source.
        dimensions: which dimension is which.
        grid: the grid.
        times: the times: seconds since `TimeAxis.REFERENCE` where they are dates, else numbers, float64. None where
            they have no coordinate.
        frames: number of times.
        calendar: calendar of the times, None where they are no dates.
        time_units: units of the times as they are in the source.
        rounding: seconds between two neighbouring numbers of the type that the times are stored in.
        levels: values of the levels, None where there is no level.
        level_units: their units, empty where there are none.
        fixed: values, as text, of all other coordinates that have one value only, by name.
        samples: number of samples, 1 where there is no dimension of them.
        units: units of the variable, empty where there are none.
        long_name: its long name.
        arrays: names of the arrays that are read, after those of their groups.
        is_difference: whether its values are differences of what has the units, such as anomalies of temperature.
        conversion: how its values are converted, None where they stay as they are.
    """

    url: str
    dimensions: Dimensions
    grid: Grid
    times: np.ndarray | None
    frames: int
    calendar: str | None
    time_units: str
    rounding: float
    levels: tuple[float, ...] | None
    level_units: str
    fixed: dict[str, str]
    samples: int
    units: str
    long_name: str
    arrays: frozenset[str]
    is_difference: bool
    conversion: Conversion | None = None


def only_variable(url: str, group: str = "") -> str:
    """Return the name of the one variable of a group that has at least three dimensions, or two and a time.

    Raises:
        UserError: there is none, or more than one.
    """
    try:
        dataset = open_group(url, group)
    except UserError:
        if source_format(url) != "GRIB":
            raise
        raise UserError(
            f"'{url}' holds fields of several kinds; name those wanted by --variable, such as t2m"
        ) from None
    scalars = [str(name) for name, coordinate in dataset.coords.items() if not coordinate.dims]
    least = 3 if recognise(dataset, scalars, TIME) is None else 2
    names = [str(name) for name, variable in dataset.data_vars.items() if len(variable.dims) >= least]
    if len(names) == 1:
        return names[0]
    where = f"the group {group} of '{url}'" if group else f"'{url}'"
    if not names and not group and (groups := describe_groups(url)):
        raise UserError(f"{where} has no fields{groups}")
    raise UserError(f"{where} has {len(names)} fields ({', '.join(names) or 'none'}); name those wanted by --variable")


def variables_of(url: str, group: str = "") -> list[str]:
    """Return the names of all arrays of a group; none of a GRIB file, of which only what fits together is read."""
    if source_format(url) == "GRIB":
        return []
    try:
        return [str(name) for name in open_group(url, group).variables]
    except NoGroupError:
        return []


def has_fields(url: str, group: str = "") -> bool:
    """Return whether a group of a source has a variable of two dimensions or more; a GRIB file always has."""
    if source_format(url) == "GRIB":
        return True
    try:
        return any(len(variable.dims) >= 2 for variable in open_group(url, group).data_vars.values())
    except NoGroupError:
        return False


def has_variable(url: str, variable: str) -> bool:
    """Return whether a source has a variable."""
    try:
        return split_group(variable)[1] in open_source(url, variable).variables
    except NoGroupError:
        return False


def read_content(url: str, variable: str, given: dict[str, str | None]) -> FileContent:
    """Find out what a source holds of a variable.

    Args:
        url: path or URL of the source.
        variable: name of the variable.
        given: names of dimensions that the user gives, see `find_dimensions`.

    Raises:
        UserError: something is missing, not understood, or cannot be right.
    """
    check_groups(url, variable)
    return request(url, lambda: _read_content(open_source(url, variable), url, variable, given))


def _read_content(dataset: xr.Dataset, url: str, path: str, given: dict[str, str | None]) -> FileContent:
    group, variable = split_group(path)
    array = dataset[variable]
    if array.dtype.kind not in "iufb":
        raise UserError(f"{variable} in '{url}' is no field of numbers (its type is {array.dtype})")
    dimensions = find_dimensions(dataset, variable, given, url)
    times, frames, calendar, units, rounding = _read_times(dataset, variable, dimensions, url)
    known = {dimensions.time, dimensions.row, dimensions.column, dimensions.level, dimensions.sample}
    scalars = [str(name) for name, c in array.coords.items() if c.size == 1 and name not in known]
    level_scalar = None if dimensions.level else recognise(dataset, scalars, LEVEL)
    level = dimensions.level or level_scalar
    return FileContent(
        url=url,
        dimensions=dimensions,
        grid=Grid.read(dataset, dimensions, url),
        times=times,
        frames=frames,
        calendar=calendar,
        time_units=units,
        rounding=rounding,
        levels=_read_levels(dataset, level, url),
        level_units=attribute(dataset, level, "units") if level else "",
        fixed={
            name: str(dataset.variables[name].values.reshape(-1)[0])
            for name in scalars
            if name != level_scalar and "since" not in attribute(dataset, name, "units") and name not in TIME.names
        },
        samples=1 if dimensions.sample is None else dataset.sizes[dimensions.sample],
        units=str(array.attrs.get("units", "")).strip(),
        long_name=str(array.attrs.get("long_name", variable)),
        arrays=frozenset(
            "/".join(filter(None, (above, name)))
            for name in (variable, *map(str, array.dims), *map(str, array.coords))
            for above in groups_above(group)
        ),
        is_difference=is_difference(array.attrs),
    )


def _read_levels(dataset: xr.Dataset, name: str | None, url: str) -> tuple[float, ...] | None:
    if name is None:
        return None
    if name in dataset.variables and dataset.variables[name].size == 1:
        value = dataset.variables[name].values.reshape(-1)[0]
        return (float(value),) if np.asarray(value).dtype.kind in "iuf" else None
    values = coordinate_values(dataset, name, url)
    if values is None:
        return None if dataset.sizes[name] == 1 else tuple(map(float, range(dataset.sizes[name])))
    if not np.isfinite(values).all():
        raise UserError(f"the coordinate {name} of '{url}' has missing values")
    return tuple(values.tolist())


def _read_times(
    dataset: xr.Dataset, variable: str, dimensions: Dimensions, url: str
) -> tuple[np.ndarray | None, int, str | None, str, float]:
    """Read the times of a variable.

    Returns:
        The times, their number, calendar, units and rounding, see `FileContent`.

    Raises:
        UserError: a time is missing, or they are text, or their units or calendar are not of the CF conventions.
    """
    name = dimensions.time
    count = dataset.sizes[name] if name in dataset[variable].dims else 1
    # Forecasts have a time of reference, and a time for which they are valid.
    valid = dataset.variables.get("valid_time")
    if valid is not None and valid.size == count and "since" in attribute(dataset, "valid_time", "units"):
        name = "valid_time"
    if name not in dataset.variables or dataset.variables[name].size != count:
        return None, count, None, "", 0.0
    raw = np.asarray(dataset.variables[name].values).reshape(-1)
    if raw.dtype.kind not in "iuf":
        raise UserError(
            f"the times {name} of '{url}' are no numbers; write them as CF has them, 'hours since 1979-01-01'"
        )
    if not np.isfinite(raw.astype(np.float64)).all():
        raise UserError(f"'{url}' has missing times")
    units = attribute(dataset, name, "units")
    if "since" not in units:
        return raw.astype(np.float64), count, None, units, 0.0
    calendar = calendar_name(attribute(dataset, name, "calendar") or "standard")
    seconds = to_seconds(raw.astype(np.float64), units, calendar, f"'{url}'")
    return seconds, count, calendar, units, rounding_in_seconds(raw, units, calendar)
