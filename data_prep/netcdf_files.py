"""One NetCDF file: open it, and find out which dimension of a variable is time, level, row and column.

Dimensions are recognised by the attributes of the CF conventions (https://cfconventions.org: `axis`, `standard_name`,
`units` of the coordinate variable), else by their names, unless the user says which is which.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import netCDF4
import numpy as np

from data_prep.time_axis import to_seconds
from mcrnn.errors import UserError


@dataclass(frozen=True)
class Role:
    """How the dimension that plays a role for a variable is recognised.

    Attributes:
        axis: value of the attribute `axis`.
        standard_names: values of the attribute `standard_name`.
        units: how the attribute `units` begins; empty where units tell nothing.
        names: names of the dimension itself, in lower case.
    """

    axis: str
    standard_names: tuple[str, ...]
    units: str
    names: tuple[str, ...]


TIME = Role("T", ("time",), "", ("time", "valid_time", "date", "t"))
LEVEL = Role(
    "Z",
    ("air_pressure", "height", "depth", "altitude", "model_level_number"),
    "",
    ("level", "lev", "plev", "isobaricinhpa", "pressure_level", "pressure", "height_level", "depth", "z"),
)
ROW = Role(
    "Y",
    ("latitude", "projection_y_coordinate", "grid_latitude"),
    "degrees_n",
    ("lat", "latitude", "nav_lat", "y", "rlat", "projection_y_coordinate", "height", "row"),
)
COLUMN = Role(
    "X",
    ("longitude", "projection_x_coordinate", "grid_longitude"),
    "degrees_e",
    ("lon", "longitude", "nav_lon", "x", "rlon", "projection_x_coordinate", "width", "column"),
)


@dataclass(frozen=True)
class Dimensions:
    """Names of the dimensions of a variable.

    Attributes:
        time: dimension of the times.
        row: first dimension of the grid, such as latitude.
        column: second dimension of the grid, such as longitude.
        level: dimension of the levels, None where there is one level at most.
        single: further dimensions, of length one, which are left out.
    """

    time: str
    row: str
    column: str
    level: str | None
    single: tuple[str, ...]

    @property
    def horizontal(self) -> tuple[str, str]:
        """The two dimensions of the grid."""
        return self.row, self.column


def find_files(patterns: list[str]) -> list[str]:
    """Return the files that some patterns match, sorted, each once.

    Raises:
        UserError: a pattern matches no file.
    """
    found: set[str] = set()
    for pattern in patterns:
        names = glob.glob(pattern, recursive=True)
        if not names:
            raise UserError(f"no file matches '{pattern}'")
        found.update(names)
    return sorted(found)


@contextlib.contextmanager
def open_file(path: str) -> Iterator[netCDF4.Dataset]:
    """Open a file for reading.

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


def only_variable(file: netCDF4.Dataset, path: str) -> str:
    """Return the name of the one variable of a file that has at least three dimensions.

    Raises:
        UserError: there is none, or more than one.
    """
    names = [name for name, variable in file.variables.items() if len(variable.dimensions) >= 3]
    if len(names) == 1:
        return names[0]
    raise UserError(f"'{path}' has {len(names)} fields ({', '.join(names) or 'none'}); name those wanted by --variable")


def find_dimensions(file: netCDF4.Dataset, variable: str, given: dict[str, str | None], path: str) -> Dimensions:
    """Find out which dimension of a variable is which.

    Args:
        file: the open file.
        variable: name of the variable.
        given: names that the user gives for the roles time, row and column, None for those to be recognised.
        path: name of the file, for messages.

    Raises:
        UserError: a dimension is not found, or one is left over that has more than one value.
    """
    names = list(file[variable].dimensions)
    for role, given_name in given.items():
        if given_name is not None and given_name not in names:
            raise UserError(
                f"--{role}-dimension: {variable} in '{path}' has no dimension '{given_name}'; it has {', '.join(names)}"
            )
    time = given.get("time") or _recognise(file, names, TIME)
    row = given.get("row") or _recognise(file, names, ROW)
    column = given.get("column") or _recognise(file, names, COLUMN)
    missing = [role for role, name in (("time", time), ("row", row), ("column", column)) if name is None]
    if time is None or row is None or column is None:
        options = " and ".join(f"--{role}-dimension" for role in missing)
        raise UserError(
            f"cannot tell which dimension of {variable} in '{path}' is the {' and the '.join(missing)}: it has "
            f"{', '.join(names)}; say so by {options}"
        )
    others = [name for name in names if name not in (time, row, column)]
    longer = [name for name in others if len(file.dimensions[name]) > 1]
    level = _recognise(file, names, LEVEL) if longer else None
    if len(longer) > 1 or (longer and level != longer[0]):
        raise UserError(
            f"{variable} in '{path}' has dimensions that are not understood: "
            f"{', '.join(name for name in longer if name != level)}; "
            "select from them first, for example with ncks or cdo"
        )
    single = tuple(name for name in others if name not in longer)
    return Dimensions(time, row, column, longer[0] if longer else None, single)


