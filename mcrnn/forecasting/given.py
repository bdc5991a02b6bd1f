"""Find what forecasts start from in a source, and check that it is what a model takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.data.forcings import STATIC
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.time_step import Time, TimeStep
from mcrnn.errors import UserError, did_you_mean
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
    origins = _origins(model.field.recipe)
    names = [name for name in model.field.channels if model.field.inputs.get(name, STATIC) == STATIC]
    logarithms = model.field.logarithms
    channels = tuple(_channel(source, name, origins.get(name), logarithms.get(name)) for name in names)
    first = channels[0]
    time, rows, columns = _roles(source, first)
    others = [str(name) for name in first.dims if name not in (time, rows, columns)]
    alone = {name: 0 for name in others if first.sizes[name] == 1}
    samples = [name for name in others if name not in alone]
    if len(samples) > 1:
        raise UserError(
            f"{first.name} in '{source.name}' has the dimensions {', '.join(map(str, first.dims))}; beside time, rows "
            f"and columns, one of samples may be left: select from {' and '.join(samples)} first"
        )
    channels = tuple(channel.isel(alone, missing_dims="ignore") for channel in channels)
    for name, channel in zip(names[1:], channels[1:], strict=True):
        is_static = name in model.field.inputs and {rows, columns} <= set(channel.dims)
        sizes = {str(d): n for d, n in channels[0].sizes.items() if not is_static or d in channel.dims}
        if channel.sizes != sizes:
            raise UserError(f"'{source.name}' has other dimensions for {channel.name} than for {first.name}")
    _check_units(source, channels, model)
    coarsen = _check_grid(source.name, channels[0], (rows, columns), model)
    times, step = _times(source.name, channels[0], time, model)
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
        _row_weights(source.name, channels[0], rows, model) if coarsen > 1 else None,
        dict(source.dataset.attrs),
        _mask_of(names, model, mask_CHW),
        _place(source.name, channels[0], (rows, columns), coarsen, model),
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


def _origins(recipe: dict[str, Any]) -> dict[str, tuple[str, float | None]]:
    """Return of which variable, and at which level, the channels of a store are, as far as its recipe says so."""
    names, variables = recipe.get("channels", []), recipe.get("variables", [])
    if names:
        parts = [str(variable).partition("@") for variable in variables]
        return {n: (v, float(level) if at else None) for n, (v, at, level) in zip(names, parts, strict=True)}
    levels = recipe.get("levels") or []  # as earlier versions have written it
    return {str(v): (str(v), float(levels[0])) for v in variables} if len(levels) == 1 else {}


def _channel(source: Source, name: str, origin: tuple[str, float | None] | None, logarithm: str | None) -> xr.DataArray:
    """Return a channel: the variable of its name, or a level of the variable that it was made of, as z500 of z."""
    variables = source.dataset.data_vars
    if logarithm is not None and name not in variables:
        raise UserError(f"'{source.name}' has no variable '{name}', which the model takes: it is {logarithm}")
    if name in variables:
        found, level = variables[name], origin[1] if origin is not None else None
    elif origin is not None and origin[0] in variables:
        found, level = variables[origin[0]], origin[1]
    else:
        parts = {v: re.fullmatch(re.escape(str(v)) + r"([0-9.]+)", name) for v in variables}
        matches = [(variables[v], float(part.group(1))) for v, part in parts.items() if part is not None]
        if not matches:
            known = [str(v) for v, variable in variables.items() if variable.ndim >= 2]
            raise UserError(
                f"'{source.name}' has no variable '{name}', which the model takes{did_you_mean(name, known)}"
            )
        found, level = matches[0]
    import cf_xarray  # noqa: F401  (adds the accessor `cf`)

    vertical = [d for d in found.cf.guess_coord_axis().cf.axes.get("Z", []) if d in found.dims and d in found.coords]
    vertical = [] if source.grid else [d for d in vertical if d in found.dims[:-2]]
    if not vertical or (level is None and found.sizes[vertical[0]] == 1):
        return found
    values = found[vertical[0]].values.astype(float)
    listed = ", ".join(f"{value:g}" for value in values)
    if level is None:
        raise UserError(
            f"{found.name} in '{source.name}' has the levels {listed}, and the model takes only one: select it"
        )
    matching = np.flatnonzero(np.isclose(values, level))
    if len(matching) != 1:
        raise UserError(f"{found.name} in '{source.name}' has no level {level:g}, which the model takes, but {listed}")
    return found.isel({vertical[0]: int(matching[0])})


def _roles(source: Source, channel: xr.DataArray) -> tuple[str, str, str]:
    """Return the names of the dimensions of time, rows and columns."""
    import cf_xarray  # noqa: F401  (adds the accessor `cf`)

    dimensions = [str(name) for name in channel.dims]
    labelled = channel.cf.guess_coord_axis()

    def found(axis: str, coordinate: str) -> str | None:
        names = [*labelled.cf.axes.get(axis, []), *labelled.cf.coordinates.get(coordinate, [])]
        return next((str(name) for name in names if name in dimensions), None)

    time = "time" if "time" in dimensions else found("T", "time")
    if time is None or len(dimensions) < 3:
        raise UserError(
            f"{channel.name} in '{source.name}' has the dimensions {', '.join(dimensions) or 'none'}; forecasts need "
            "time, rows and columns"
        )
    rows, columns = source.grid or (found("Y", "latitude"), found("X", "longitude"))
    if rows is None or columns is None:
        rows, columns = [name for name in dimensions if name != time][-2:]
    return time, rows, columns


def _check_units(source: Source, channels: tuple[xr.DataArray, ...], model: TrainedModel) -> None:
    expected = model.field.units
    predicted = channels[: len(model.field.predicted)]
    names = [name for name, kind in model.field.inputs.items() if kind == STATIC]
    each = dict.fromkeys(str(channel.attrs.get("units", "1")) for channel in predicted)  # a set that keeps its order
    units = ", ".join(each)
    if units != expected:
        raise UserError(
            f"'{source.name}' has the units {units}, the model takes {expected}: convert the values; if only the "
            "spelling differs, set the attribute units"
        )
    units_of_inputs = dict(zip(model.field.inputs, model.field.input_units, strict=True))
    for channel, name in zip(channels[len(predicted) :], names, strict=True):
        if (found := str(channel.attrs.get("units", "1"))) != units_of_inputs[name]:
            raise UserError(
                f"{name} in '{source.name}' is in {found}, the model takes it in {units_of_inputs[name]}: convert it"
            )


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
            _is_same(channel, dimension, values, coarsen) for dimension, values in zip(grid, coordinates, strict=True)
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


def _is_same(channel: xr.DataArray, dimension: str, expected: tuple[float, ...], block: int) -> bool:
    """Return whether the coordinates along a dimension are the model's; where one of them is not known, True."""
    if not expected or dimension not in channel.coords:
        return True
    found = channel[dimension].values.astype(float).reshape(-1, block).mean(1)
    spacing = abs(expected[-1] - expected[0]) / max(len(expected) - 1, 1)
    return bool(np.allclose(found, expected, rtol=1e-6, atol=CLOSE * spacing))


def _times(name: str, channel: xr.DataArray, dimension: str, model: TrainedModel) -> tuple[list[Time], TimeStep]:
    """Return the times of the frames, and the interval of the model."""
    step = TimeStep.parse(model.field.time_step)
    count = channel.sizes[dimension]
    if not count:
        raise UserError(f"'{name}' has no frames")
    if dimension not in channel.coords:
        values: list[Any] = [i * step.count for i in range(count)]
    else:
        values = channel[dimension].values.tolist()
    dated = not isinstance(values[0], int | float)
    if dated and not model.field.store_digest and count > 1:  # the interval of a converted model is not known
        return values, TimeStep.parse(f"{(values[-1] - values[-2]).total_seconds():g} s")
    if dated != step.needs_dates:
        wanted = f"frames {step.words} apart" if step.needs_dates else f"times without dates, {step.words} apart"
        kind = "dates as times" if dated else "times without dates (their units are not such as hours since 1979-01-01)"
        raise UserError(f"'{name}' has {kind}; the model takes {wanted}")
    return values, step
