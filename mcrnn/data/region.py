"""A region of a grid of latitudes and longitudes, between two parallels and two meridians."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mcrnn.errors import UserError

ROUNDING = 1e-4
"""Degrees by which coordinates may be off, which are often kept in float32."""


@dataclass(frozen=True)
class Region:
    """A region, in degrees north and east; its edges belong to it.

    Attributes:
        north: northern edge.
        west: western edge.
        south: southern edge.
        east: eastern edge. Seen from the west towards the east; it may be smaller than `west`, across the date line.
    """

    north: float
    west: float
    south: float
    east: float

    @classmethod
    def parse(cls, text: str, option: str) -> Region:
        """Read a region as it is written on the command line.

        Args:
            text: `N/W/S/E` in degrees.
            option: name of the option, for messages.

        Raises:
            UserError: the text is no region.
        """
        try:
            north, west, south, east = map(float, text.split("/"))
        except ValueError:
            raise UserError(
                f"{option} is NORTH/WEST/SOUTH/EAST in degrees, such as 75/-15/30/42.5, not '{text}'"
            ) from None
        if not -90 <= south < north <= 90 or not all(map(math.isfinite, (west, east))):
            raise UserError(f"{option} {text}: north is above south, and both lie between -90 and 90")
        return cls(north, west, south, east)

    def __str__(self) -> str:
        return "/".join(f"{edge:g}" for edge in (self.north, self.west, self.south, self.east))

    def select_rows(self, latitudes: np.ndarray) -> np.ndarray:
        """Return the positions of the latitudes that lie in the region, in their order."""
        return np.flatnonzero((latitudes >= self.south - ROUNDING) & (latitudes <= self.north + ROUNDING))

    def select_columns(self, longitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Select the longitudes that lie in the region, from its western edge to the east.

        A meridian that is there twice, as the first and the last column of 0 to 360 degrees, is taken once.

        Returns:
            Their positions, and how many degrees east of the western edge they lie.
        """
        beyond_west = np.mod(longitudes - self.west + ROUNDING, 360) - ROUNDING
        extent = 360.0 if self.east - self.west >= 360 else np.mod(self.east - self.west, 360)
        columns = np.flatnonzero(beyond_west <= extent + ROUNDING)
        columns = columns[np.argsort(beyond_west[columns], kind="stable")]
        columns = columns[np.diff(beyond_west[columns], prepend=-np.inf) > ROUNDING]
        if len(columns) > 1 and beyond_west[columns[-1]] > beyond_west[columns[0]] + 360 - ROUNDING:
            columns = columns[:-1]
        return columns, beyond_west[columns]
