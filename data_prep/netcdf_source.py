"""NetCDF fields as a source of shards, and the plan of a store of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from data_prep.netcdf_field import NetcdfField
from data_prep.plan import Coordinate, Shard, SplitPlan, StorePlan, text_array
from data_prep.time_axis import TimeAxis
from mcrnn.errors import UserError

CHUNK_BYTES = 500_000
"""Size of a chunk, before compression, that plans come near to. A chunk is what is decompressed as a whole."""

SHARD_BYTES = 16_000_000
"""Size of a shard, before compression, that plans come near to. A shard is one object."""

Fill = float | Literal["mean"] | None
"""What replaces missing values: a number, the mean of the frame, or None to refuse them."""


@dataclass(frozen=True)
class NetcdfSource:
    """Reads shards of a NetCDF field, see `data_prep.builder.Source`.

    Attributes:
        field: the field.
        first_times: for each split the position of its first time in the whole series.
        fill: what replaces missing values.
    """

    field: NetcdfField
    first_times: dict[str, int]
    fill: Fill
    shards_at_once: ClassVar[int] = 1

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Read the frames of the shards.

        Raises:
            UserError: a file cannot be read, or values are missing that `fill` does not replace.
        """
        result = []
        for shard in shards:
            first = self.first_times[shard.split] + shard.start
            frames_TCHW = self.field.read(first, first + shard.stop - shard.start)
            missing = ~np.isfinite(frames_TCHW)
            if missing.any():
                frames_TCHW = self._filled(frames_TCHW, missing, first)
            result.append({"field": frames_TCHW[None]})
        return result

    def _filled(self, frames_TCHW: np.ndarray, missing: np.ndarray, first: int) -> np.ndarray:
        """Return frames, the first of which is at position `first` of the series, without missing values."""
        if self.fill is None:
            time, channel, row, column = (int(i[0]) for i in np.nonzero(missing))
            raise UserError(
                f"there are missing values, the first of {missing.sum()} here: "
                f"{self.field.describe_position(first + time, channel, row, column)}; say by --fill what to put there"
            )
        if self.fill == "mean":
            if missing.all((2, 3)).any():
                raise UserError("--fill mean cannot fill a frame that has no value at all")
            means = np.nanmean(np.where(missing, np.nan, frames_TCHW), (2, 3), keepdims=True, dtype=np.float64)
            return np.where(missing, means.astype(np.float32), frames_TCHW)
        return np.where(missing, np.float32(self.fill), frames_TCHW)


def plan_store(
    field: NetcdfField, ranges: dict[str, tuple[int, int]], boundary: str, recipe: dict[str, Any]
) -> StorePlan:
    """Plan the store of a field that is cut into splits.

    Args:
        field: the field.
        ranges: for each split its first time and the time after its last, as positions in the whole series.
        boundary: how the field continues beyond the edges of its grid, see `mcrnn.data.store_format.BOUNDARIES`.
        recipe: what determines the values.
    """
    bytes_per_frame = 4 * len(field.channels) * len(field.rows) * len(field.columns)
    chunk = max(1, CHUNK_BYTES // bytes_per_frame)
    shard = chunk * max(1, round(SHARD_BYTES / (chunk * bytes_per_frame)))
    names = field.dimensions[field.channels[0].variable]
    latitude = {"standard_name": "latitude", "units": "degrees_north"} if field.row_is_latitude else {}
    longitude = {"standard_name": "longitude", "units": "degrees_east"} if field.column_is_longitude else {}

    def coordinates(start: int, stop: int) -> dict[str, Coordinate]:
        time = {"units": TimeAxis.REFERENCE, "calendar": field.axis.calendar, "standard_name": "time"}
        return {
            "sample": (("sample",), np.arange(1), {}),
            "time": (("time",), field.axis.seconds[start:stop], time),
            "channel": (("channel",), text_array([c.name for c in field.channels]), {}),
            "height": (("height",), field.rows, {"long_name": names.row, **latitude}),
            "width": (("width",), field.columns, {"long_name": names.column, **longitude}),
        }

    attributes: dict[str, Any] = {
        "variable": ", ".join(c.name for c in field.channels),
        "long_name": field.long_name,
        "units": ", ".join(dict.fromkeys(field.units.values())),
        "channel_units": [field.units[channel.variable] for channel in field.channels],
        "boundary": boundary,
        "time_step": field.axis.step,
        "calendar": field.axis.calendar,
    }
    if field.latitude is not None:
        attributes["latitude"] = field.latitude
    return StorePlan(
        splits={name: SplitPlan(1, stop - start, coordinates(start, stop)) for name, (start, stop) in ranges.items()},
        channels=[c.name for c in field.channels],
        height=len(field.rows),
        width=len(field.columns),
        layout="series",
        chunk=chunk,
        shard=shard,
        attributes=attributes,
        recipe=recipe,
    )