def _recognise(file: netCDF4.Dataset, names: list[str], role: Role) -> str | None:
    """Return the first dimension whose coordinate has the attributes of a role, else the first with a name of it."""
    for name in names:
        if _attribute(file, name, "axis").upper() == role.axis:
            return name
        if _attribute(file, name, "standard_name") in role.standard_names:
            return name
        if role.units and _attribute(file, name, "units").startswith(role.units):
            return name
    by_name = [name for name in names if name.lower() in role.names]
    return by_name[0] if by_name else None


def is_latitude(file: netCDF4.Dataset, name: str) -> bool:
    """Return whether the values of a dimension are latitudes, and not those of a rotated or projected grid."""
    return _is_geographic(file, name, "latitude", "degrees_n", ("lat", "latitude"))


def is_longitude(file: netCDF4.Dataset, name: str) -> bool:
    """Return whether the values of a dimension are longitudes, and not those of a rotated or projected grid."""
    return _is_geographic(file, name, "longitude", "degrees_e", ("lon", "longitude"))


def _is_geographic(file: netCDF4.Dataset, name: str, standard_name: str, units: str, names: tuple[str, ...]) -> bool:
    return (
        _attribute(file, name, "standard_name") == standard_name
        or _attribute(file, name, "units").startswith(units)
        or name.lower() in names
    )


def _attribute(file: netCDF4.Dataset, name: str, attribute: str) -> str:
    """Return an attribute of the coordinate variable of a dimension, empty where there is none."""
    return str(getattr(file[name], attribute, "")) if name in file.variables else ""


def coordinate_values(file: netCDF4.Dataset, name: str) -> np.ndarray:
    """Return the values of a dimension as float64, its indices where it has no coordinate variable."""
    if name in file.variables and file[name].dimensions == (name,):
        return np.asarray(np.ma.filled(file[name][:].astype(np.float64), np.nan))
    return np.arange(len(file.dimensions[name]), dtype=np.float64)


def read_times(file: netCDF4.Dataset, variable: str, dimension: str, path: str) -> tuple[np.ndarray, str]:
    """Read the times of a variable.

    Args:
        file: the open file.
        variable: name of the variable, for messages.
        dimension: name of the time dimension.
        path: name of the file, for messages.

    Returns:
        Seconds since `TimeAxis.REFERENCE`, float64, and the name of their calendar.

    Raises:
        UserError: there are no times, one is missing, or their units or calendar are not of the CF conventions.
    """
    if dimension not in file.variables:
        raise UserError(
            f"'{path}' has no variable '{dimension}' with the times along {variable}'s dimension of that "
            "name; write one with units such as 'hours since 1979-01-01'"
        )
    time = file[dimension]
    calendar = str(getattr(time, "calendar", "standard")).lower()
    values = np.ma.filled(time[:].astype(np.float64), np.nan)
    if not np.isfinite(values).all():
        raise UserError(f"'{path}' has missing times")
    return to_seconds(values, str(getattr(time, "units", "")), calendar, f"'{path}'"), calendar


def read_frames(variable: netCDF4.Variable, dimensions: Dimensions, times: slice, level: int | None) -> np.ndarray:
    """Read some times of a variable, at one level.

    Args:
        variable: the variable, whose dimensions may be in any order.
        dimensions: which of its dimensions is which.
        times: positions along the time dimension.
        level: position along the level dimension, None where there is none.

    Returns:
        float32 (time, row, column), NaN where values are missing.
    """
    index: list[Any] = []
    kept: list[str] = []
    for name in variable.dimensions:
        if name in dimensions.single:
            index.append(0)
        elif name == dimensions.level:
            index.append(level)
        else:
            index.append(times if name == dimensions.time else slice(None))
            kept.append(name)
    values = np.ma.filled(np.ma.asarray(variable[tuple(index)]).astype(np.float32), np.nan)
    return values.transpose([kept.index(name) for name in (dimensions.time, dimensions.row, dimensions.column)])
