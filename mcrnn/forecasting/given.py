"""The frames that forecasts start from, once it is sure that they are what a model takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.data.field_reader import coarsened
from mcrnn.data.masks import coarse_mask
from mcrnn.data.missing_values import without_invalid
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.time_step import Time, TimeStep, show
from mcrnn.errors import UserError, did_you_mean
from mcrnn.forecasting.source import Source
from mcrnn.models.trained_model import TrainedModel

if TYPE_CHECKING:
    import xarray as xr

CLOSE = 1e-4
"""Share of a grid spacing by which coordinates may differ that are to be the same."""


@dataclass(frozen=True)
class GivenFrames:
    """Frames with their labels, on the grid and in the units of a model. `fit` makes one.

    Attributes:
        name: where they come from, for messages.
        channels: the model's channels in order, each with the dimensions sample (if there are any), time, row and
            column in any order; not loaded.
        sample: name of the dimension of samples, None where there is one sequence of frames only.
        time: name of the dimension of times.
        grid: names of the dimensions of rows and of columns.
        times: the times of the frames.
        step: the interval of the model.
        coarsen: side of the blocks of grid points that are averaged.
        row_weights: weight of each row in these means, None if all have the same.
        attributes: attributes of the whole data set.
        mask: points of the grid of the frames at which the model takes values, None for all.
    """

    name: str
    channels: tuple[xr.DataArray, ...]
    sample: str | None
    time: str
    grid: tuple[str, str]
    times: list[Time]
    step: TimeStep
    coarsen: int
    row_weights: np.ndarray | None
    attributes: dict[str, Any]
    mask: np.ndarray | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return 1 if self.sample is None else self.channels[0].sizes[self.sample]

    @property
    def is_from_the_north(self) -> bool:
        """Whether the first row is the northernmost, so that pictures show it at the top."""
        rows = self.channels[0].coords.get(self.grid[0])
        if rows is None or not str(rows.attrs.get("units", "")).startswith("degrees_n"):
            return False
        return bool(rows[0] > rows[-1])

    def read(self, samples: Sequence[int], last_frames: Sequence[int], warm_up: int) -> np.ndarray:
        """Read windows of consecutive frames.

        Args:
            samples: the sample of each window.
            last_frames: the last frame of each window.
            warm_up: frames of a window.

        Returns:
            float32 (B, warm_up, C, H, W), on the model's grid, NaN outside of its mask.

        Raises:
            UserError: a value is missing.
        """
        frames_BT = np.asarray(last_frames)[:, None] + np.arange(1 - warm_up, 1)
        frames, position_BT = np.unique(frames_BT, return_inverse=True)
        rows, columns = self.grid
        order = (*([self.sample] if self.sample else []), self.time, rows, columns)
        consecutive = len(frames) == frames[-1] - frames[0] + 1
        selected = slice(int(frames[0]), int(frames[-1]) + 1) if consecutive else frames
        channels = []
        for channel in self.channels:
            piece = channel.isel({self.time: selected}).transpose(*order).variable
            values_NTHW = without_invalid(piece, np.asarray(piece.values), is_netcdf="source" in piece.encoding)
            values_NTHW = values_NTHW if self.sample else values_NTHW[None]
            channels.append(values_NTHW[np.asarray(samples)[:, None], position_BT.reshape(frames_BT.shape)])
        windows_BTCHW = np.stack(channels, axis=2)
        if self.mask is not None:
            windows_BTCHW = np.where(self.mask, windows_BTCHW, np.float32(0))
        if not np.isfinite(windows_BTCHW).all():
            b, t, c = (int(i[0]) for i in np.nonzero(~np.isfinite(windows_BTCHW))[:3])
            raise UserError(
                f"'{self.name}' has missing values in {self.channels[c].name} at {show(self.times[frames_BT[b, t]])}; "
                f"a model needs a value at each point of its {'grid' if self.mask is None else 'mask'}: fill them first"
            )
        given_BTCHW = coarsened(windows_BTCHW, self.coarsen, self.row_weights, self.mask)
        if self.mask is None:
            return given_BTCHW
        return np.where(coarse_mask(self.mask, self.coarsen), given_BTCHW, np.float32(np.nan))


def fit(source: Source, model: TrainedModel) -> GivenFrames:
    """Find the channels of a model in a source, and check grid, units and times.

    Raises:
        UserError: the source is not what the model takes; the message says what it takes.
    """
    origins = _origins(model.field.recipe)
    channels = tuple(_channel(source, name, origins.get(name)) for name in model.field.channels)
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
    channels = tuple(channel.isel(alone) for channel in channels)
    for channel in channels[1:]:
        if channel.sizes != channels[0].sizes:
            raise UserError(f"'{source.name}' has other dimensions for {channel.name} than for {first.name}")
    _check_units(source, channels, model)
    coarsen = _check_grid(source.name, channels[0], (rows, columns), model)
    times, step = _times(source.name, channels[0], time, model)
    mask_CHW = model.field.model_mask if coarsen == 1 else model.field.store_mask
    _check_mask(source, model, mask_CHW)
    return GivenFrames(
        source.name,
        channels,
        samples[0] if samples else None,
        time,
        (rows, columns),
        times,
        step,
        coarsen,
        _row_weights(source.name, channels[0], rows, model) if coarsen > 1 else None,
        dict(source.dataset.attrs),
        mask_CHW,
    )


def _origins(recipe: dict[str, Any]) -> dict[str, tuple[str, float | None]]:
    """Return of which variable, and at which level, the channels of a store are, as far as its recipe says so."""
    names, variables = recipe.get("channels", []), recipe.get("variables", [])
    if names:
        parts = [str(variable).partition("@") for variable in variables]
        return {n: (v, float(level) if at else None) for n, (v, at, level) in zip(names, parts, strict=True)}
    levels = recipe.get("levels") or []  # as earlier versions have written it
    return {str(v): (str(v), float(levels[0])) for v in variables} if len(levels) == 1 else {}


def _channel(source: Source, name: str, origin: tuple[str, float | None] | None) -> xr.DataArray:
    """Return a channel: the variable of its name, or a level of the variable that it was made of, as z500 of z."""
    variables = source.dataset.data_vars
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
    each = dict.fromkeys(str(channel.attrs.get("units", "1")) for channel in channels)  # a set that keeps its order
    units = ", ".join(each)
    if units != expected:
        raise UserError(
            f"'{source.name}' has the units {units}, the model takes {expected}: convert the values; if only the "
            "spelling differs, set the attribute units"
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
