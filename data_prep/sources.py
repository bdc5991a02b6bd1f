"""The sources of a field: NetCDF, HDF5 and GRIB files, Zarr stores and OPeNDAP data sets. Find and open them."""

from __future__ import annotations

import functools
import glob
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import xarray as xr

from data_prep.local_copies import filesystem_of, local_copy, options_of
from data_prep.opendap import open_opendap, require_pydap
from data_prep.opendap_endpoints import describe_failure, find_endpoint
from mcrnn.data.groups import (
    EACH,
    describe_fields,
    have_same_fields,
    names_of_unnamed,
    split_group,
    with_coordinates_above,
)
from mcrnn.errors import UserError, did_you_mean, first_line
from mcrnn.storage.s3 import S3_SCHEME, S3Prefix, s3_request

FILE_SUFFIXES = (".nc", ".nc3", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5", ".hdf", ".grib", ".grib2", ".grb", ".grb2")
"""Ends of the URLs of files. Any other URL is that of a Zarr store, unless a server answers it by OPeNDAP."""

ZARR_METADATA = ("zarr.json", ".zmetadata", ".zgroup")
"""Objects of which a Zarr store has at least one."""

AS_STORED: dict[str, Any] = {"decode_times": False, "decode_timedelta": False, "cache": False}
"""Options of `xarray.open_dataset`: times stay numbers, and values are not kept."""

Result = TypeVar("Result")


class NoGroupError(UserError):
    """A source does not have a group."""


def find_sources(patterns: list[str]) -> list[str]:
    """Return the sources that some names and patterns match, sorted, each once; those of a disk by absolute paths.

    Raises:
        UserError: a pattern matches nothing, or a folder that is no Zarr store.
    """
    found: set[str] = set()
    for pattern in patterns:
        address, mark, _ = pattern.partition("?")
        if mark and find_endpoint(address) is not None:
            raise UserError(
                f"'{pattern}' selects a part of a data set: leave out what follows '?', and select by --variable, "
                "--area and --every"
            )
        if "://" in pattern:
            names = _glob_remote(pattern) if glob.has_magic(pattern) else [pattern.rstrip("/")]
        else:
            names = [os.path.abspath(name) for name in glob.glob(pattern, recursive=True)]
        if not names:
            raise UserError(f"no file matches '{pattern}'")
        found.update(names)
    for name in found:
        if os.path.isdir(name) and not is_zarr(name):
            raise UserError(f"'{name}' is a folder; name its files, as in '{name}/*.nc'")
    return sorted(found)


def _glob_remote(pattern: str) -> list[str]:
    files, path = filesystem_of(pattern)
    return request(pattern, lambda: [files.unstrip_protocol(name) for name in files.glob(path)])


def is_zarr(url: str) -> bool:
    """Return whether a source is a Zarr store, and not a file."""
    if "://" in url:
        return not url.lower().endswith(FILE_SUFFIXES)
    return os.path.isdir(url) and any(os.path.exists(os.path.join(url, name)) for name in ZARR_METADATA)


def request(url: str, read: Callable[[], Result]) -> Result:
    """Read from a source, and say in one line why that failed.

    Raises:
        UserError: it failed.
    """
    try:
        return s3_request(url, read) if url.startswith(S3_SCHEME) else read()
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(describe_failure(url, f"there is no '{url}'", error)) from None
    except Exception as error:  # each library of a format has errors of its own
        message = f"'{url}' cannot be read as {source_format(url)} ({first_line(error)})"
        raise UserError(describe_failure(url, message, error)) from None


def open_source(url: str, variable: str | None = None) -> xr.Dataset:
    """Open a source without reading values. Times stay numbers, scale factors and fill values are applied on reading.

    Args:
        url: path or URL.
        variable: the variable that is wanted, see `split_group`; None for all that are in no group. A GRIB file may
            hold variables that do not fit together.

    Returns:
        The data set of the variable's group, with the coordinates that its dimensions have in the groups above it; of
        the group `*` the variables of all groups, see `data_prep.sample_groups.open_sample_groups`.
        Dimensions of the variable that have no names, as in HDF5 files, are `dim_0` and so on, by their position.

    Raises:
        NoGroupError: there is no such group.
        UserError: it cannot be read.
    """
    group, name = split_group(variable or "")
    if source_format(url) == "GRIB" or _is_of_each_group(group):
        return _open(url, group, name or None, stamp_of(url))
    return _with_named_dimensions(open_group(url, group), name)


def open_group(url: str, group: str) -> xr.Dataset:
    """Open a group of a source, the root by an empty name; see `open_source`."""
    stamp = stamp_of(url)
    if _is_of_each_group(group):
        return _open(url, group, None, stamp)
    return with_coordinates_above(_open(url, group, None, stamp), group, lambda name: _open(url, name, None, stamp))


def _with_named_dimensions(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """Name dimensions of a variable that have no names by their position."""
    names = names_of_unnamed(dataset.variables[name]) if name in dataset.variables else {}
    return dataset[[name]].rename_dims(names) if names else dataset


def named_variables(name: str, variables: Sequence[str], option: str) -> list[str]:
    """Return the variables that an option means: the one of this path, else all of this name in whichever group.

    Args:
        name: the name in the option.
        variables: the variables of the field.
        option: the option with its value, as a message begins with it.

    Raises:
        UserError: the field has no such variable.
    """
    found = [name] if name in variables else [each for each in variables if split_group(each)[1] == name]
    if not found:
        raise UserError(f"{option}: the field has no variable '{name}'{did_you_mean(name, list(variables))}")
    return found


def _open(url: str, group: str, variable: str | None, stamp: object) -> xr.Dataset:
    if find_endpoint(url) is None:
        return _open_file_or_store(url, group, variable, stamp)
    if group:
        raise NoGroupError(f"'{url}' is read by OPeNDAP without groups: leave out --group")

    def open_it() -> xr.Dataset:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd attributes
            return open_opendap(url, **AS_STORED)

    return request(url, open_it)


@functools.lru_cache(maxsize=8)  # each NetCDF file that is open keeps up to 64 MB of chunks
def _open_file_or_store(url: str, group: str, variable: str | None, stamp: object) -> xr.Dataset:
    form = source_format(url)

    def open_it() -> xr.Dataset:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of stores without consolidated metadata, of odd attributes
            if form == "GRIB":
                path = local_copy(url) if "://" in url else url
                keys = {"filter_by_keys": {"cfVarName": variable}} if variable else {}
                # An index would be written beside the file, and messages of one time would lose that dimension.
                settings = {"indexpath": "", "squeeze": False, "errors": "raise", **keys}
                return xr.open_dataset(path, engine="cfgrib", backend_kwargs=settings, **AS_STORED)
            if _is_of_each_group(group):
                return _open_each_group(url, group, variable)
            target, engine = _target_and_engine(url)
            try:
                return xr.open_dataset(target, engine=engine, group=group or None, **AS_STORED)
            except Exception:  # each library of a format has errors of its own
                if not group or group in _groups(url):
                    raise
                raise NoGroupError(f"'{url}' has no group '{group}'{describe_groups(url)}") from None

    if form == "GRIB":
        _require_cfgrib(url)
        if group:
            raise UserError(f"'{url}' is a GRIB file, which has no groups: leave out --group")
    return request(url, open_it)


def _is_of_each_group(group: str) -> bool:
    return group.split("/")[0] == EACH


def _open_each_group(url: str, group: str, variable: str | None) -> xr.Dataset:
    from data_prep.sample_groups import NoSampleGroupsError, open_sample_groups

    path = _hdf5_of(url)
    try:
        return open_sample_groups(path, group, variable, **AS_STORED)
    except NoSampleGroupsError:
        wanted = variable or "arrays of two dimensions or more"
        raise NoGroupError(f"'{url}' has no groups with {wanted}{describe_groups(url)}") from None


def check_groups(url: str, variable: str) -> None:
    """Refuse a source whose groups are samples, and are not alike, see `data_prep.sample_groups.check_alike`.

    Args:
        url: path or URL.
        variable: name of the variable; those that are not of the group `*` need no check.

    Raises:
        UserError: a group differs from the first one.
    """
    group, name = split_group(variable)
    if _is_of_each_group(group):
        from data_prep.sample_groups import check_alike

        request(url, lambda: check_alike(_hdf5_of(url), group, name, url))


def _hdf5_of(url: str) -> str:
    """Return the path of an HDF5 file."""
    import h5py

    if (form := source_format(url)) != "NetCDF":
        raise UserError(f"'{url}' is read as {form}, and --group '{EACH}' is for HDF5 files")
    path = local_copy(url) if "://" in url else url
    if not h5py.is_hdf5(path):
        raise UserError(f"'{url}' is no HDF5 file, which alone has groups: leave out --group")
    return path


def _target_and_engine(url: str) -> tuple[Any, Any]:
    """Return what xarray opens a Zarr store or a NetCDF file by."""
    # By their classes: a name would have xarray import every engine that is installed.
    from xarray.backends import NetCDF4BackendEntrypoint, ZarrBackendEntrypoint

    if source_format(url) == "Zarr":
        return _zarr_store(url), ZarrBackendEntrypoint
    return (local_copy(url) if "://" in url else url), NetCDF4BackendEntrypoint


def _groups(url: str) -> dict[str, xr.Dataset]:
    target, engine = _target_and_engine(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = xr.open_groups(target, engine=engine, decode_times=False, decode_timedelta=False)
    return {path.strip("/"): dataset for path, dataset in found.items()}


def describe_groups(url: str) -> str:
    """Return the end of a sentence that names the groups of a source and their fields; empty where there are none."""
    if source_format(url) in ("GRIB", "OPeNDAP"):
        return ""
    groups = request(url, lambda: _groups(url))
    told = describe_fields(groups)
    may_be_samples = source_format(url) == "NetCDF" and have_same_fields(groups)
    return f"{told}, or take each as a sample by --group '{EACH}'" if may_be_samples else told


def require_library(url: str) -> None:
    """Refuse a source whose format, or whose address, needs a package that is not installed on this machine.

    Raises:
        UserError: a package is missing; the message names it.
    """
    form = source_format(url)
    if form == "OPeNDAP":
        require_pydap(url)
    elif "://" in url:
        filesystem_of(url)
    if form == "GRIB":
        _require_cfgrib(url)


def _require_cfgrib(url: str) -> None:
    try:
        import cfgrib  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"'{url}' is a GRIB file, which needs two more packages: pip install 'mcrnn[grib]' ({first_line(error)})"
        ) from None


def source_format(url: str) -> str:
    """Return the format of a source: OPeNDAP, Zarr, GRIB or NetCDF, as which HDF5 is read, too."""
    if find_endpoint(url) is not None:
        return "OPeNDAP"
    if is_zarr(url):
        return "Zarr"
    if "://" in url:
        return "GRIB" if ".gr" in os.path.splitext(url)[1].lower() else "NetCDF"
    try:
        with open(url, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"'{url}' cannot be read: {error.strerror or error}") from None
    if not start:
        raise UserError(f"'{url}' is empty")
    return "GRIB" if start == b"GRIB" else "NetCDF"


def has_netcdf_conventions(url: str) -> bool:
    """Return whether values that were never written are the fill value of their type, as in NetCDF files."""
    return source_format(url) in ("NetCDF", "OPeNDAP")


def _zarr_store(url: str) -> Any:
    if url.startswith(S3_SCHEME):
        return S3Prefix.from_url(url).zarr_store()
    if "://" not in url:
        return url
    from zarr.storage import FsspecStore

    filesystem_of(url)
    return FsspecStore.from_url(url, read_only=True, storage_options=options_of(url))


def stamp_of(url: str) -> tuple[int, int, int] | None:
    """Return size, time of the last change and inode of a local file; None for other sources."""
    if "://" in url or os.path.isdir(url):
        return None
    try:
        status = os.stat(url)
    except OSError as error:
        raise UserError(f"'{url}' cannot be read: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns, status.st_ino
