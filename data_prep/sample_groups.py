"""HDF5 files with a group for each sample, as PDEBench has some: they are read as arrays with a dimension of samples.

In such a file the arrays are `0000/data` (time, x, y, component), `0001/data` and so on, and their coordinates
`0000/grid/t`, `0000/grid/x` and `0000/grid/y`. Files that name the dimensions of their arrays need no `grid`.
"""

from __future__ import annotations

import re
from typing import Any

import h5py
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.backends.common import AbstractDataStore
from xarray.core import indexing

from mcrnn.data.groups import EACH
from mcrnn.errors import UserError

SAMPLE = "sample"
"""The dimension along which the groups are."""

GRID, AXES = "grid", ("t", "x", "y", "z")
"""The group with the coordinates of an array without named dimensions, and their names in the order of these."""

OF_HDF5 = {"DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_nc3_strict"}
"""Attributes that say how a file is organised, and not what its values are."""

NO_COORDINATE = b"This is a netCDF dimension but not a netCDF variable"
"""The NAME of a dimension scale without values begins so, by which the NetCDF library names a dimension.

Source: https://docs.unidata.ucar.edu/nug/current/file_format_specifications.html#netcdf_4_spec
"""

Axis = tuple[str, h5py.Dataset | None]
"""Name of a dimension, and its coordinate where it has one."""


class NoSampleGroupsError(ValueError):
    """A file has no groups, or not what is wanted in the first of them."""


def open_sample_groups(path: str, group: str, name: str | None, **options: Any) -> xr.Dataset:
    """Open the arrays that each group of a file has, without reading values.

    Args:
        path: the file.
        group: `*`, or `*/` and a group within each group.
        name: the array that is wanted; None for all, whose dimensions without names are then those of each array alone.
        options: those of `xarray.open_dataset`.

    Returns:
        The arrays of the first group with `sample` as the first dimension, and its coordinates. Whether other groups
        have the same, `check_alike` finds out. Dimensions without names are `dim_0` and so on, by their position in the
        file.

    Raises:
        NoSampleGroupsError: there is no group, or the first one lacks the array.
    """
    from xarray.backends.store import StoreBackendEntrypoint

    store: Any = _DataStore(h5py.File(path), group.removeprefix(EACH).strip("/"), name)
    return xr.open_dataset(store, engine=StoreBackendEntrypoint, **options)


def check_alike(path: str, group: str, name: str, url: str) -> None:
    """Refuse a file whose groups differ in more than the values of an array.

    Args:
        path: the file.
        group: `*`, or `*/` and a group within each group.
        name: the array.
        url: the source, for messages.

    Raises:
        UserError: a group lacks the array, or has another shape, type, attribute or coordinate; the message names it.
    """
    inside = group.removeprefix(EACH).strip("/")
    with h5py.File(path) as file:
        first, *others = sample_groups(file)
        expected = _outline(file[first], inside, name)
        for other in others:
            found = _outline(file[other], inside, name)
            for what in (*expected, *found.keys() - expected.keys()):
                if not _is_same(found.get(what), expected.get(what)):
                    there, here = (_shown(outline.get(what)) for outline in (expected, found))
                    raise UserError(
                        f"the groups of '{url}' are no samples of one field: {what} is {here} in the group {other} and "
                        f"{there} in the group {first}"
                    )


def sample_groups(file: h5py.File) -> list[str]:
    """Return the names of the groups in the root of a file in natural order, in which 2 comes before 10."""
    names = [name for name, kind in _members(file) if kind is h5py.Group]
    return sorted(names, key=lambda name: [(len(part), part) if part.isdigit() else (0, part) for part in _parts(name)])


