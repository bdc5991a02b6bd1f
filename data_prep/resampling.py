"""A part of a grid, and conservative remapping of a rectilinear grid to a coarser one.

The value of a coarse cell is the mean of the cells that it overlaps, weighted by the area of the overlap (first-order
conservative remapping: Jones 1999, https://doi.org/10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2). On a rectilinear
grid the area is a product of a width and, on the sphere, a difference of sines of latitudes, so that rows and columns
are averaged one after the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse

from data_prep.grid import Grid
from mcrnn.data.region import Region
from mcrnn.data.sphere import latitude_edges
from mcrnn.errors import UserError

LEAST_COVERAGE = 1e-6
"""Part of the area of a coarse cell that must be within a mask for the cell to be; less is rounding."""


@dataclass(frozen=True)
class Area:
    """A part of a grid.

    Attributes:
        rows: its rows.
        columns: its columns, in several pieces where it goes on at the other side of the grid.
        grid: the grid of the part.
    """

    rows: slice
    columns: tuple[slice, ...]
    grid: Grid

    @classmethod
    def all_of(cls, grid: Grid) -> Area:
        """Return the whole of a grid."""
        height, width = grid.shape
        return cls(slice(0, height), (slice(0, width),), grid)

    @classmethod
    def select(cls, grid: Grid, text: str) -> Area:
        """Select a part of a grid of latitudes and longitudes.

        Args:
            grid: the whole grid.
            text: `N/W/S/E` in degrees, all included. East may be smaller than west, or west negative.

        Raises:
            UserError: the text is no area, or no grid point lies in it.
        """
        region = Region.parse(text, "--area")
        if not (grid.row_is_latitude and grid.column_is_longitude):
            raise UserError("--area needs a grid of latitudes and longitudes")
        rows = region.select_rows(grid.rows)
        columns, beyond_west = region.select_columns(grid.columns)
        if not len(rows) or not len(columns):
            raise UserError(f"--area {text} holds no grid point")
        pieces = np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1)
        turns = np.round((region.west + beyond_west - grid.columns[columns]) / 360)
        part = replace(grid, rows=grid.rows[rows], columns=grid.columns[columns] + 360 * turns)
        return cls(
            slice(int(rows[0]), int(rows[-1]) + 1), tuple(slice(int(p[0]), int(p[-1]) + 1) for p in pieces), part
        )


@dataclass(frozen=True)
class Remapping:
    """A conservative remapping to a coarser grid.

    Attributes:
        grid: the coarser grid.
        rows: weights of the rows (coarse, fine), each row of the matrix with sum 1.
        columns: the same of the columns.
    """

    grid: Grid
    rows: scipy.sparse.csr_array
    columns: scipy.sparse.csr_array

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """Remap frames (..., height, width), in float64, and return them as float32.

        Products of sparse matrices add in a fixed order in one thread, so that the result is the same everywhere.
        """
        return self._means(frames, np.empty((*frames.shape[:-2], *self.grid.shape), np.float32))

    def coverage(self, mask_CHW: np.ndarray) -> np.ndarray:
        """Return which part of the area of each coarse cell is within a mask, float64 (channel, height, width)."""
        parts_CHW = self._means(mask_CHW, np.empty((len(mask_CHW), *self.grid.shape)))
        return np.where(parts_CHW > LEAST_COVERAGE, parts_CHW, 0.0)

    def apply_within(self, mask_CHW: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Remap frames (..., channel, height, width) by the area that coarse and fine cells share within a mask.

        A coarse cell that is outside of the mask gets 0.
        """
        shape = (*frames.shape[:-2], *self.grid.shape)
        means = self._means(np.where(mask_CHW, frames, np.float32(0)), np.empty(shape))
        coverage_CHW = self.coverage(mask_CHW)
        return np.divide(means, coverage_CHW, out=np.zeros(shape), where=coverage_CHW > 0).astype(np.float32)

    def _means(self, frames: np.ndarray, out: np.ndarray) -> np.ndarray:
        for frame, result in zip(frames.reshape(-1, *frames.shape[-2:]), out.reshape(-1, *out.shape[-2:]), strict=True):
            result[...] = (self.columns @ (self.rows @ frame.astype(np.float64)).T).T
        return out


