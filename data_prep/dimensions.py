"""Find out which dimension of a variable is time, sample, level, row and column.

Dimensions are recognised by the attributes of the CF conventions (https://cfconventions.org: `axis`, `standard_name`,
`units` of the coordinate variable), else by their names, unless the user says which is which.
"""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

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


TIME = Role("T", ("time",), "", ("time", "valid_time", "date", "t", "n_steps", "n_times"))
SAMPLE = Role(
    "",
    ("realization",),
    "",
    (
        *("sample", "trajectory", "number", "realization", "ensemble", "ensemble_member", "member", "batch"),
        *("samples", "trajectories", "n_samples", "n_trajectories"),
    ),
)
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

ROLES = {"time": TIME, "row": ROW, "column": COLUMN, "sample": SAMPLE, "level": LEVEL}
"""The roles whose dimension a user can name by an option."""


@dataclass(frozen=True)
class Dimensions:
    """Names of the dimensions of a variable.

    Attributes:
        time: dimension of the times. Where a variable has none, name of the coordinate with its one time.
        row: first dimension of the grid, such as latitude.
        column: second dimension of the grid, such as longitude.
        level: dimension of the levels, None where there is none.
        sample: dimension of independent samples, None where there is none.
        single: further dimensions, of length one, which are left out.
    """

    time: str
    row: str
    column: str
    level: str | None
    sample: str | None
    single: tuple[str, ...]


def find_dimensions(dataset: xr.Dataset, variable: str, given: dict[str, str | None], path: str) -> Dimensions:
    """Find out which dimension of a variable is which.

    Args:
        dataset: the open source.
        variable: name of the variable.
        given: names that the user gives for the roles of `ROLES`, None for those to be recognised. That of the levels
            is left out of account where the variable has no dimension of this name. That of the times may be the
            coordinate with its one time.
        path: name of the source, for messages.

    Raises:
        UserError: a dimension is not found, or one is left over that has more than one value.
    """
    names = [str(name) for name in dataset[variable].dims]
    if len(set(names)) < len(names):
        raise UserError(
            f"{variable} in '{path}' has two dimensions of the same name ({', '.join(names)}): rename one of them first"
        )
    if given.get("level") not in names:  # components are what some variables have, and others not
        given = given | {"level": None}
    single = [str(name) for name, coordinate in dataset[variable].coords.items() if not coordinate.dims]
    for role, name in given.items():
        if name is not None and name not in names and not (role == "time" and name in single):
            raise UserError(
                f"--{role}-dimension: {variable} in '{path}' has no dimension '{name}'; it has {', '.join(names)}"
            )
    named = [name for name in given.values() if name is not None]
    if len(set(named)) < len(named):
        raise UserError(f"one dimension has one role only, but the options name {', '.join(sorted(named))}")
    free = [name for name in names if name not in named]
    found = {role: given.get(role) or recognise(dataset, free, ROLES[role]) for role in ("time", "row", "column")}
    if found["time"] is None:
        found["time"] = recognise(dataset, single, TIME)
    time, row, column = found["time"], found["row"], found["column"]
    if time is None or row is None or column is None:
        missing = [role for role, name in found.items() if name is None]
        options = " and ".join(f"--{role}-dimension" for role in missing)
        raise UserError(
            f"cannot tell which dimension of {variable} in '{path}' is the {' and the '.join(missing)}: it has "
            f"{', '.join(f'{name} ({dataset.sizes[name]})' for name in names)}; say so by {options}"
        )
    others = [name for name in names if name not in (time, row, column, given.get("level"))]
    sizes = {name: dataset.sizes[name] for name in others}
    sample = given.get("sample") or recognise(dataset, [name for name in others if sizes[name] > 1], SAMPLE)
    others = [name for name in others if name != sample]
    level = given.get("level") or recognise(dataset, others, LEVEL)
    unknown = [name for name in others if sizes[name] != 1 and name != level]
    if unknown:
        raise UserError(
            f"{variable} in '{path}' has dimensions that are not understood: "
            f"{', '.join(f'{name} ({sizes[name]})' for name in unknown)}; say by --sample-dimension or "
            "--level-dimension what they are, or select from them first, for example with ncks or cdo"
        )
    return Dimensions(time, row, column, level, sample, tuple(name for name in others if name != level))


def recognise(dataset: xr.Dataset, names: list[str], role: Role) -> str | None:
    """Return the first name whose coordinate has the attributes of a role, else the first that is a name of it."""
    for name in names:
        if role.axis and attribute(dataset, name, "axis").upper() == role.axis:
            return name
        if attribute(dataset, name, "standard_name") in role.standard_names:
            return name
        if role.units and attribute(dataset, name, "units").lower().startswith(role.units):
            return name
    by_name = [name for name in names if name.lower() in role.names]
    return by_name[0] if by_name else None


def attribute(dataset: xr.Dataset, name: str, key: str) -> str:
    """Return an attribute of the coordinate of a dimension as text, empty where there is none."""
    return str(dataset.variables[name].attrs.get(key, "")).strip() if name in dataset.variables else ""
