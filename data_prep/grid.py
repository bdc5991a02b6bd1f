"""The horizontal grid of a field: coordinates of its rows and columns, checked, and what of it is a part of a globe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from data_prep.dimensions import Dimensions, attribute
from mcrnn.data.units import find_conversion
from mcrnn.errors import UserError

LATITUDE = ("latitude", "degrees_n", ("lat", "latitude"))
LONGITUDE = ("longitude", "degrees_e", ("lon", "longitude"))
"""Attribute `standard_name`, begin of the attribute `units`, and names of a dimension of geographic coordinates."""


@dataclass(frozen=True)
class Grid:
    """Rows and columns of a field.

    Attributes:
        names: names of the row and the column dimension.
        rows: coordinate of each row, float64.
        columns: coordinate of each column, float64.
        row_is_latitude: whether rows are latitudes, in degrees north.
        column_is_longitude: whether columns are longitudes, in degrees east.
        is_transposed: whether rows are longitudes or columns latitudes, as options may ask for.
        units: units of rows and columns that are neither, such as those of a projection; empty where there are none.
    """

    names: tuple[str, str]
    rows: np.ndarray
    columns: np.ndarray
    row_is_latitude: bool
    column_is_longitude: bool
    is_transposed: bool = False
    units: tuple[str, str] = ("", "")

    @classmethod
    def read(cls, dataset: xr.Dataset, dimensions: Dimensions, path: str) -> Grid:
        """Read the grid of a variable with these dimensions.

        Raises:
            UserError: a coordinate cannot be right: it is missing, out of range, or not in order.
        """
        row, column = dimensions.row, dimensions.column
        is_latitude = _is_geographic(dataset, row, *LATITUDE)
        is_longitude = _is_geographic(dataset, column, *LONGITUDE)
        is_transposed = _is_geographic(dataset, row, *LONGITUDE) or _is_geographic(dataset, column, *LATITUDE)
        rows = _read_coordinate(dataset, row, path, "latitude" if is_latitude else "")
        columns = _read_coordinate(dataset, column, path, "longitude" if is_longitude else "")
        # Most of a globe within 1.6, and more than half of a circle within 2 pi: these are no degrees.
        seem_radians = 1.3 < np.abs(rows).max() < 1.6 and 3.2 < np.ptp(columns) < 6.3
        if is_latitude and is_longitude and not attribute(dataset, row, "units") and seem_radians:
            raise UserError(f"latitudes and longitudes of '{path}' seem to be radians; give them units")
        units = [
            "" if is_degrees else attribute(dataset, name, "units")
            for name, is_degrees in ((row, is_latitude), (column, is_longitude))
        ]
        return cls((row, column), rows, columns, is_latitude, is_longitude, is_transposed, (units[0], units[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self.rows), len(self.columns)

    @property
    def latitude(self) -> list[float] | None:
        """Latitude of each row in degrees north, None where rows are not latitudes."""
        return self.rows.tolist() if self.row_is_latitude else None

    @property
    def circle(self) -> float | None:
        """Degrees of longitude that the cells of all columns cover, None where columns are not longitudes."""
        if not self.column_is_longitude or len(self.columns) < 2:
            return None
        return float(np.abs(np.median(np.diff(_unwrapped(self.columns)))) * len(self.columns))

    @property
    def is_around_the_globe(self) -> bool:
        """Whether the columns are longitudes all around."""
        return self.circle is not None and abs(self.circle - 360) < 0.5 * self.circle / len(self.columns)

    def is_same(self, other: Grid) -> bool:
        """Return whether two grids have the same dimensions and, to six digits and in the same units, coordinates."""
        return self.names == other.names and all(self.same_axes(other))

    def same_axes(self, other: Grid) -> tuple[bool, bool]:
        """Return whether rows, and whether columns, have the same coordinates, to six digits and in the same units."""
        return (
            _are_close(self.rows, _in_units(other.rows, other.units[0], self.units[0])),
            _are_close(self.columns, _in_units(other.columns, other.units[1], self.units[1])),
        )

    def check_boundary(self, boundary: str) -> None:
        """Refuse a boundary that continues at the other side what does not go around the globe.

        Raises:
            UserError: it does.
        """
        if boundary == "cylinder" and self.is_transposed:
            raise UserError("--boundary cylinder joins the ends of the columns, which here are latitudes")
        if boundary == "zeros" or self.circle is None or self.is_around_the_globe:
            return
        step = self.circle / len(self.columns)
        if abs(self.circle - step - 360) < 0.5 * step:
            raise UserError(
                f"the last column repeats the first, {self.columns[0]:g} and {self.columns[-1]:g} degrees: leave it "
                f"out by --area, or --boundary {boundary} would be wrong"
            )
        raise UserError(
            f"the longitudes cover {self.circle:g} of 360 degrees, and --boundary {boundary} would join their ends; "
            "a region has --boundary zeros"
        )


def _is_geographic(dataset: xr.Dataset, name: str, standard_name: str, units: str, names: tuple[str, ...]) -> bool:
    """Return whether the values of a dimension are latitudes or longitudes, and not of a rotated or projected grid."""
    return (
        attribute(dataset, name, "standard_name") == standard_name
        or attribute(dataset, name, "units").lower().startswith(units)
        or name.lower() in names
    )


def _read_coordinate(dataset: xr.Dataset, name: str, path: str, kind: str) -> np.ndarray:
    """Read the coordinate of a dimension of the grid; the indices where a projected grid has none.

    Args:
        dataset: the open source.
        name: name of the dimension.
        path: name of the source, for messages.
        kind: "latitude", "longitude", or empty.
    """
    values = coordinate_values(dataset, name, path)
    if dataset.sizes[name] == 0:
        raise UserError(f"'{path}' has no values along {name}")
    if values is None:
        if kind:
            raise UserError(
                f"'{path}' has no coordinate for its dimension {name}; add the {kind}s in degrees, or give the "
                "dimension another name, such as y or x"
            )
        return np.arange(dataset.sizes[name], dtype=np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"the coordinate {name} of '{path}' has missing values")
    if kind:
        values = _in_degrees(values, attribute(dataset, name, "units"), name, path)
    steps = np.diff(_unwrapped(values) if kind == "longitude" else values)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise UserError(f"the coordinate {name} of '{path}' neither rises nor falls all along: sort it first")
    if kind == "latitude":
        if np.abs(values).max() > 90.001:
            raise UserError(f"the latitudes {name} of '{path}' reach {values[np.abs(values).argmax()]:g} degrees")
        return np.clip(values, -90, 90)
    if kind == "longitude" and np.ptp(_unwrapped(values)) > 360.001:
        raise UserError(f"the longitudes {name} of '{path}' go more than once around the globe")
    return values


def _in_degrees(values: np.ndarray, units: str, name: str, path: str) -> np.ndarray:
    lower = units.lower()
    if lower.startswith("rad"):
        return np.rad2deg(values)
    if lower and not lower.startswith(("deg", "°")) and lower != "1":
        raise UserError(f"the coordinate {name} of '{path}' has the units '{units}', which are not degrees")
    return values


def coordinate_values(dataset: xr.Dataset, name: str, path: str) -> np.ndarray | None:
    """Return the coordinate of a dimension as float64, None where it has none.

    Raises:
        UserError: it is text.
    """
    if name not in dataset.variables or dataset.variables[name].dims != (name,):
        return None
    values = np.asarray(dataset.variables[name].values)
    if values.dtype.kind not in "iufb":
        raise UserError(f"the coordinate {name} of '{path}' is no number")
    return values.astype(np.float64)


def _unwrapped(longitude: np.ndarray) -> np.ndarray:
    """Return longitudes without the step from the end of the circle to its begin."""
    return np.unwrap(longitude, period=360)


def _in_units(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """Return coordinates in other units; none where these do not convert into each other."""
    if not source or not target:
        return values
    try:
        conversion = find_conversion(source, target)
    except ValueError:
        return np.zeros(0)
    return values if conversion is None else conversion.apply(values)


def _are_close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=1e-6)
