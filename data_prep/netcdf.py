"""Convert NetCDF files into a store.

    python -m data_prep.netcdf 'geopotential_500_5.625deg/*.nc' data/z500.zarr --variable z \\
           --train 1979:2014 --val 2015:2016 --test 2017:2018 --boundary cylinder
"""

from __future__ import annotations

import itertools
import math
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.data.store_format import BOUNDARIES
from mcrnn.errors import UserError
from mcrnn.storage.location import check
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    from data_prep.netcdf_source import Fill


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
        list[str] | None, typer.Option(help="Name of a variable; repeat the option for several channels.")
    ] = None,
    level: Annotated[
        list[float] | None,
        typer.Option(help="Level of a variable that has several. Repeatable; each level becomes a channel."),
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE", help="Put this in place of missing values: a number, or 'mean' for the mean of the frame."
        ),
    ] = None,
    time_dimension: Annotated[
        str | None, typer.Option(help="Name of the time dimension, if it is not recognised.")
    ] = None,
    row_dimension: Annotated[str | None, typer.Option(help="Name of the first grid dimension (latitude, y).")] = None,
    column_dimension: Annotated[
        str | None, typer.Option(help="Name of the second grid dimension (longitude, x).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; by default one for each core.")
    ] = None,
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

    from data_prep.build_command import build_and_report
    from data_prep.netcdf_field import open_field
    from data_prep.netcdf_files import find_files
    from data_prep.netcdf_source import NetcdfSource, plan_store

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
    counts = " + ".join(str(stop - start) for start, stop in ranges.values())
    build_and_report(
        root,
        location,
        plan,
        NetcdfSource(field, {name: start for name, (start, _) in ranges.items()}, fill_value),
        workers=workers,
        overwrite=overwrite,
        unit="frames",
        content=f"{', '.join(plan.channels)}, {counts} frames every {field.axis.step}, {plan.height} x {plan.width}",
    )


def _parse_fill(text: str | None) -> Fill:
    """Return the value of --fill.

    Raises:
        UserError: it is neither a finite number nor "mean".
    """
    if text is None:
        return None
    if text == "mean":
        return "mean"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"--fill is a number or 'mean', not '{text}'")
    return value


def _refuse_overlap(ranges: dict[str, tuple[int, int]]) -> None:
    """Refuse splits that share times.

    Raises:
        UserError: two splits do.
    """
    ordered = sorted(ranges.items(), key=lambda item: item[1])
    for (name, (_, stop)), (other, (start, _)) in itertools.pairwise(ordered):
        if start < stop:
            raise UserError(f"--{name} and --{other} overlap; splits must not share any day")


if __name__ == "__main__":
    main(convert)
