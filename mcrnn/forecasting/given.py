"""Find what forecasts start from in a source, and check that it is what a model takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.data.sphere import latitude_weights
from mcrnn.data.time_step import Time, TimeStep
from mcrnn.data.units import find_conversion
from mcrnn.errors import UserError
from mcrnn.forecasting.channels import find_channels, units_of
from mcrnn.forecasting.frames import GivenFrames
from mcrnn.forecasting.source import Source
from mcrnn.models.trained_model import TrainedModel

if TYPE_CHECKING:
    import xarray as xr

CLOSE = 1e-4
"""Share of a grid spacing by which coordinates may differ that are to be the same."""


def fit(source: Source, model: TrainedModel) -> GivenFrames:
    """Find the channels of a model in a source, and check grid, units and times.

    Raises:
        UserError: the source is not what the model takes; the message says what it takes.
    """
    found = find_channels(source, model.field)
    first = found[0].array
    time, rows, columns = _roles(source, first, model.field.recipe.get("roles") or {})
    others = [str(name) for name in first.dims if name not in (time, rows, columns)]
    alone = {name: 0 for name in others if first.sizes[name] == 1}
    samples = [name for name in others if name not in alone]
    if len(samples) > 1:
        raise UserError(
            f"{first.name} in '{source.name}' has the dimensions {', '.join(map(str, first.dims))}; beside time, rows "
            f"and columns, one of samples may be left: select from {' and '.join(samples)} first"
        )
    channels = tuple(replace(c, array=c.array.isel(alone, missing_dims="ignore")) for c in found)
    first = channels[0].array
    for channel in channels[1:]:
        is_static = channel.name in model.field.inputs and {rows, columns} <= set(channel.array.dims)
        sizes = {str(d): n for d, n in first.sizes.items() if not is_static or d in channel.array.dims}
        if channel.array.sizes != sizes:
            raise UserError(f"'{source.name}' has other dimensions for {channel.array.name} than for {first.name}")
        if differing := [str(d) for d in sizes if not _have_same(first, channel.array, str(d))]:
            raise UserError(
                f"'{source.name}' has another coordinate {differing[0]} for {channel.array.name} than for {first.name}"
            )
    coarsen = _check_grid(source.name, first, (rows, columns), model)
    block = model.config.data.coarsen
    if coarsen != block and (plain := next((c for c in channels if c.logarithm is not None), None)) is not None:
        raise UserError(
            f"'{source.name}' has {plain.array.name} on the model's grid, at whose points the model takes means of its "
            f"logarithm over blocks of {block}: give it on the finer grid, or these means as {plain.name}"
        )
    times, step = _times(source.name, first, time, model)
    mask_CHW = model.field.model_mask if coarsen == 1 else model.field.store_mask
    _check_mask(source, model, mask_CHW)
    return GivenFrames(
        source.name,
        model.field,
        channels,
        samples[0] if samples else None,
        time,
        (rows, columns),
        times,
        step,
        coarsen,
        _row_weights(source.name, first, rows, model) if coarsen > 1 else None,
        dict(source.dataset.attrs),
        _mask_of([channel.name for channel in channels], model, mask_CHW),
        _place(source.name, first, (rows, columns), coarsen, model),
    )


def _place(
    name: str, channel: xr.DataArray, grid: tuple[str, str], coarsen: int, model: TrainedModel
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return latitudes and longitudes where the model's solar angle is not that of the grid of its training."""
    height, width = (channel.sizes[dimension] // coarsen for dimension in grid)
    if not model.field.latitude or not model.network.takes_any_grid:
        return None
    if any(dimension not in channel.coords for dimension in grid):
        if (height, width) == model.field.frame_shape[1:]:
            return None
        raise UserError(f"'{name}' has no latitudes and longitudes, from which the model's solar angle follows")
    rows, columns = (channel[d].values.astype(np.float64).reshape(-1, coarsen).mean(1) for d in grid)
    same = [
        here.shape == (len(there),) and np.allclose(here, there, atol=CLOSE)
        for here, there in ((rows, model.field.rows), (columns, model.field.columns))
    ]
    return None if all(same) else (rows, columns)


def _have_same(first: xr.DataArray, other: xr.DataArray, dimension: str) -> bool:
    """Return whether two variables, which may be in different groups, have the same coordinate along a dimension."""
    here, there = first.coords.get(dimension), other.coords.get(dimension)
    if here is None or there is None:
        return here is there
    if here.attrs.get("units") != there.attrs.get("units"):
        return False
    if here.dtype.kind in "iuf" and there.dtype.kind in "iuf":
        return bool(np.allclose(here, there, rtol=1e-6, atol=1e-6))
    return here.variable.equals(there.variable)


def _roles(source: Source, channel: xr.DataArray, of_before: Mapping[str, str | None]) -> tuple[str, str, str]:
    """Return the names of the dimensions of time, rows and columns.

    Args:
        source: the source.
        channel: the variable.
        of_before: the names that they had in the sources of the model's data, which tell them where they are the same.
    """
    import cf_xarray  # noqa: F401  (adds the accessor `cf`)

    dimensions = [str(name) for name in channel.dims]
    labelled = channel.cf.guess_coord_axis()

    def found(axis: str, coordinate: str) -> str | None:
        names = [*labelled.cf.axes.get(axis, []), *labelled.cf.coordinates.get(coordinate, [])]
        return next((str(name) for name in names if name in dimensions), None)

    before = {} if source.grid is not None else _dimensions_of_roles(dimensions, of_before)
    time = before.get("time") or ("time" if "time" in dimensions else found("T", "time"))
    if time is None or len(dimensions) < 3:
        raise UserError(
            f"{channel.name} in '{source.name}' has the dimensions {', '.join(dimensions) or 'none'}; forecasts need "
            "time, rows and columns"
        )
    if before.get("row") and before.get("column"):
        return time, str(before["row"]), str(before["column"])
    rows, columns = source.grid or (found("Y", "latitude"), found("X", "longitude"))
    if rows is None or columns is None:
        rows, columns = [name for name in dimensions if name != time][-2:]
    return time, rows, columns


def _dimensions_of_roles(dimensions: list[str], of_before: Mapping[str, str | None]) -> dict[str, str]:
    """Return the dimensions of a variable by the roles that they had in the sources of the model's data.

    Dimensions without names are known by their position only, as `dim_1` is. Where one of them is missing, such as that
    of samples in the file of a single one, the positions of the others are not those of before, and tell nothing.
    """
    # the level of a variable has been selected before
    roles = {role: name for role, name in of_before.items() if name is not None and role != "level"}
    by_position = {name for name in roles.values() if re.fullmatch(r"dim_[0-9]+", name)}
    if not by_position <= set(dimensions):
        roles = {role: name for role, name in roles.items() if name not in by_position}
    return {role: name for role, name in roles.items() if name in dimensions}


def _check_grid(name: str, channel: xr.DataArray, grid: tuple[str, str], model: TrainedModel) -> int:
    """Return the side of the blocks to average, so that the grid is that of the model.

    Raises:
        UserError: the grid is another one.
    """
    height, width = (channel.sizes[dimension] for dimension in grid)
    _, *expected = model.field.frame_shape
    block = model.config.data.coarsen
    if model.network.takes_any_grid:
        if height % block or width % block:
            raise UserError(
                f"'{name}' has a grid of {height} x {width}, which the model's blocks of {block} do not divide"
            )
        return block
    fits = {(expected[0] * b, expected[1] * b): b for b in (1, block)}
    coordinates = (model.field.rows, model.field.columns)
    if (height, width) in fits:
        coarsen = fits[height, width]
        if all(
            _is_same(channel, dimension, values, coarsen, units)
            for dimension, values, units in zip(grid, coordinates, model.field.grid_units or ("", ""), strict=True)
        ):
            return coarsen
    sizes = " or ".join(f"{h} x {w}" for h, w in dict.fromkeys([(expected[0] * block, expected[1] * block), *fits]))
    known = zip(("rows", "columns"), coordinates, strict=True)
    wanted = "".join(f", {axis} from {values[0]:g} to {values[-1]:g}" for axis, values in known if values)
    found = "".join(
        f", {d} from {float(channel[d][0]):g} to {float(channel[d][-1]):g}" for d in grid if d in channel.coords
    )
    raise UserError(
        f"'{name}' has a grid of {height} x {width}{found}; the model takes {sizes}{wanted}"
        f"{f' (means over blocks of {block})' if block > 1 and wanted else ''}: put the field onto that grid"
    )


def _mask_of(names: list[str], model: TrainedModel, mask_CHW: np.ndarray | None) -> np.ndarray | None:
    """Return the part of a mask of all channels of a model that is of some of them."""
    return None if mask_CHW is None else mask_CHW[[model.field.channels.index(name) for name in names]]


def _check_mask(source: Source, model: TrainedModel, mask_CHW: np.ndarray | None) -> None:
    """Refuse a field store that has no values at points where the model takes them."""
    for index, channel in enumerate(model.field.channels):
        masked = ~source.masks.get(channel, np.ones((), bool))
        missing = masked if mask_CHW is None else masked & mask_CHW[index]
        if missing.any():
            raise UserError(
                f"'{source.name}' has no values of {channel} at {missing.sum()} points where the model takes them: "
                "it is of another mask"
            )


def _row_weights(name: str, channel: xr.DataArray, rows: str, model: TrainedModel) -> np.ndarray | None:
    """Return the weights of rows in the means over blocks, as the model was trained on them."""
    if not model.field.coarsened_by_area:
        return None
    if rows not in channel.coords:
        raise UserError(f"'{name}' has no latitudes along {rows}, by which the model's means over blocks are weighted")
    return latitude_weights(channel[rows].values)


def _is_same(channel: xr.DataArray, dimension: str, expected: tuple[float, ...], block: int, units: str) -> bool:
    """Return whether the coordinates along a dimension are the model's; where one of them is not known, True.

    Args:
        channel: the variable.
        dimension: the dimension.
        expected: the coordinates of the model.
        block: side of the blocks of points that are averaged.
        units: units of the coordinates of the model, empty where they are not known.
    """
    if not expected or dimension not in channel.coords:
        return True
    found = channel[dimension].values.astype(float).reshape(-1, block).mean(1)
    stated = units_of(channel[dimension])
    if stated and units:
        try:
            conversion = find_conversion(stated, units)
        except ValueError:
            return False
        found = found if conversion is None else conversion.apply(found)
    spacing = abs(expected[-1] - expected[0]) / max(len(expected) - 1, 1)
    return bool(np.allclose(found, expected, rtol=1e-6, atol=CLOSE * spacing))


def _times(name: str, channel: xr.DataArray, dimension: str, model: TrainedModel) -> tuple[list[Time], TimeStep]:
    """Return the times of the frames, and the interval of the model in the units of these times."""
    coordinate = channel.coords.get(dimension)
    if model.field.recipe.get("calendar", "") is None and (coordinate is None or coordinate.dtype.kind in "iuf"):
        step = _step_in_units(name, model.field.time_step, coordinate)
    else:
        step = TimeStep.parse(model.field.time_step)
    count = channel.sizes[dimension]
    if not count:
        raise UserError(f"'{name}' has no frames")
    values: list[Any] = [i * step.count for i in range(count)] if coordinate is None else coordinate.values.tolist()
    dated = not isinstance(values[0], int | float)
    if dated and not model.field.store_digest and count > 1:  # the interval of a converted model is not known
        return values, TimeStep.parse(f"{(values[-1] - values[-2]).total_seconds():g} s")
    if dated != step.needs_dates:
        wanted = f"frames {step.words} apart" if step.needs_dates else f"times without dates, {step.words} apart"
        kind = "dates as times" if dated else "times without dates (their units are not such as hours since 1979-01-01)"
        raise UserError(f"'{name}' has {kind}; the model takes {wanted}")
    return values, step


def _step_in_units(name: str, text: str, times: xr.DataArray | None) -> TimeStep:
    """Return the interval between times of samples, which are numbers, in the units of a source.

    Args:
        name: name of the source, for messages.
        text: the interval of the model, such as `0.5 s` or `1`.
        times: the times of the source, None where it has none.

    Raises:
        UserError: there are no times, or the units of both do not convert into each other.
    """
    number, _, own = text.partition(" ")
    count, units = float(number), "" if times is None else units_of(times)
    if own and times is None:
        raise UserError(f"'{name}' has no times, and the model takes frames {text} apart: write the times first")
    if own and units:
        try:
            conversion = find_conversion(own, units)
        except ValueError as error:
            raise UserError(
                f"'{name}' has times in {units}, the model takes frames {text} apart, and {error}"
            ) from None
        count = count if conversion is None else float(conversion.apply(np.array(count)))
    return TimeStep(f"{count:g} {units or own}".strip(), count, "")
