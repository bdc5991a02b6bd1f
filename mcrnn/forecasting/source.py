"""Open what forecasts start from: a field store, another Zarr group or a NetCDF file, local or on S3."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.data.groups import describe_fields, names_of_unnamed, split_group, with_coordinates_above
from mcrnn.data.store import FieldStore
from mcrnn.data.store_format import FORMAT, SPLITS
from mcrnn.errors import UserError, did_you_mean, first_line
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.root import Storage
from mcrnn.storage.s3 import S3_SCHEME, S3Prefix

if TYPE_CHECKING:
    import xarray as xr

NETCDF_ENDINGS = (".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")
"""Endings of files; what has none of them, and is no file, is a Zarr group."""


def _no_group(path: str) -> None:
    """Open no group: there is none."""


@dataclass(frozen=True)
class Source:
    """A data set that is open for reading, with its values not loaded yet.

    Attributes:
        name: the name that the user has given, for messages.
        dataset: the data set, with dates as cftime objects.
        grid: names of the dimensions of the rows and the columns, None where they have to be recognised.
        masks: for variables without values at some points of the grid, the points that have them.
        open_group: opens the group of a path, empty for the root; None where there is none.
        groups: opens all groups, data sets by their paths, for messages that name them.
        group: path of the group that the data set is, empty for the root.
        differences: variables that are known to hold differences, such as anomalies of temperature, beside those whose
            attributes say so.
    """

    name: str
    dataset: xr.Dataset
    grid: tuple[str, str] | None = None
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    open_group: Callable[[str], xr.Dataset | None] = _no_group
    groups: Callable[[], dict[str, xr.Dataset]] = dict
    group: str = ""
    differences: frozenset[str] = frozenset()

    def find(self, path: str) -> xr.DataArray | None:
        """Return a variable; None where there is none.

        Args:
            path: its name, behind its group below that of the source as in `obs/t`.

        Returns:
            The variable with the coordinates that its dimensions have in the groups above. Dimensions without names, as
            in HDF5 files, are `dim_0` and so on, by their position.
        """
        below, name = split_group(path)
        dataset: xr.Dataset | None = self.dataset
        if below:
            dataset = self.find_group(f"{self.group}/{below}" if self.group else below)
        if dataset is None or name not in dataset.data_vars:
            return None
        return dataset[name].rename(names_of_unnamed(dataset[name]))

    def find_group(self, path: str) -> xr.Dataset | None:
        """Return a group with the coordinates of those above it; None where there is none."""
        dataset = self.open_group(path)
        return None if dataset is None else with_coordinates_above(dataset, path, self.open_group)


@contextlib.contextmanager
def opened(name: str, storage: Storage, split: str, group: str = "") -> Iterator[Source]:
    """Open a source within the context.

    Args:
        name: a NetCDF file, relative to the current folder; or a Zarr group, relative to the storage root or, where
            there is none, to the current folder; or a URL of either on S3.
        storage: the storage root.
        split: which split of a field store is meant.
        group: the group of a file, or of a Zarr group that is no field store, in which variables are looked up.

    Raises:
        UserError: there is no such source, or it cannot be read.
    """
    if _is_file(name):
        with _local_file(name) as path, open_netcdf(path, name, group) as source:
            yield source
        return
    places = [storage.location(name), *([] if S3_SCHEME in name else [LocalFolder(Path(name).expanduser().resolve())])]
    location = next((place for place in places if _is_zarr(place)), None)
    if location is None:
        raise UserError(f"there is no '{name}': neither a NetCDF file nor a Zarr group")
    with _open_zarr(location, name) as dataset:
        if dataset.attrs.get("format") != FORMAT:
            options = {"engine": "zarr", "consolidated": False}
            with _groups_of(name, "Zarr", location.zarr_store(), **options) as (open_group, groups):
                yield _in_group(Source(name, dataset, open_group=open_group, groups=groups), group)
            return
    if group:
        raise UserError(f"'{name}' is a field store, whose splits have no groups: leave out --group")
    with _open_store(location, name, split) as source:
        yield source


def _is_file(name: str) -> bool:
    return name.lower().endswith(NETCDF_ENDINGS) if name.startswith(S3_SCHEME) else Path(name).expanduser().is_file()


def _is_zarr(location: Location) -> bool:
    for key in ("zarr.json", ".zgroup"):
        with contextlib.suppress(FileNotFoundError):
            location.read(key)
            return True
    return False


@contextlib.contextmanager
def _local_file(name: str) -> Iterator[Path]:
    """Return the path of a file; one on S3 is copied for the time of the context."""
    if not name.startswith(S3_SCHEME):
        yield Path(name).expanduser()
        return
    folder, _, key = name.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="mcrnn-forecast-") as temporary:
        path = Path(temporary) / key
        try:
            path.write_bytes(S3Prefix.from_url(folder).read(key))
        except FileNotFoundError:
            raise UserError(f"there is no file '{name}'") from None
        yield path


@contextlib.contextmanager
def open_netcdf(path: Path, name: str, group: str = "") -> Iterator[Source]:
    """Open a NetCDF file within the context.

    Args:
        path: the file.
        name: its name in messages.
        group: the group in which variables are looked up, empty for the root.

    Raises:
        UserError: it cannot be read as NetCDF, or has no such group.
    """
    import xarray as xr

    with _translated(name, "NetCDF"):
        dataset = xr.open_dataset(path, engine="netcdf4", **_decoding())
    with dataset, _groups_of(name, "NetCDF", path, engine="netcdf4") as (open_group, groups):
        yield _in_group(Source(name, dataset, open_group=open_group, groups=groups), group)


@contextlib.contextmanager
def _groups_of(
    name: str, kind: str, target: Any, **options: Any
) -> Iterator[tuple[Callable[[str], xr.Dataset | None], Callable[[], dict[str, xr.Dataset]]]]:
    """Return what opens one group of a file or Zarr group, and all of them, once and only where they are asked for."""
    import xarray as xr

    with contextlib.ExitStack() as stack:

        @functools.cache
        def open_group(path: str) -> xr.Dataset | None:
            with _translated(name, kind), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Zarr, about what is no part of a group
                try:
                    return stack.enter_context(xr.open_dataset(target, group=path or None, **options, **_decoding()))
                except FileNotFoundError:  # Zarr
                    return None
                except OSError as error:
                    if "group not found" in str(error):  # netCDF4
                        return None
                    raise

        @functools.cache
        def groups() -> dict[str, xr.Dataset]:
            with _translated(name, kind), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Zarr, about what is no part of a group
                found = xr.open_groups(target, **options, **_decoding())
            return {path.strip("/"): stack.enter_context(dataset) for path, dataset in found.items()}

        yield open_group, groups


def _in_group(source: Source, group: str) -> Source:
    """Return a source whose variables are looked up in a group.

    Raises:
        UserError: there is no such group.
    """
    path = group.strip("/")
    if not path:
        return source
    dataset = source.find_group(path)
    if dataset is None:
        raise UserError(f"'{source.name}' has no group '{path}'{describe_fields(source.groups())}")
    return replace(source, dataset=dataset.assign_attrs(source.dataset.attrs | dataset.attrs), group=path)


@contextlib.contextmanager
def _open_zarr(location: Location, name: str, group: str | None = None) -> Iterator[xr.Dataset]:
    import xarray as xr

    with _translated(name, "Zarr"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")  # the manifest of a field store
        # without consolidated metadata, which a group need not have
        dataset = xr.open_zarr(
            location.zarr_store(), group=group, consolidated=False, chunks=None, zarr_format=None, **_decoding()
        )
    with dataset:
        yield dataset


def _decoding() -> dict[str, Any]:
    """Return how xarray is to read: every date as a cftime object of its calendar, and lead times as numbers."""
    import xarray as xr

    return {
        "decode_times": xr.coders.CFDatetimeCoder(use_cftime=True),
        "decode_timedelta": False,
        "decode_coords": "all",
    }


@contextlib.contextmanager
def _translated(name: str, kind: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{name}' cannot be read as {kind} ({getattr(error, 'strerror', None) or first_line(error)})"
        ) from None


@contextlib.contextmanager
def _open_store(location: Location, name: str, split: str) -> Iterator[Source]:
    """Open a split of a field store, with a variable for each channel."""
    store = FieldStore.open(location)
    if split not in SPLITS:
        raise UserError(f"--split is {', '.join(SPLITS)}, not '{split}'{did_you_mean(split, SPLITS)}")
    with _open_zarr(location, name, split) as dataset:
        values = dataset["field"].drop_vars("row_area", errors="ignore")
        values = values.isel(sample=0, drop=True) if store.is_series else values
        # The conventions of CF keep the names height and time for what has a unit of length or of time.
        names = {"height": "row", "width": "column", "time": "time" if "calendar" in store.attributes else "t"}
        for dimension in ("height", "width"):
            if "units" in values[dimension].attrs:  # a coordinate of the NetCDF files that the store was made of
                names[dimension] = str(values[dimension].attrs.pop("long_name", names[dimension]))
        for dimension, of_grid in zip(("height", "width"), store.attributes.get("grid_units", ()), strict=False):
            values[dimension].attrs.update({"units": of_grid} if of_grid else {})
        values = values.rename(names)
        if "sample" in values.coords:
            values["sample"].attrs["long_name"] = "sample"
        one_name = {"long_name": store.attributes["long_name"]} if "long_name" in store.attributes else {}
        units = store.units_of(store.channels)
        long_names = {channel: channel for channel in store.channels} | store.attributes.get("logarithms", {})
        variables = {
            channel: values.isel(channel=index, drop=True).assign_attrs(
                {"units": units[index], "long_name": long_names[channel]}
                | (one_name if len(store.channels) == 1 else {})
            )
            for index, channel in enumerate(store.channels)
        }
        grid = (names["height"], names["width"])
        mask_CHW = store.mask()
        masks = {} if mask_CHW is None else dict(zip(store.channels, mask_CHW, strict=True))
        differences = frozenset(store.attributes.get("differences", ()))
        dataset = dataset.drop_vars(dataset.data_vars).assign(variables)
        yield Source(name, dataset, grid, masks, differences=differences)
