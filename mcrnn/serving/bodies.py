"""The bodies of requests and answers: JSON, Arrow and NetCDF.

Each kind is read into given frames, and says how forecasts of them are written. What does not fit the model is refused
with the sentence that the command `mcrnn.forecast` prints.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from mcrnn.errors import UserError, first_line
from mcrnn.forecasting import result
from mcrnn.forecasting.given import fit
from mcrnn.forecasting.output import Output
from mcrnn.forecasting.source import open_netcdf
from mcrnn.forecasting.starts import find_starts
from mcrnn.serving.served_model import ServedModel

JSON, NETCDF, ARROW = "application/json", "application/x-netcdf", "application/vnd.apache.arrow.stream"
_netcdf_lock = threading.Lock()
"""The NetCDF library is not made for several threads."""


class Question(BaseModel):
    """What a request asks for, beside its frames."""

    model_config = ConfigDict(extra="forbid")

    steps: PositiveInt | None = Field(None, description="Frames to forecast; by default as in the model's validation.")
    warm_up: PositiveInt | None = Field(
        None, description="Given frames, for NetCDF only; by default as in the model's validation."
    )
    start: list[str] = Field(
        [],
        description="Times of the last given frames. In NetCDF also 'all' or 'every N'; by default the newest. In JSON "
        "and Arrow the date of each forecast, or one of all, for a model that takes solar angle or day of the year.",
    )
    group: str | None = Field(None, description="Group that the variables are in, for NetCDF only.")


class JsonRequest(BaseModel):
    """The body of a request in JSON."""

    model_config = ConfigDict(extra="forbid")

    frames: list[Any] = Field(
        description="Given frames in the field's units: nested lists (time, channel, height, width), or those of "
        "several forecasts (batch, time, channel, height, width)."
    )
    steps: PositiveInt | None = Field(None, description="Frames to forecast; by default as in the model's validation.")


class JsonAnswer(BaseModel):
    """The body of an answer in JSON."""

    forecast: list[Any] = Field(
        description="The forecasts, nested as the frames of the request; null where the field has no values."
    )
    units: str = Field(description="Units of the values.")
    channels: list[str] = Field(description="Names of the channels.")
    model: dict[str, str] = Field(description="Which model has computed them: name, version, digest.")


@dataclass(frozen=True)
class Reading:
    """A request that has been read.

    Attributes:
        frames_BTCHW: the given frames, float32, on the model's grid.
        steps: number of lead times.
        answer: returns the body of the answer for the forecasts (B, steps, C, H, W).
        inputs_BTIHW: the channels that are inputs only, at lead times 1 .. steps - 1; None where there is none.
    """

    frames_BTCHW: np.ndarray
    steps: int
    answer: Callable[[np.ndarray], bytes]
    inputs_BTIHW: np.ndarray | None = None


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        most_bytes: largest size of its body, and of its given frames and forecasts together.
        most_steps: largest number of lead times.
    """

    most_bytes: int
    most_steps: int

    def check(self, count: int, given: int, steps: int, served: ServedModel, grid: tuple[int, ...]) -> None:
        """Refuse what is too much, before memory is taken for it.

        Args:
            count: number of forecasts.
            given: number of given frames of each.
            steps: number of lead times of each.
            served: the model.
            grid: rows and columns.

        Raises:
            UserError: it is too much.
        """
        if steps > self.most_steps:
            raise UserError(
                f"{steps} steps are asked for, and at most {self.most_steps} are computed here (--max-steps)"
            )
        field = served.model.field
        of_step = served.model.network.channels_out + len(field.inputs)
        needed = 4 * count * (given * len(field.channels) + steps * of_step) * math.prod(grid)
        if needed > self.most_bytes:
            raise UserError(
                f"{count:,} forecasts of {steps} steps after {given} given frames have {needed / 1e6:.1f} MB, and at "
                f"most {self.most_bytes / 1e6:g} MB are computed at a time here (--max-mb): ask for fewer of them"
            )


def read(kind: str, body: bytes, question: dict[str, Any], served: ServedModel, limits: Limits) -> Reading:
    """Read a request.

    Args:
        kind: media type of the body.
        body: the body.
        question: the parameters of the query, as text.
        served: the model.
        limits: what it may ask for.

    Raises:
        UserError: the request is not what the model takes, or asks for too much.
    """
    asked = _validated(Question, question)
    if kind == NETCDF:
        return _read_netcdf(body, asked, served, limits)
    if asked.group is not None or asked.warm_up is not None or (asked.start and not served.model.field.forcings):
        raise UserError("group, warm_up and start go with NetCDF; in JSON and Arrow all frames are given")
    reading = (_read_json if kind == JSON else _read_arrow)(body, asked, served)
    count, given, _, *grid = reading.frames_BTCHW.shape
    limits.check(count, given, reading.steps, served, tuple(grid))
    if not served.model.field.inputs:
        return reading
    last_B1CHW = torch.tensor(reading.frames_BTCHW[:, -1:])  # a copy, because what Arrow has read cannot be written to
    try:
        inputs_BTIHW = served.model.inputs_ahead(last_B1CHW, reading.steps, asked.start or None)
    except ValueError as error:
        raise UserError(str(error)) from None
    return reading if inputs_BTIHW is None else replace(reading, inputs_BTIHW=inputs_BTIHW.numpy())


