"""Variables in the groups of NetCDF, HDF5 and Zarr, and the dimensions of HDF5 that have no names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

EACH = "*"
"""Stands for each group of a file, in `--group '*'`."""

SHOWN_GROUPS = 5
"""Groups that a message names."""


def split_group(variable: str) -> tuple[str, str]:
    """Return group and name of a variable: `t0_fields/density` is one in a group, whose name is empty otherwise."""
    group, _, name = variable.rpartition("/")
    return group, name


def groups_above(group: str) -> list[str]:
    """Return a group, those that it is in, and the root, whose name is empty."""
    names = group.split("/") if group else []
    return ["/".join(names[:depth]) for depth in range(len(names), -1, -1)]


def with_coordinates_above(
    dataset: xr.Dataset, group: str, open_group: Callable[[str], xr.Dataset | None]
) -> xr.Dataset:
    """Return a group with the coordinates that its dimensions have in the groups above it.

    Args:
        dataset: the group.
        group: its path, empty for the root.
        open_group: opens the group of a path; None where there is none.
    """
    for parent in groups_above(group)[1:]:
        if all(name in dataset.variables for name in dataset.dims):
            break
        if (above := open_group(parent)) is None:
            continue
        found = {
            name: above.variables[name]
            for name, size in dataset.sizes.items()
            if name not in dataset.variables and name in above.coords and above.sizes.get(name) == size
        }
        dataset = dataset.assign_coords(found)
    return dataset


def names_of_unnamed(variable: xr.DataArray | xr.Variable) -> dict[str, str]:
    """Return names for those dimensions of a variable that have none, by their position: `dim_0` and so on.

    The names that NetCDF gives them, `phony_dim_0` and so on, depend on what else is in a file and on sizes that happen
    to be equal, and so change from file to file.
    """
    return {str(d): f"dim_{position}" for position, d in enumerate(variable.dims) if str(d).startswith("phony_dim_")}


def describe_fields(groups: Mapping[str, xr.Dataset]) -> str:
    """Return the end of a sentence that names some groups and their fields; empty where there are none.

    Args:
        groups: data sets by the path of their group, empty for the root.
    """
    found = _fields_of(groups)
    named = [f"{group} ({', '.join(names)})" for group, names in found.items() if group and names]
    more = f" and {len(named) - SHOWN_GROUPS} more" if len(named) > SHOWN_GROUPS else ""
    listed = ", ".join(named[:SHOWN_GROUPS])
    return f"; it has fields in the groups {listed}{more}: name one by --group" if named else ""


def have_same_fields(groups: Mapping[str, xr.Dataset]) -> bool:
    """Return whether there are several groups with fields, all in the root, and all with fields of the same names.

    Args:
        groups: data sets by the path of their group, empty for the root.
    """
    found = {group: tuple(names) for group, names in _fields_of(groups).items() if group and names}
    return len(found) > 1 and len(set(found.values())) == 1 and not any("/" in group for group in found)


def _fields_of(groups: Mapping[str, xr.Dataset]) -> dict[str, list[str]]:
    """Return the names of the variables of at least two dimensions, by the path of their group."""
    return {
        group: [str(name) for name, array in dataset.data_vars.items() if len(array.dims) >= 2]
        for group, dataset in groups.items()
    }
