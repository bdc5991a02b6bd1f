"""Gridded fields as a source of shards, and the plan of a store of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from data_prep.grid import Grid
from data_prep.gridded_field import GriddedField
from data_prep.inputs import NO_INPUTS, Inputs
from data_prep.logarithms import check_signs, formulas, stored_units, take_logarithms
from data_prep.masking import FieldMask
from data_prep.plan import Coordinate, Shard, SplitPlan, StorePlan, text_array
from data_prep.source_identity import SourceIdentity
from data_prep.time_axis import TimeAxis
from mcrnn.data.segments import WHOLE, within
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.store_format import BY_AREA, MIN_MAX
from mcrnn.errors import UserError

CHUNK_BYTES = 500_000
"""Size of a chunk, before compression, that plans come near to. A chunk is what is decompressed as a whole."""

SHARD_BYTES = 16_000_000
"""Size of a shard, before compression, that plans come near to. A shard is one object."""

READ_BYTES = 64_000_000
"""Values that are read at a time before they are made coarser."""

LARGEST_CHUNK_BYTES = 2**31 - 2**20
"""Blosc compresses no more at a time."""

Fill = float | Literal["mean"] | None
"""What replaces missing values: a number, the mean of the frame, or None to refuse them."""


@dataclass(frozen=True)
class FieldSource:
    """Reads shards of a gridded field, see `data_prep.builder.Source`.

    Attributes:
        field: the field.
        first: for each split the position of its first time (or sample) in the whole field.
        fill: what replaces missing values.
        mask: which points are missing at all times, None for none.
        inputs: the channels after those of the field.
    """

    field: GriddedField
    first: dict[str, int]
    fill: Fill
    mask: FieldMask | None = None
    inputs: Inputs = NO_INPUTS
    shards_at_once: ClassVar[int] = 1

    @property
    def sources(self) -> list[SourceIdentity]:
        """The sources of the field, each once; static fields have been read already."""
        return list({part.source.url: part.source for parts in self.field.parts.values() for part in parts}.values())

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Read the times or samples of the shards.

        Raises:
            UserError: a source cannot be read, or values are missing that `fill` does not replace.
        """
        field = self.field
        frames = 1 if field.samples is None else field.frames
        at_once = max(1, READ_BYTES // (4 * frames * len(field.channels) * math.prod(field.area.grid.shape)))
        result = []
        for shard in shards:
            first = self.first[shard.split] + shard.start
            beyond = first + shard.stop - shard.start
            pieces = [self._read(start, min(start + at_once, beyond)) for start in range(first, beyond, at_once)]
            axis = 1 if field.samples is None else 0
            result.append({"field": pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)})
        return result

    def _read(self, start: int, stop: int) -> np.ndarray:
        field_NTCHW = self._read_field(start, stop)
        if not self.inputs.kinds:
            return field_NTCHW
        axis = self.field.axis
        dates = axis.dates(start, stop) if self.inputs.forcings and isinstance(axis, TimeAxis) else []
        return self.inputs.append_to(field_NTCHW, dates)

    def _read_field(self, start: int, stop: int) -> np.ndarray:
        """Read the channels of the field, on the grid of the store and without missing values."""
        field_NTCHW = self.field.read(start, stop)
        if self.mask is not None:
            return self._masked(self.mask, field_NTCHW, start)
        if not (finite := np.isfinite(field_NTCHW)).all():
            field_NTCHW = self._filled(field_NTCHW, ~finite, start)
        check_signs(self.field, field_NTCHW, start)
        if self.field.remapping is not None:
            field_NTCHW = self.field.remapping.apply(field_NTCHW)
        return take_logarithms(self.field, field_NTCHW, 2)

    def _masked(self, mask: FieldMask, field_NTCHW: np.ndarray, start: int) -> np.ndarray:
        """Return values, the first of which are at position `start`, with a constant outside of the mask."""
        mask.check(self.field, field_NTCHW, start)
        check_signs(self.field, field_NTCHW, start)
        if self.field.remapping is not None:
            field_NTCHW = self.field.remapping.apply_within(mask.mask_CHW, field_NTCHW)
        field_NTCHW = take_logarithms(self.field, field_NTCHW, 2)
        return np.where(mask.on_grid_of(self.field), field_NTCHW, mask.outside[:, None, None])

    def _filled(self, field_NTCHW: np.ndarray, missing: np.ndarray, start: int) -> np.ndarray:
        """Return values, the first of which are at position `start` of the field, without missing ones."""
        if self.fill is None:
            sample, time, channel, row, column = (int(i[0]) for i in np.nonzero(missing))
            if self.field.samples is None:
                time += start
            else:
                sample += start
            raise UserError(
                f"there are missing values, the first of {missing.sum()} here: "
                f"{self.field.describe_position(sample, time, channel, row, column)}; say by --fill what to put "
                "there, or by --mask that points which are missing at all times are left out"
            )
        if self.fill == "mean":
            if missing.all((3, 4)).any():
                raise UserError("--fill mean cannot fill a frame that has no value at all")
            means = np.nanmean(np.where(missing, np.nan, field_NTCHW), (3, 4), keepdims=True, dtype=np.float64)
            return np.where(missing, means.astype(np.float32), field_NTCHW)
        return np.where(missing, np.float32(self.fill), field_NTCHW)