def _validated(model: type[Any], content: Any) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"])) or "the body"
        raise UserError(f"{where}: {detail['msg'][0].lower()}{detail['msg'][1:]}") from None


def _steps(asked: int | None, served: ServedModel) -> int:
    return asked or served.model.config.validation.horizon + 1


def _checked(frames: np.ndarray, served: ServedModel) -> np.ndarray:
    """Return frames as float32 (B, T, C, H, W).

    Raises:
        UserError: they are of another shape, or a value is not finite.
    """
    channels, height, width = served.model.field.frame_shape
    any_grid = served.model.network.takes_any_grid
    wanted = (channels,) if any_grid else (channels, height, width)
    if frames.ndim != 5 or 0 in frames.shape or frames.shape[2 : 2 + len(wanted)] != wanted:
        grid = "any height and width" if any_grid else f"{height} x {width}"
        raise UserError(
            f"the frames have the shape {tuple(frames.shape)}; the model takes (batch, time, channel, height, width) "
            f"with {channels} channel{'s' * (channels > 1)} and {grid}"
        )
    mask_CHW = served.model.field.model_mask
    if not (np.isfinite(frames) if mask_CHW is None else np.isfinite(frames) | ~mask_CHW).all():
        raise UserError(
            "the frames have missing values; a model needs a value at each point of its "
            f"{'grid' if mask_CHW is None else 'mask'}: fill them first"
        )
    return np.ascontiguousarray(frames, dtype=np.float32)


def _read_json(body: bytes, asked: Question, served: ServedModel) -> Reading:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not JSON ({first_line(error)})") from None
    request = _validated(JsonRequest, content)
    try:
        frames = np.array(request.frames, dtype=np.float32)
    except (ValueError, TypeError):
        raise UserError("frames: nested lists of numbers, all of one length at each level, are needed") from None
    is_batch = frames.ndim == 5
    frames_BTCHW = _checked(frames if is_batch else frames[None], served)

    def answer(forecasts_BTCHW: np.ndarray) -> bytes:
        values = forecasts_BTCHW if is_batch else forecasts_BTCHW[0]
        field = served.model.field
        channels = list(field.channels[: forecasts_BTCHW.shape[2]])
        if field.mask:
            missing, values = np.isnan(values), values.astype(object)
            values[missing] = None  # JSON has null, and no NaN
        content = {"forecast": values.tolist(), "units": field.units, "channels": channels, "model": served.identity}
        return json.dumps(content).encode()

    return Reading(frames_BTCHW, _steps(request.steps or asked.steps, served), answer)


def _read_arrow(body: bytes, asked: Question, served: ServedModel) -> Reading:
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(body).read_all()
        frames = table.column("frames").combine_chunks()
        if isinstance(frames, pa.ChunkedArray):
            frames = frames.chunk(0)
        array = frames.to_numpy_ndarray()
    except (pa.ArrowException, KeyError, ValueError, AttributeError, IndexError, TypeError, OSError) as error:
        raise UserError(
            "the body is no Arrow stream with a column 'frames' of fixed-shape tensors (time, channel, height, width): "
            f"{first_line(error)}"
        ) from None
    frames_BTCHW = _checked(array, served)

    def answer(forecasts_BTCHW: np.ndarray) -> bytes:
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(forecasts_BTCHW))
        table = pa.table({"forecast": column}).replace_schema_metadata(served.identity)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    return Reading(frames_BTCHW, _steps(asked.steps, served), answer)


def _read_netcdf(body: bytes, asked: Question, served: ServedModel, limits: Limits) -> Reading:
    model = served.model
    warm_up, steps = asked.warm_up or model.config.validation.warm_up, _steps(asked.steps, served)
    with _netcdf_lock, tempfile.TemporaryDirectory(prefix="mcrnn-serve-") as folder:
        path = Path(folder) / "request.nc"
        path.write_bytes(body)
        with open_netcdf(path, "the body", asked.group or "") as source:
            given = fit(source, model).loaded()
    starts = find_starts(given, asked.start, warm_up)
    windows = [(sample, start) for sample in range(given.samples) for start in starts]
    grid = tuple(given.channels[0].array.sizes[dimension] // given.coarsen for dimension in given.grid)
    limits.check(len(windows), warm_up, steps, served, grid)
    samples, last_frames = zip(*windows, strict=True)
    frames_BTCHW = given.read(samples, last_frames, warm_up)

    def answer(forecasts_BTCHW: np.ndarray) -> bytes:
        values = forecasts_BTCHW.reshape(given.samples, len(starts), *forecasts_BTCHW.shape[1:])
        labelled = result.label(
            values, model, given, starts, warm_up=warm_up, identity=served.identity, command="mcrnn.serve"
        )
        with _netcdf_lock, tempfile.TemporaryDirectory(prefix="mcrnn-serve-") as folder:
            path = Path(folder) / "forecast.nc"
            Output(str(path)).write(labelled)
            return path.read_bytes()

    return Reading(frames_BTCHW, steps, answer, given.inputs_ahead(frames_BTCHW, last_frames, steps))
