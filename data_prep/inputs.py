"""The inputs of a store: channels that models are given and do not predict, static ones and forcings known ahead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cftime
import numpy as np

from data_prep.dimensions import COLUMN, ROW, TIME, Dimensions, recognise
from data_prep.file_content import has_variable, variables_of
from data_prep.grid import Grid
from data_prep.gridded_field import GriddedField
from data_prep.source_identity import SourceIdentity, identify
from data_prep.sources import find_sources, has_netcdf_conventions, open_source, request, source_format
from data_prep.time_axis import TimeAxis
from mcrnn.data.forcings import CHANNELS, SOLAR_ANGLE, STATIC, forcing_values
from mcrnn.data.groups import groups_above, split_group
from mcrnn.data.missing_values import without_invalid
from mcrnn.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from data_prep.field_source import Fill


@dataclass(frozen=True)
class StaticField:
    """A field that does not change in time.

    Attributes:
        name: name of its variable, and of its channel.
        units: its units, "1" where there are none.
        source: where it was read.
        values_HW: its values on the grid of the store, float32.
    """

    name: str
    units: str
    source: SourceIdentity
    values_HW: np.ndarray


@dataclass(frozen=True)
class Inputs:
    """The channels of a store after the predicted ones: static fields, then forcings.

    Attributes:
        static: the static fields.
        forcings: names of the forcings, see `mcrnn.data.forcings.CHANNELS`.
        place: latitude of each row and longitude of each column of the store's grid, where there is the solar angle.
    """

    static: tuple[StaticField, ...] = ()
    forcings: tuple[str, ...] = ()
    place: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """Each channel by name: "static", or the forcing that it belongs to."""
        of_forcings = {channel: name for name in self.forcings for channel in CHANNELS[name]}
        return {field.name: STATIC for field in self.static} | of_forcings

    @property
    def units(self) -> list[str]:
        """Units of each channel."""
        return [field.units for field in self.static] + ["1"] * (len(self.kinds) - len(self.static))

    def recipe(self) -> dict[str, Any]:
        """Return what determines the values, which a build that goes on must find again; nothing without inputs."""
        static = [
            [field.name, field.source.url.rstrip("/").rsplit("/", 1)[-1], field.source.size, field.source.checksum]
            for field in self.static
        ]
        found = {"static": static, "forcings": list(self.forcings)}
        return {name: value for name, value in found.items() if value}

    def append_to(self, field_NTCHW: np.ndarray, dates: Sequence[cftime.datetime]) -> np.ndarray:
        """Return frames with the inputs as further channels.

        Args:
            field_NTCHW: the predicted channels on the grid of the store.
            dates: date of each frame; of use where there are forcings.
        """
        samples, times, _, *grid = field_NTCHW.shape
        channels = [field.values_HW for field in self.static]
        if self.forcings:
            found = forcing_values(self.forcings, dates, self.place)
            channels += [found[name] for name, kind in self.kinds.items() if kind != STATIC]
        spread = [np.broadcast_to(values, (samples, times, *grid))[:, :, None] for values in channels]
        return np.concatenate([field_NTCHW, *spread], axis=2)


NO_INPUTS = Inputs()


def read_inputs(
    static: Sequence[str], forcings: Sequence[str], field: GriddedField, sources: list[str], fill: Fill
) -> Inputs:
    """Read the static fields that a field has as inputs, and check that its forcings can be computed.

    Args:
        static: `VARIABLE` of the field's own sources, `FILE` with one variable, or `FILE:VARIABLE`.
        forcings: names of forcings.
        field: the field, with the selection of area and grid.
        sources: its sources.
        fill: what replaces missing values of static fields.

    Raises:
        UserError: there is no such variable or forcing, a static field is on another grid, has times or does not vary,
            a channel is there twice, or a forcing needs dates or a globe.
    """
    for name in forcings:
        if name not in CHANNELS:
            raise UserError(f"--forcing is {' or '.join(CHANNELS)}, not '{name}'{did_you_mean(name, list(CHANNELS))}")
    if forcings and not isinstance(field.axis, TimeAxis):
        raise UserError("--forcing needs a series whose times are dates; those of samples are not")
    grid = field.store_grid
    if SOLAR_ANGLE in forcings and not (grid.row_is_latitude and grid.column_is_longitude):
        raise UserError(f"--forcing {SOLAR_ANGLE} needs a grid of latitudes and longitudes")
    found = tuple(_read_static(*_located(text, sources), field, fill) for text in static)
    inputs = Inputs(found, tuple(dict.fromkeys(forcings)))
    if SOLAR_ANGLE in forcings:
        inputs = replace(inputs, place=(grid.rows, grid.columns))
    names = [channel.name for channel in field.channels] + [each.name for each in found]
    names += [name for name in inputs.kinds if inputs.kinds[name] != STATIC]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the channel {twice} is asked for twice")
    return inputs


def _located(text: str, sources: list[str]) -> tuple[str, str]:
    """Return source and variable that an option `--static` names."""
    own = next((url for url in sources if _has_variable(url, text)), None)
    if own is not None:
        return own, text
    file, colon, variable = text.rpartition(":")
    if not colon or "/" in variable or os.path.exists(text):
        file, variable = text, ""
    if "://" not in file and not os.path.exists(file):
        known = sorted({name for url in sources for name in variables_of(url)})
        raise UserError(
            f"--static {text}: the sources have no variable of this name, and there is no such file"
            f"{did_you_mean(text, known)}"
        )
    (url,) = find_sources([file])
    if not variable:
        dataset = open_source(url)
        names = [str(name) for name, array in dataset.data_vars.items() if len(array.dims) >= 2]
        if len(names) != 1:
            raise UserError(f"'{url}' has {len(names)} fields ({', '.join(names) or 'none'}): write {file}:VARIABLE")
        variable = names[0]
    if not has_variable(url, variable):
        raise UserError(f"'{url}' has no variable '{variable}'{did_you_mean(variable, variables_of(url))}")
    return url, variable


def _has_variable(url: str, name: str) -> bool:
    try:
        return has_variable(url, name)
    except UserError:
        if source_format(url) != "GRIB":  # of which only the messages of a name are read, and there may be none
            raise
        return False


def _read_static(url: str, variable: str, field: GriddedField, fill: Fill) -> StaticField:
    """Read a variable without times on the grid of a field, and put it onto the grid of the store."""
    dataset = open_source(url, variable)
    group, name = split_group(variable)
    array = dataset[name]
    if array.dtype.kind not in "iufb":
        raise UserError(f"{variable} in '{url}' is no field of numbers (its type is {array.dtype})")
    names = [str(name) for name in array.dims]
    of_field = next(iter(field.parts.values()))[0].dimensions
    row = of_field.row if of_field.row in names else recognise(dataset, names, ROW)
    column = of_field.column if of_field.column in names else recognise(dataset, names, COLUMN)
    if row is None or column is None:
        raise UserError(
            f"cannot tell which dimensions of {variable} in '{url}' are rows and columns: it has {', '.join(names)}"
        )
    others = [name for name in names if name not in (row, column)]
    several = next((name for name in others if dataset.sizes[name] > 1), None)
    if several is not None:
        is_time = recognise(dataset, [several], TIME) is not None
        what = "times" if is_time else f"values along {several}"
        raise UserError(
            f"--static {variable}: it has {dataset.sizes[several]} {what} in '{url}'; a static field has one: select "
            "it first, or take the variable as a channel by --variable"
        )
    own_grid = Grid.read(dataset, Dimensions("", row, column, None, None, tuple(others)), url)
    whole, part = field.whole_grid, field.area
    if not replace(own_grid, names=whole.names).is_same(whole):
        raise UserError(f"--static {variable}: '{url}' has another grid than the field")

    def read() -> np.ndarray:
        pieces = []
        for columns in part.columns:
            piece = array.variable.isel(dict.fromkeys(others, 0) | {row: part.rows, column: columns})
            piece = piece.transpose(row, column)
            is_netcdf = has_netcdf_conventions(url)
            pieces.append(without_invalid(piece, np.asarray(piece.values), is_netcdf=is_netcdf))
        return np.concatenate(pieces, axis=-1)

    values_HW = _filled(request(url, read), variable, url, fill)
    values_HW = field.remapping.apply(values_HW[None])[0] if field.remapping is not None else values_HW
    if values_HW.min() == values_HW.max():
        raise UserError(
            f"--static {variable}: it is {values_HW.min():g} at all points of the grid, which tells a model nothing: "
            "leave it out"
        )
    coordinates = [str(coordinate) for coordinate in array.coords]
    read_arrays = ["/".join(filter(None, (g, n))) for n in (name, *names, *coordinates) for g in groups_above(group)]
    units = str(array.attrs.get("units", "1")).strip() or "1"
    return StaticField(name, units, identify(url, read_arrays), values_HW)


def _filled(values_HW: np.ndarray, variable: str, url: str, fill: Fill) -> np.ndarray:
    """Return values without missing ones."""
    missing = ~np.isfinite(values_HW)
    if not missing.any():
        return values_HW
    if fill is None or missing.all():
        raise UserError(
            f"--static {variable}: {missing.sum()} values are missing in '{url}'; say by --fill what to put there"
        )
    value = values_HW[~missing].mean(dtype=np.float64) if fill == "mean" else fill
    return np.where(missing, np.float32(value), values_HW)