def plan_store(
    field: GriddedField,
    ranges: dict[str, tuple[int, int]],
    boundary: str,
    recipe: dict[str, Any],
    mask: FieldMask | None = None,
    inputs: Inputs = NO_INPUTS,
    min_max: Sequence[str] = (),
) -> StorePlan:
    """Plan the store of a field that is cut into splits.

    Args:
        field: the field.
        ranges: for each split its first time (or sample) and the one after its last, as positions in the whole field.
        boundary: how the field continues beyond the edges of its grid, see `mcrnn.data.store_format.BOUNDARIES`.
        recipe: what determines the values.
        mask: which points are missing at all times, None for none.
        inputs: the channels after those of the field.
        min_max: channels that networks see scaled by their minimum and maximum.

    Raises:
        UserError: one sample is too large.
    """
    grid = field.store_grid
    channels = [channel.name for channel in field.channels] + list(inputs.kinds)
    height, width = grid.shape
    is_series = field.samples is None
    bytes_of_one = 4 * len(channels) * height * width * (1 if is_series else field.frames)
    if bytes_of_one > LARGEST_CHUNK_BYTES:
        raise UserError(
            f"one {'frame' if is_series else 'sample'} has {bytes_of_one / 1e9:.1f} GB, and at most "
            f"{LARGEST_CHUNK_BYTES / 1e9:.1f} GB can be stored; take less by --variable, --area or --coarsen"
        )
    chunk = max(1, CHUNK_BYTES // bytes_of_one)
    shard = chunk * max(1, round(SHARD_BYTES / (chunk * bytes_of_one)))

    def coordinates(start: int, stop: int) -> dict[str, Coordinate]:
        samples = np.arange(1) if is_series else np.arange(start, stop)
        return {
            "sample": (("sample",), samples, {}),
            "time": (("time",), *_times(field, start, stop)),
            "channel": (("channel",), text_array(channels), {}),
            **_grid_coordinates(grid),
        }

    mask_CHW = None
    if mask is not None:
        everywhere = np.ones((len(inputs.kinds), height, width), bool)
        mask_CHW = np.concatenate([mask.on_grid_of(field), everywhere])
    logarithms = formulas(field)
    attributes: dict[str, Any] = {
        "variable": ", ".join(c.name for c in field.channels),
        "long_name": "; ".join([field.long_name, *(f"{name} is {text}" for name, text in logarithms.items())]),
        "units": ", ".join(dict.fromkeys(stored_units(field))),
        "channel_units": stored_units(field) + inputs.units,
        "boundary": boundary,
        "time_step": field.axis.step,
    }
    if isinstance(field.axis, TimeAxis):
        attributes["calendar"] = field.axis.calendar
        segments = {name: within(field.axis.segments, start, stop) for name, (start, stop) in ranges.items()}
        if any(of_split != WHOLE for of_split in segments.values()):
            attributes["segments"] = segments
    if inputs.kinds:
        attributes["inputs"] = inputs.kinds
    if logarithms:
        attributes["logarithms"] = logarithms
    if min_max:
        attributes["scaling"] = dict.fromkeys(min_max, MIN_MAX)
    if field.level_units:
        attributes["level_units"] = field.level_units
    if any(grid.units):
        attributes["grid_units"] = list(grid.units)
    if differences := [c.name for c in field.channels if c.variable in field.differences and c.name not in logarithms]:
        attributes["differences"] = differences
    if grid.latitude is not None:
        attributes |= {"latitude": grid.latitude, "coarsening": BY_AREA}
    return StorePlan(
        splits={
            name: SplitPlan(
                samples=1 if is_series else stop - start,
                frames=stop - start if is_series else field.frames,
                coordinates=coordinates(start, stop),
            )
            for name, (start, stop) in ranges.items()
        },
        channels=channels,
        height=height,
        width=width,
        layout="series" if is_series else "samples",
        chunk=chunk,
        shard=shard,
        attributes=attributes,
        recipe=recipe,
        mask=mask_CHW if mask_CHW is not None and not mask_CHW.all() else None,
    )


def _times(field: GriddedField, start: int, stop: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the times of a split and their attributes."""
    axis = field.axis
    if isinstance(axis, TimeAxis):
        attributes = {"units": TimeAxis.REFERENCE, "calendar": axis.calendar, "standard_name": "time"}
        return axis.seconds[start:stop], attributes
    return axis.values, {"long_name": "time", "units": axis.units}


def _grid_coordinates(grid: Grid) -> dict[str, Coordinate]:
    latitude = {"standard_name": "latitude", "units": "degrees_north"} if grid.row_is_latitude else {}
    longitude = {"standard_name": "longitude", "units": "degrees_east"} if grid.column_is_longitude else {}
    coordinates: dict[str, Coordinate] = {
        "height": (("height",), grid.rows, {"long_name": grid.names[0], **latitude}),
        "width": (("width",), grid.columns, {"long_name": grid.names[1], **longitude}),
    }
    if grid.row_is_latitude:
        # Among the coordinates, because these count for the digest of the store, as the values of coarse cells do.
        words = {"long_name": "area of the cells of a row over the mean of all rows"}
        coordinates["row_area"] = (("height",), latitude_weights(grid.rows), words)
    return coordinates