def coarsen(grid: Grid, block: int) -> Remapping:
    """Average blocks of `block` x `block` cells, weighted by area where rows are latitudes.

    On a grid that includes both poles, every `block`-th row, from pole to pole, is the middle of a coarse cell.

    Raises:
        UserError: the blocks do not divide the grid.
    """
    height, width = grid.shape
    has_poles = grid.row_is_latitude and np.allclose(np.abs(grid.rows[[0, -1]]), 90)
    if width % block or not (height % block == 0 or (has_poles and height % block == 1)):
        poles = ", or a height of one more where it includes both poles" if grid.row_is_latitude else ""
        raise UserError(f"--coarsen {block} does not divide the grid, {height} x {width}{poles}")
    columns = _even(grid).reshape(-1, block).mean(1)
    edges = _row_edges(grid)
    if height % block:
        rows = grid.rows[::block]
        return _remap(grid, rows, np.sin(latitude_edges(rows)), columns, np.arange(0.0, width + 1, block))
    rows = grid.rows.reshape(-1, block).mean(1)
    return _remap(grid, rows, edges[::block], columns, np.arange(0.0, width + 1, block))


def regrid(grid: Grid, text: str) -> Remapping:
    """Remap to a grid of so many equal rows and columns.

    On a globe, the first longitude stays. Elsewhere the coarse cells divide the area that the fine ones cover.

    Args:
        grid: the grid of the source.
        text: height and width, such as 32x64.

    Raises:
        UserError: the text is no such size, or finer than the grid.
    """
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text.strip().lower())
    if match is None:
        raise UserError(f"--regrid is HEIGHTxWIDTH, such as 32x64, not '{text}'")
    height, width = int(match[1]), int(match[2])
    if height > grid.shape[0] or width > grid.shape[1]:
        raise UserError(f"--regrid {text} is finer than the grid, {grid.shape[0]} x {grid.shape[1]}")
    if grid.row_is_latitude and grid.shape[0] > 1:
        outer = np.rad2deg(latitude_edges(grid.rows))
        degrees = np.linspace(outer[0], outer[-1], height + 1)
        rows, row_edges = (degrees[1:] + degrees[:-1]) / 2, np.sin(np.deg2rad(degrees))
    else:
        row_edges = np.linspace(0, grid.shape[0], height + 1)
        rows = _at(grid.rows, row_edges)
    column_edges = np.linspace(0, grid.shape[1], width + 1)
    if grid.is_around_the_globe:
        column_edges = column_edges - grid.shape[1] / width / 2 + 0.5  # centred on the first longitude
    return _remap(grid, rows, row_edges, _at(_even(grid), column_edges), column_edges)


def _even(grid: Grid) -> np.ndarray:
    """Return the coordinates of the columns without the step where a circle ends.

    Raises:
        UserError: columns, or rows that are no latitudes, are not equally far apart, so that cells have no known area.
    """
    columns = np.unwrap(grid.columns, period=360) if grid.column_is_longitude else grid.columns
    for name, values in zip(grid.names, (grid.rows, columns), strict=True):
        steps = np.diff(values)
        is_even = len(steps) < 2 or np.allclose(steps, steps.mean(), rtol=1e-3)
        if not is_even and not (values is grid.rows and grid.row_is_latitude):
            raise UserError(f"{name} is not given at equal distances, so that cells cannot be averaged by area")
    return columns


def _at(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the coordinate in the middle of cells whose edges are counted in cells of a grid."""
    if len(values) == 1:
        return np.repeat(values, len(edges) - 1)
    middles = (edges[1:] + edges[:-1]) / 2 - 0.5
    steps = np.diff(values)
    low = np.clip(np.floor(middles).astype(int), 0, len(steps) - 1)
    return values[low] + (middles - low) * steps[low]


def _row_edges(grid: Grid) -> np.ndarray:
    """Return the edges of rows such that their differences are proportional to area."""
    if grid.row_is_latitude and len(grid.rows) > 1:
        return np.sin(latitude_edges(grid.rows))
    return np.arange(len(grid.rows) + 1.0)


def _remap(
    grid: Grid, rows: np.ndarray, row_edges: np.ndarray, columns: np.ndarray, column_edges: np.ndarray
) -> Remapping:
    """Return the remapping to coarse cells. Columns have one width, and their edges are counted in columns."""
    width = grid.shape[1]
    turns = (-width, 0, width) if grid.is_around_the_globe else (0,)
    along_columns = np.sum([_overlaps(np.arange(width + 1.0) + turn, column_edges) for turn in turns], axis=0)
    along_rows = _overlaps(_row_edges(grid), row_edges)
    return Remapping(
        replace(grid, rows=rows, columns=columns),
        *(scipy.sparse.csr_array(weights / weights.sum(1, keepdims=True)) for weights in (along_rows, along_columns)),
    )


def _overlaps(fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Return which part of each coarse cell each fine cell covers, (coarse, fine), from their edges."""
    if fine[0] > fine[-1]:
        fine, coarse = -fine, -coarse
    low = np.maximum(coarse[:-1, None], fine[None, :-1])
    high = np.minimum(coarse[1:, None], fine[None, 1:])
    overlaps = np.maximum(high - low, 0.0) / np.diff(coarse)[:, None]
    overlaps[overlaps < 1e-12] = 0.0
    return overlaps
