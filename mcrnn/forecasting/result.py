"""Compute forecasts and label them by the conventions of CF, so that they open beside the data that they continue.

A forecast has the variables, dimensions and coordinates of its input. Where there is one start, its times follow those
of the input; several starts have a dimension of their own, and one of lead times in place of the times.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.data.logarithms import invert_logarithm
from mcrnn.data.memory import memory_budget
from mcrnn.data.time_step import hours_between
from mcrnn.errors import UserError
from mcrnn.forecasting.channels import GivenChannel
from mcrnn.forecasting.frames import GivenFrames
from mcrnn.models.trained_model import TrainedModel

if TYPE_CHECKING:
    import xarray as xr

BATCH_SIZE = 32
"""Forecasts that are computed at a time."""
CONVENTIONS = "CF-1.11"
START, LEAD = "forecast_reference_time", "forecast_period"
"""Names of the coordinates of starts and of lead times: CF's standard names for them."""
OF_PACKED_VALUES = ("valid_min", "valid_max", "valid_range", "actual_range", "coordinates")
"""Attributes of an input's variable that are not true of a forecast of it."""


def forecast(
    model: TrainedModel,
    given: GivenFrames,
    starts: Sequence[int],
    *,
    warm_up: int,
    steps: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Continue the frames from each start.

    Args:
        model: the model, on the device where it is to run.
        given: the frames.
        starts: the last given frame of each forecast.
        warm_up: number of frames that a forecast is given.
        steps: number of lead times.
        on_batch: called after each batch with its number of forecasts.

    Returns:
        float32 (N, S, L, C, H, W): sample, start, lead time, channel, row and column.

    Raises:
        UserError: a value is missing, or the forecasts need more memory than there is.
    """
    _, height, width = model.field.frame_shape
    if model.network.takes_any_grid:
        height, width = (given.channels[0].array.sizes[d] // given.coarsen for d in given.grid)
    check_memory(given.samples * len(starts), steps, model, (height, width))
    shape = (given.samples * len(starts), steps, model.network.channels_out, height, width)
    forecasts_BTCHW = np.empty(shape, np.float32)
    windows = [(sample, start) for sample in range(given.samples) for start in starts]
    for first in range(0, len(windows), BATCH_SIZE):
        batch = windows[first : first + BATCH_SIZE]
        samples, last_frames = zip(*batch, strict=True)
        frames_BTCHW = given.read(samples, last_frames, warm_up)
        inputs_BTIHW = given.inputs_ahead(frames_BTCHW, last_frames, steps)
        forecasts_BTCHW[first : first + len(batch)] = model.predict(frames_BTCHW, steps, inputs=inputs_BTIHW)
        on_batch(len(batch))
    return forecasts_BTCHW.reshape(given.samples, len(starts), *shape[1:])


def check_memory(count: int, steps: int, model: TrainedModel, grid: tuple[int, ...]) -> None:
    """Refuse forecasts that do not fit in memory.

    Args:
        count: number of forecasts.
        steps: number of lead times of each.
        model: the model.
        grid: rows and columns.

    Raises:
        UserError: they take more than `memory_budget`.
    """
    needed = 4.0 * count * steps * model.network.channels_out * math.prod(grid)
    if needed > memory_budget():
        raise UserError(
            f"{count:,} forecasts of {steps} steps need {needed / 1e9:.1f} GB of memory, more than half of what is "
            "free: give fewer starts or steps at a time, or set MCRNN_MEMORY"
        )


def label(
    forecasts: np.ndarray,
    model: TrainedModel,
    given: GivenFrames,
    starts: Sequence[int],
    *,
    warm_up: int,
    identity: dict[str, str],
    command: str,
) -> xr.Dataset:
    """Return forecasts as a data set, ready to be written.

    Args:
        forecasts: what `forecast` has returned.
        model: the model.
        given: the frames.
        starts: the last given frame of each forecast.
        warm_up: number of frames that a forecast was given.
        identity: which model it is, as attributes: `model`, and `model_version` and others where they are known.
        command: the command, for the attribute `history`.
    """
    import xarray as xr

    several = len(starts) > 1
    steps = forecasts.shape[2]
    rows, columns = given.grid
    samples = (given.sample,) if given.sample else ()
    times = (START, LEAD) if several else (given.time,)
    values = forecasts if given.sample else forecasts[0]
    values = values if several else values.squeeze(len(samples))
    variables: dict[str, list[xr.DataArray]] = {}
    for index, channel in enumerate(given.channels[: model.network.channels_out]):
        array = channel.array
        template = _coarsened(array.isel({given.time: 0}, drop=True), given)
        template = template.drop_vars([n for n, c in template.coords.items() if given.time in c.dims])
        order = (*samples, *times, rows, columns)
        forecast_of_channel = np.take(values, index, axis=-3)
        if channel.logarithm is not None:
            forecast_of_channel = invert_logarithm(forecast_of_channel, channel.logarithm.scale)
        variable = xr.DataArray(
            forecast_of_channel, template.coords, order, array.name, _attributes(channel, given.coarsen)
        )
        if "grid_mapping" in array.encoding:
            variable.encoding["grid_mapping"] = array.encoding["grid_mapping"]
        variables.setdefault(str(array.name), []).append(variable)
    data = xr.Dataset({name: _joined(levels) for name, levels in variables.items()})
    data = data.assign_coords(_time_coordinates(given, starts, steps, several))
    for name in data.variables:
        data[name].attrs.pop("bounds", None)  # the bounds of the input's times and cells are not carried over
        if name in data.coords:
            data[name].encoding = {"_FillValue": None} | {
                key: value for key, value in data[name].encoding.items() if key in ("units", "calendar", "dtype")
            }
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = "\n".join(
        [f"{now} {command}", *([str(given.attributes["history"])] if "history" in given.attributes else [])]
    )
    data.attrs = {
        "Conventions": CONVENTIONS,
        "title": f"Forecast of {', '.join(map(str, variables))} from {warm_up} given frames",
        "source": f"{model.architecture}, trained by mcrnn",
        **{key: given.attributes[key] for key in ("institution", "references", "license") if key in given.attributes},
        "history": history,
        **{f"mcrnn_{key}": value for key, value in identity.items()},
        "mcrnn_given_frames": warm_up,
        **({"mcrnn_conversions": given.conversions} if given.conversions else {}),
    }
    return data


def _attributes(channel: GivenChannel, coarsen: int) -> dict[str, Any]:
    """Return the attributes of a forecast of a channel: those of the input, with the units of the model.

    Other attributes that name units, as `GRIB_units` of cfgrib, are not true of converted values.
    """
    found = {k: v for k, v in channel.array.attrs.items() if k not in OF_PACKED_VALUES}
    if channel.conversion is not None:
        found = {k: v for k, v in found.items() if not k.lower().endswith("units")}
    if channel.units is not None and ("units" in channel.array.attrs or channel.units != "1"):
        found["units"] = channel.units
    if channel.logarithm is not None:
        mean = f" of its mean over blocks of {coarsen} x {coarsen} points" if coarsen > 1 else ""
        inverse = f"inverse{mean} of the forecast of {channel.logarithm.formula}, 0 where that is negative"
        found["comment"] = "; ".join([*([str(found["comment"])] if "comment" in found else []), inverse])
    return found


def _coarsened(frame: xr.DataArray, given: GivenFrames) -> xr.DataArray:
    """Return a frame on the model's grid, for its coordinates."""
    import xarray as xr

    if given.coarsen == 1:
        return frame
    with xr.set_options(keep_attrs=True):
        blocks: Any = frame.coarsen(dict.fromkeys(given.grid, given.coarsen))
        return blocks.mean()


def _joined(channels: list[xr.DataArray]) -> xr.DataArray:
    """Return a variable of one channel, or of several at different levels, which become a dimension."""
    import xarray as xr

    if len(channels) == 1:
        return channels[0]
    (level,) = [n for n, c in channels[0].coords.items() if c.ndim == 0 and c.item() != channels[1].coords[n].item()]
    joined = xr.concat(channels, dim=level, coords="minimal", compat="override", join="override")
    before = joined.dims.index(channels[0].dims[-2]) - 1
    order = [name for name in joined.dims if name != level]
    return joined.transpose(*order[:before], level, *order[before:])


def _time_coordinates(given: GivenFrames, starts: Sequence[int], steps: int, several: bool) -> dict[str, xr.DataArray]:
    """Return start, lead time and time of each forecast, in the units and the calendar of the input's times."""
    import xarray as xr

    references = [given.times[start] for start in starts]
    times = [[given.step.after(reference, lead) for lead in range(1, steps + 1)] for reference in references]
    dated = not isinstance(references[0], int | float)
    source = given.channels[0].array.coords.get(given.time)
    attributes = {} if source is None else {k: v for k, v in source.attrs.items() if k not in ("bounds", "axis")}
    attributes = {"long_name": "time"} | attributes
    if dated:
        attributes |= {"standard_name": "time", "units_metadata": "leap_seconds: none"}
    encoding: dict[str, Any] = {}
    if dated and source is not None:
        encoding = {key: source.encoding[key] for key in ("units", "calendar") if key in source.encoding}
        encoding["dtype"] = "float64"
    if dated:
        leads = [
            [hours_between(reference, time) for time in row] for reference, row in zip(references, times, strict=True)
        ]
        # with steps of months, forecasts from different starts have different lead times
        period = {"standard_name": "forecast_period", "units": "hours"}
        lead_values = leads[0] if all(row == leads[0] for row in leads) else list(range(1, steps + 1))
        if lead_values is not leads[0]:
            period = {"units": "1"}
    else:
        lead_values = [given.step.count * lead for lead in range(1, steps + 1)]
        period = {"units": str(attributes.get("units", "1"))}
    dtype: Any = object if dated else float

    def array(dimensions: tuple[str, ...], values: Any, **more: str) -> xr.DataArray:
        made = xr.DataArray(np.array(values, dtype=dtype), dims=dimensions, attrs={**attributes, **more})
        made.encoding = dict(encoding)
        return made

    start_attributes = {"long_name": "time of the last given frame"}
    if dated:
        start_attributes["standard_name"] = START
    dimension = LEAD if several else given.time
    lead = xr.DataArray(
        np.array(lead_values, float),
        dims=(dimension,),
        attrs={"long_name": "time since the last given frame", **period},
    )
    if several:
        return {
            START: array((START,), references, **start_attributes),
            LEAD: lead,
            given.time: array((START, LEAD), times),
        }
    return {
        given.time: array((given.time,), times[0], **({"axis": "T"} if dated else {})),
        START: array((), references[0], **start_attributes),
        LEAD: lead,
    }
