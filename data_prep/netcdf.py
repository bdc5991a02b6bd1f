"""Convert NetCDF files into a store.

    python -m data_prep.netcdf 'geopotential_500_5.625deg/*.nc' data/z500.zarr --variable z \\
           --train 1979:2014 --val 2015:2016 --test 2017:2018 --boundary cylinder
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mcrnn.cli import StorageOption, main
from mcrnn.data.store_format import BOUNDARIES
from mcrnn.errors import UserError
from mcrnn.storage.location import check
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    from data_prep.netcdf_files import NetcdfField
    from data_prep.plan import Coordinate, Shard, StorePlan

CHUNK_BYTES = 500_000
"""size before compression of what is read as one that is aimed at"""
SHARD_BYTES = 16_000_000
"""size before compression of an object that is aimed at"""


@dataclass(frozen=True)
class NetcdfSource:
    """The source of the store's numbers: see `data_prep.builder.Source`."""

    field: NetcdfField
    starts: dict[str, int]
    """split -> its first time in the whole series"""
    fill: float | str | None
    shards_at_once: int = 1

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Read the frames of the shards."""
        result = []
        for shard in shards:
            first = self.starts[shard.split] + shard.start
            frames_TCHW = self.field.read(first, first + shard.stop - shard.start)
            missing = ~np.isfinite(frames_TCHW)
            if missing.any():
                frames_TCHW = self._filled(frames_TCHW, missing, first)
            result.append({"field": frames_TCHW[None]})
        return result

    def _filled(self, frames_TCHW: np.ndarray, missing: np.ndarray, first: int) -> np.ndarray:
        if self.fill is None:
            time, channel, row, column = (int(i[0]) for i in np.nonzero(missing))
            raise UserError(
                f"there are missing values, the first of {missing.sum()} here: "
                f"{self.field.place(first + time, channel, row, column)}; say by --fill what to put there"
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
    """The store of a field cut into splits."""
    from data_prep.plan import SplitPlan, StorePlan, text_array
    from data_prep.time_axis import TimeAxis

    frame_bytes = 4 * len(field.channels) * len(field.rows) * len(field.columns)
    chunk = max(1, CHUNK_BYTES // frame_bytes)
    shard = chunk * max(1, round(SHARD_BYTES / (chunk * frame_bytes)))
    names = field.layouts[field.channels[0].variable]
    rows = {"standard_name": "latitude", "units": "degrees_north"} if field.row_is_latitude else {}
    columns = {"standard_name": "longitude", "units": "degrees_east"} if field.column_is_longitude else {}

    def coordinates(start: int, stop: int) -> dict[str, Coordinate]:
        time = {"units": TimeAxis.REFERENCE, "calendar": field.axis.calendar, "standard_name": "time"}
        return {
            "sample": (("sample",), np.arange(1), {}),
            "time": (("time",), field.axis.seconds[start:stop], time),
            "channel": (("channel",), text_array([c.name for c in field.channels]), {}),
            "height": (("height",), field.rows, {"long_name": names.row, **rows}),
            "width": (("width",), field.columns, {"long_name": names.column, **columns}),
        }

    attributes: dict[str, Any] = {
        "variable": ", ".join(c.name for c in field.channels),
        "long_name": field.long_name,
        "units": field.units,
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


def convert(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES...", help="NetCDF files or quoted patterns, such as 'z/*.nc'.")
    ],
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Name of the store: data/z500.zarr, or s3://bucket/z500.zarr.")
    ],
    train: Annotated[
        str, typer.Option(metavar="FROM:TO", help="Training split: years, months or days, both included.")
    ],
    val: Annotated[str, typer.Option(metavar="FROM:TO", help="Validation split, such as 2015:2016.")],
    test: Annotated[str, typer.Option(metavar="FROM:TO", help="Test split, such as 2017-01-01:2018-12-31.")],
    boundary: Annotated[
        str, typer.Option(help="periodic (both axes), cylinder (the width, such as longitude) or zeros (a region).")
    ],
    variable: Annotated[
        list[str] | None, typer.Option(help="Variable; give several times for several channels.")
    ] = None,
    level: Annotated[
        list[float] | None, typer.Option(help="Level of a variable that has several; each becomes a channel.")
    ] = None,
    fill: Annotated[
        str | None, typer.Option(metavar="VALUE", help="For missing values: a number, or 'mean' for the frame's mean.")
    ] = None,
    time_dimension: Annotated[str | None, typer.Option(help="Name of the time dimension, if not recognised.")] = None,
    row_dimension: Annotated[str | None, typer.Option(help="Name of the first grid dimension (latitude, y).")] = None,
    column_dimension: Annotated[
        str | None, typer.Option(help="Name of the second grid dimension (longitude, x).")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store of that name.")] = False,
    storage: StorageOption = None,
) -> None:
    """Convert NetCDF files into a store, split by date.

    The same command again continues an unfinished store and leaves a complete one alone.
    """
    if boundary not in BOUNDARIES:
        raise UserError(f"--boundary is one of {', '.join(BOUNDARIES)}, not '{boundary}'")
    fill_value = _parse_fill(fill)
    root = Storage.open(storage)
    location = root.location(store)
    check(location)

    from data_prep.builder import build
    from data_prep.netcdf_files import find_files, open_field
    from mcrnn.console import Bar

    paths = [os.path.abspath(path) for path in find_files(files)]
    dimensions = {"time": time_dimension, "row": row_dimension, "column": column_dimension}
    field = open_field(paths, variable or [], level or [], dimensions)
    ranges = {
        name: field.axis.part(text, f"--{name}") for name, text in (("train", train), ("val", val), ("test", test))
    }
    _refuse_overlap(ranges)
    recipe: dict[str, Any] = {
        "command": "data_prep.netcdf",
        "files": [[os.path.basename(path), os.path.getsize(path)] for path in paths],
        "variables": [c.variable for c in field.channels],
        "levels": list(level or []),
        "train": train,
        "val": val,
        "test": test,
        "boundary": boundary,
        "fill": fill_value,
    }
    plan = plan_store(field, ranges, boundary, recipe)
    source = NetcdfSource(field, {name: start for name, (start, _) in ranges.items()}, fill_value)
    with Bar("frames", sum(stop - start for start, stop in ranges.values()), "frames") as bar:
        fresh = build(
            location,
            plan,
            source,
            workers=workers or os.cpu_count() or 1,
            overwrite=overwrite,
            on_done=lambda count, now: bar.advance(count) if now else bar.skip(count),
        )
    counts = " + ".join(str(stop - start) for start, stop in ranges.values())
    print(
        f"{root.show(location)}: {', '.join(plan.channels)}, {counts} frames every {field.axis.step}, "
        f"{plan.height} x {plan.width}" + ("" if fresh else " (complete already, nothing to do)")
    )


def _parse_fill(text: str | None) -> float | str | None:
    if text is None or text == "mean":
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"--fill is a number or 'mean', not '{text}'")
    return value


def _refuse_overlap(ranges: dict[str, tuple[int, int]]) -> None:
    ordered = sorted(ranges.items(), key=lambda item: item[1])
    for (name, (_, stop)), (other, (start, _)) in itertools.pairwise(ordered):
        if start < stop:
            raise UserError(f"--{name} and --{other} overlap; splits must not share any day")


if __name__ == "__main__":
    main(convert)