def _parts(name: str) -> list[str]:
    return [part.lstrip("0") or "0" if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _members(group: h5py.Group) -> list[tuple[str, type]]:
    """Return names and classes of what is in a group, without links to what is not there."""
    found = []
    for name in group:
        try:
            found.append((name, group.get(name, getclass=True)))
        except (KeyError, OSError, RuntimeError):  # one of them, by the version of HDF5
            continue
    return found


class _DataStore(AbstractDataStore):
    """The groups of a file as xarray's engines have a data set."""

    def __init__(self, file: h5py.File, inside: str, name: str | None) -> None:
        self.file = file
        self.groups = sample_groups(file)
        first = file[self.groups[0]] if self.groups else file
        holder = first.get(inside) if inside else first
        names = [n for n, kind in _members(holder) if kind is h5py.Dataset] if isinstance(holder, h5py.Group) else []
        self.inside = inside
        self.names = [each for each in names if len(holder[each].shape) >= 2 and name in (None, each)]
        if not self.groups or not self.names:
            raise NoSampleGroupsError
        self.holder, self.first, self.is_one = holder, first, name is not None

    def get_variables(self) -> dict[str, xr.Variable]:
        """Return the arrays, whose values are read when they are asked for, and their coordinates."""
        found: dict[str, xr.Variable] = {}
        for name in self.names:
            array = self.holder[name]
            axes = _axes(self.first, self.holder, array)
            prefix = "dim_" if self.is_one else f"{name}_dim_"
            dims = [f"{prefix}{position}" if axis is None else axis[0] for position, axis in enumerate(axes)]
            key = f"{self.inside}/{name}".lstrip("/")
            data: Any = indexing.LazilyIndexedArray(_GroupedArray(self.file, self.groups, key))
            found[name] = xr.Variable((SAMPLE, *dims), data, _attributes(array))
            for axis in axes:
                if axis is not None and axis[1] is not None:
                    found[axis[0]] = xr.Variable((axis[0],), axis[1][...], _attributes(axis[1]))
        return found

    def get_attrs(self) -> dict[str, Any]:
        """Return the attributes of the file, which are of no use here."""
        return {}


class _GroupedArray(BackendArray):
    """An array that each group has. The file is opened once, and chunks are not kept."""

    def __init__(self, file: h5py.File, groups: list[str], key: str) -> None:
        self.file, self.groups, self.key = file, groups, key
        first = file[groups[0]][key]
        self.shape, self.dtype = (len(groups), *first.shape), first.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        samples, *inside = key
        if not isinstance(samples, slice):
            return np.asarray(self.file[self.groups[samples]][self.key][tuple(inside)])
        return np.stack([self._read((int(i), *inside)) for i in np.arange(len(self.groups))[samples]])


def _axes(sample: h5py.Group, holder: h5py.Group, array: h5py.Dataset) -> list[Axis | None]:
    """Return name and coordinate of each dimension of an array, None where it has no name."""
    scales = [array.dims[axis][0] if len(array.dims[axis]) else None for axis in range(len(array.shape))]
    if any(scale is not None for scale in scales):
        return [None if scale is None else _axis_of(scale) for scale in scales]
    grid = holder.get(GRID) or sample.get(GRID)
    named = [(name, grid[name]) for name in AXES if name in grid] if isinstance(grid, h5py.Group) else []
    if [coordinate.shape for _, coordinate in named] != [(length,) for length in array.shape[: len(named)]]:
        return [None] * len(array.shape)
    return [*named, *[None] * (len(array.shape) - len(named))]


def _axis_of(scale: h5py.Dataset) -> Axis:
    label = scale.attrs.get("NAME", b"")
    label = label.encode() if isinstance(label, str) else bytes(label)
    return scale.name.rpartition("/")[2], None if label.startswith(NO_COORDINATE) else scale


def _attributes(dataset: h5py.Dataset) -> dict[str, Any]:
    found = {}
    for name, value in dataset.attrs.items():
        if name not in OF_HDF5:
            value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            found[name] = value[0] if isinstance(value, np.ndarray) and value.shape == (1,) else value
    return found


def _outline(sample: h5py.Group, inside: str, name: str) -> dict[str, Any]:
    """Return what must be the same for all samples, by what a message calls it."""
    holder = sample.get(inside) if inside else sample
    array = holder.get(name) if isinstance(holder, h5py.Group) else None
    if not isinstance(array, h5py.Dataset):
        return {name: "missing"}
    found: dict[str, Any] = {f"the shape of {name}": array.shape, f"the type of {name}": str(array.dtype)}
    for key, value in _attributes(array).items():
        found[f"{key} of {name}"] = value
    for position, axis in enumerate(_axes(sample, holder, array)):
        if axis is not None:
            coordinate, values = axis
            found[f"dimension {position} of {name}"] = coordinate
            if values is None:
                continue
            found[f"the coordinate {coordinate}"] = values[...]
            for key, value in _attributes(values).items():
                found[f"{key} of {coordinate}"] = value
    return found


def _is_same(a: Any, b: Any) -> bool:
    """Return whether two attributes or coordinates are equal, where a value that is not a number equals itself."""
    a, b = np.asarray(a), np.asarray(b)
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc")


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 4:
        return (
            f"{value.flat[0]:g} to {value.flat[-1]:g}, {value.size} values" if value.dtype.kind in "iuf" else "another"
        )
    return "not there" if value is None else str(value)
