"""Convert gridded fields into a store: NetCDF, HDF5, GRIB and Zarr, on a disk or at a URL, and OPeNDAP.

    python -m data_prep.convert 'geopotential_500_5.625deg/*.nc' data/z500.zarr --variable z \\
           --train 1979:2014 --val 2015:2016 --test 2017:2018 --boundary cylinder

    python -m data_prep.convert s3://lab/era5.zarr data/era5.zarr --variable z@500 --variable t@850 --every 6h \\
           --coarsen 4 --train 1979:2014 --val 2015:2016 --test 2017:2018 --boundary cylinder
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.data.store_format import BOUNDARIES, SPLITS
from mcrnn.errors import UserError, did_you_mean
from mcrnn.storage.location import Location, check
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data_prep.channels import Channel
    from data_prep.field_source import Fill


def convert(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES...",
            help="Files (NetCDF, HDF5, GRIB), Zarr stores, their URLs and those of OPeNDAP, or patterns, 'z/*.nc'.",
        ),
    ],
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Name of the store: data/z500.zarr, or s3://bucket/z500.zarr.")
    ],
    train: Annotated[
        str,
        typer.Option(
            metavar="FROM:TO",
            help="Training split: years, months or days, both included; of samples, their number.",
        ),
    ],
    val: Annotated[str, typer.Option(metavar="FROM:TO", help="Validation split, such as 2015:2016.")],
    test: Annotated[str, typer.Option(metavar="FROM:TO", help="Test split, such as 2017-01-01:2018-12-31.")],
    boundary: Annotated[
        str, typer.Option(help="periodic (both axes), cylinder (the width, such as longitude) or zeros (a region).")
    ],
    variable: Annotated[
        list[str] | None,
        typer.Option(help="Name of a variable, or NAME@LEVEL; repeat the option for several channels."),
    ] = None,
    level: Annotated[
        list[float] | None,
        typer.Option(help="Level of variables that are named without one. Repeatable; each level becomes a channel."),
    ] = None,
    area: Annotated[
        str | None, typer.Option(metavar="N/W/S/E", help="Take a part of the globe, in degrees, such as 75/-15/30/45.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(metavar="INTERVAL", help="Keep one time in each interval, such as 6h or 1d.")
    ] = None,
    coarsen: Annotated[
        int | None,
        typer.Option(min=2, help="Average blocks of so many rows and columns, by area, from pole to pole on a globe."),
    ] = None,
    regrid: Annotated[
        str | None,
        typer.Option(metavar="HEIGHTxWIDTH", help="Average by area onto so many equal rows and columns, as in 32x64."),
    ] = None,
    static: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE:VARIABLE",
            help="Field that does not change in time, such as orography, as an input that is not predicted: a VARIABLE "
            "of the sources, a FILE with one variable, or FILE:VARIABLE. Repeatable.",
        ),
    ] = None,
    forcing: Annotated[
        list[str] | None,
        typer.Option(help="Input that is known ahead: solar-angle or day-of-year. Repeatable."),
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE", help="Put this in place of missing values: a number, or 'mean' for the mean of the frame."
        ),
    ] = None,
    mask: Annotated[
        bool, typer.Option("--mask", help="Points that are missing at all times, such as land, are left out.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE[:SCALE]",
            help="Store log(1 + x / SCALE) of a variable, as of precipitation, in a channel log_VARIABLE; SCALE is 1, "
            "or a number in the units of the store. Repeatable.",
        ),
    ] = None,
    min_max: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE",
            help="Networks see the variable from 0, its minimum in the training split, to 1, its maximum, where "
            "data.normalize is set; by default less its mean and over its standard deviation. Repeatable.",
        ),
    ] = None,
    units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE=UNITS",
            help="Units that the store is to hold a variable in, such as t=degC; of one variable UNITS will do. By "
            "default those of its first source, to which the others are converted. Repeatable.",
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Group of a file or Zarr store that the variables are in, such as t0_fields; '*' for each group of "
            "an HDF5 file as a sample."
        ),
    ] = None,
    time_dimension: Annotated[
        str | None, typer.Option(help="Name of the time dimension, if it is not recognised.")
    ] = None,
    row_dimension: Annotated[str | None, typer.Option(help="Name of the first grid dimension (latitude, y).")] = None,
    column_dimension: Annotated[
        str | None, typer.Option(help="Name of the second grid dimension (longitude, x).")
    ] = None,
    sample_dimension: Annotated[
        str | None, typer.Option(help="Name of the dimension of independent samples, if it is not recognised.")
    ] = None,
    level_dimension: Annotated[
        str | None,
        typer.Option(help="Name of the dimension of levels or of components, whose positions are levels if unnamed."),
    ] = None,
    files_are_samples: Annotated[
        bool, typer.Option("--files-are-samples", help="Each file is a sample of its own, and not a part of a series.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; by default one for each core.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store of that name.")] = False,
    storage: StorageOption = None,
) -> None:
    """Convert gridded fields into a store, split by date, or by number where they are independent samples.

    The same command again continues an unfinished store and leaves a complete one alone.
    """
    if boundary not in BOUNDARIES:
        raise UserError(f"--boundary is one of {', '.join(BOUNDARIES)}, not '{boundary}'")
    if coarsen is not None and regrid is not None:
        raise UserError("--coarsen and --regrid both choose the grid: give one of them")
    if mask and fill is not None:
        raise UserError("--fill and --mask both say what missing values are: give one of them")
    fill_value = _parse_fill(fill)
    root = Storage.open(storage)
    location = root.location(store)
    check(location)

    from data_prep.build_command import build_and_report
    from data_prep.common_units import describe_conversions
    from data_prep.field_source import FieldSource, plan_store
    from data_prep.inputs import read_inputs
    from data_prep.joining import open_field, summary
    from data_prep.logarithms import formulas, parse_logarithms, with_logarithms
    from data_prep.masking import find_mask
    from data_prep.sources import find_sources
    from data_prep.split_ranges import split_ranges
    from data_prep.time_axis import TimeAxis

    urls = find_sources(files)
    dimensions = {
        "time": time_dimension,
        "row": row_dimension,
        "column": column_dimension,
        "sample": sample_dimension,
        "level": level_dimension,
    }
    field = open_field(
        urls,
        variable or [],
        level or [],
        dimensions,
        files_are_samples=files_are_samples,
        group=(group or "").strip("/"),
        units=units or [],
    )
    found = summary(field, level_dimension)
    scales = parse_logarithms(log or [], list(field.parts))
    field = with_logarithms(field.select(area, every, coarsen, regrid), scales)
    field.area.grid.check_boundary(boundary)
    inputs = read_inputs(static or [], forcing or [], field, urls, fill_value)
    scaled = _scaled_channels(min_max or [], field.channels, list(inputs.kinds))
    splits = dict(zip(SPLITS, (train, val, test), strict=True))
    ranges = split_ranges(field, splits)
    selection = {"area": area, "every": every, "coarsen": coarsen, "regrid": regrid, "mask": mask or None}
    recipe: dict[str, Any] = {
        "command": "data_prep.convert",
        **found,
        "variables": [f"{c.variable}{'' if c.level is None else f'@{c.level:g}'}" for c in field.channels],
        "channels": [c.name for c in field.channels],
        **splits,
        "boundary": boundary,
        "fill": fill_value,
        **{name: value for name, value in selection.items() if value is not None},
        **({"log": {name: [scale, field.units_of[name]] for name, scale in scales.items()}} if scales else {}),
        **({"min_max": scaled} if scaled else {}),
        **inputs.recipe(),
    }
    texts = (sample_dimension, level_dimension, group)
    if not overwrite and not any([*selection.values(), *texts, files_are_samples, inputs.kinds, units, log, min_max]):
        before = {
            "command": "data_prep.netcdf",
            "files": [[os.path.basename(url), os.path.getsize(url)] for url in urls if os.path.isfile(url)],
            "variables": [c.variable for c in field.channels],
            "levels": list(level or []),
            **splits,
            "boundary": boundary,
            "fill": fill_value,
        }
        if _is_complete_of_before(location, before):
            print(f"{root.show(location)}: made by an earlier version (complete already, nothing to do)")
            return
    if conversions := describe_conversions(field):
        print(conversions)
    for name, formula in formulas(field).items():
        print(f"{name} is {formula}")
    field_mask = find_mask(field, min(start for start, _ in ranges.values())) if mask else None
    if field_mask is not None:
        print(f"mask: {field_mask.describe(field)}")
    plan = plan_store(field, ranges, boundary, recipe, field_mask, inputs, scaled)
    if isinstance(field.axis, TimeAxis) and (gaps := field.axis.describe_gaps()):
        count = len(field.axis.segments)
        print(f"the series has {count - 1} gap{'s' * (count > 2)} ({gaps}): {count} segments, which no window crosses")
    counts = " + ".join(str(stop - start) for start, stop in ranges.values())
    names = ", ".join(c.name for c in field.channels)
    names += f" (inputs: {', '.join(inputs.kinds)})" if inputs.kinds else ""
    unit = "frames" if field.samples is None else "samples"
    times = f"every {field.axis.step}" if field.samples is None else f"of {field.frames} frames"
    build_and_report(
        root,
        location,
        plan,
        FieldSource(field, {name: start for name, (start, _) in ranges.items()}, fill_value, field_mask, inputs),
        workers=workers,
        overwrite=overwrite,
        unit=unit,
        content=f"{names}, {counts} {unit} {times}, {plan.height} x {plan.width}",
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


def _scaled_channels(names: list[str], channels: Sequence[Channel], inputs: list[str]) -> list[str]:
    """Return the channels that options `--min-max` name, by the name of a channel, else by that of its variable.

    Raises:
        UserError: there is no such channel.
    """
    found: dict[str, None] = {}
    known = [channel.name for channel in channels] + inputs
    for name in names:
        of_variable = [c.name for c in channels if name in (c.variable, c.variable.rpartition("/")[2])]
        chosen = [name] if name in known else of_variable
        if not chosen:
            raise UserError(f"--min-max {name}: the store has no channel of this name{did_you_mean(name, known)}")
        found |= dict.fromkeys(chosen)
    return list(found)


def _is_complete_of_before(location: Location, recipe: dict[str, Any]) -> bool:
    """Return whether there is a complete store of a recipe as versions wrote it that knew files by name and size only.

    Raises:
        UserError: there is an unfinished one, of which it is not known what it was read from.
    """
    try:
        attributes = json.loads(location.read("zarr.json"))["attributes"]
        status, known = attributes["status"], attributes["recipe"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    if known != json.loads(json.dumps(recipe)):
        return False
    if status != "complete":
        raise UserError(
            f"'{location.url}' was begun by an earlier version, which did not note what is in the files; build it "
            "anew by --overwrite"
        )
    return True


if __name__ == "__main__":
    main(convert)
