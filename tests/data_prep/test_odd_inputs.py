"""Inputs that are odd in one way each: what is stored is right to the bit, or one sentence says what is wrong.

Every input begins with the same three days of hourly fields, and a function changes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from data_prep.convert import convert
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder

LATITUDE, LONGITUDE = np.linspace(-75, 75, 6), np.arange(0, 360, 45.0)
VALUES = np.random.default_rng(0).normal(54_000, 3_000, (72, 6, 8)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(280, 20, (72, 6, 8)).astype(np.float32)
DAYS = {"train": "1979-01-01", "val": "1979-01-02", "test": "1979-01-03", "boundary": "cylinder"}
HOURS = "hours since 1979-01-01"


def dataset(values: np.ndarray = VALUES, first: int = 0, **coordinates: Any) -> xr.Dataset:
    """Hourly fields, the first of which is `first` hours after the begin."""
    hours = first + np.arange(float(len(values)))
    return xr.Dataset(
        {"z": (("time", "lat", "lon"), values, {"units": "m**2 s**-2"})},
        {"time": ("time", hours, {"units": HOURS}), "lat": LATITUDE, "lon": LONGITUDE} | coordinates,
    )


def days(*changes: Callable[[xr.Dataset], xr.Dataset]) -> dict[str, xr.Dataset]:
    """The same in a file for each day, changed one by one."""
    parts = {f"{name}.nc": dataset(VALUES[24 * i : 24 * i + 24], 24 * i) for i, name in enumerate("abc")}
    return {name: change(part) for (name, part), change in zip(parts.items(), changes, strict=True)}


def same(part: xr.Dataset) -> xr.Dataset:
    return part


def attributes(name: str, **values: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    """A change of the attributes of a variable; None removes one."""

    def change(part: xr.Dataset) -> xr.Dataset:
        kept = {k: v for k, v in (part[name].attrs | values).items() if v is not None}
        part[name].attrs = kept
        return part

    return change


def at_level(level: float) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda part: part.expand_dims(level=[level], axis=1)


def two_levels(part: xr.Dataset, first: float = 500, second: float = 850) -> xr.Dataset:
    """The field at `first`, and the same plus one at `second`."""
    both = xr.concat([part["z"], part["z"] + 1], "level").transpose("time", "level", "lat", "lon")
    return part.assign(z=both).assign_coords(level=[first, second])


def with_t(part: xr.Dataset, values: np.ndarray = OTHER) -> xr.Dataset:
    return part.assign(t=(("time", "lat", "lon"), values, {"units": "K"}))


def in_units(units: str, scale: float = 1.0, offset: float = 0.0) -> Callable[[xr.Dataset], xr.Dataset]:
    """The same field in other units, in float64."""

    def change(part: xr.Dataset) -> xr.Dataset:
        part["z"] = (part["z"].dims, part["z"].values.astype(np.float64) * scale + offset, {"units": units})
        return part

    return change


def at_levels(units: str, first: float, second: float) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda part: attributes("level", units=units)(two_levels(part, first, second))


def projected(units: str, factor: float) -> Callable[[xr.Dataset], xr.Dataset]:
    """The field on a grid of a projection."""

    def change(part: xr.Dataset) -> xr.Dataset:
        points = {name: (name, factor * np.arange(size), {"units": units}) for name, size in (("y", 6.0), ("x", 8.0))}
        return part.drop_vars(["lat", "lon"]).rename(lat="y", lon="x").assign_coords(points)

    return change


def packed(**attributes: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(part: xr.Dataset) -> xr.Dataset:
        raw = np.round((VALUES - 54_000) / 2).astype(np.int16)
        part["z"] = (
            ("time", "lat", "lon"),
            raw,
            {"units": "m", "scale_factor": 2.0, "add_offset": 54_000.0} | attributes,
        )
        return part

    return change


PACKED = (np.round((VALUES - 54_000) / 2) * 2 + 54_000).astype(np.float32)


def with_value(value: float, **attributes: Any) -> xr.Dataset:
    """One value in the middle of the second day is another."""
    values = VALUES.copy()
    values[30, 2, 3] = value
    part = dataset(values)
    part["z"].attrs |= attributes
    return part


SEA = np.arange(48).reshape(6, 8) % 5 > 0


def land() -> xr.Dataset:
    """The field without values at some points."""
    return dataset(np.where(SEA, VALUES, np.float32(np.nan)))


def time_as(values: Any, **attributes: Any) -> xr.Dataset:
    return dataset().assign_coords(time=("time", values, attributes))


def netcdf(write: Callable[[netCDF4.Dataset], None], **options: Any) -> Callable[[Path], None]:
    """A file that is written by the library of NetCDF itself."""

    def make(path: Path) -> None:
        with netCDF4.Dataset(path, "w", **options) as file:
            for name, values in (("time", np.arange(72.0)), ("lat", LATITUDE), ("lon", LONGITUDE)):
                file.createDimension(name, len(values))
                file.createVariable(name, "f8", (name,))[:] = values
            file["time"].units = HOURS
            write(file)

    return make


def hdf5_without_scales(path: Path) -> None:
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("d0", 72), ("d1", 6), ("d2", 8)):
            file.createDimension(name, size)
        file.createVariable("z", "f4", ("d0", "d1", "d2"))[:] = VALUES


def never_written(file: netCDF4.Dataset) -> None:
    file.createVariable("z", "f4", ("time", "lat", "lon"))[:30] = VALUES[:30]


def odd_coordinates(file: netCDF4.Dataset) -> None:
    file.createVariable("z", "f4", ("time", "lat", "lon"))[:] = VALUES
    file["z"].coordinates = 5


def text(file: netCDF4.Dataset) -> None:
    file.createVariable("z", str, ("time", "lat", "lon"))[0, 0, 0] = "high"


def compound(file: netCDF4.Dataset) -> None:
    kind = file.createCompoundType(np.dtype([("re", "f4"), ("im", "f4")]), "complex")
    file.createVariable("z", kind, ("time", "lat", "lon"))


def one_dimension_twice(file: netCDF4.Dataset) -> None:
    file.createVariable("z", "f4", ("time", "lat", "lat"))[:] = 1.0


def in_two_groups(file: netCDF4.Dataset) -> None:
    file.createVariable("z", "f4", ("time", "lat", "lon"))[:] = VALUES
    for name, values in (("obs", VALUES + 1), ("model", VALUES + 2)):
        variable = file.createGroup(name).createVariable("z", "f4", ("time", "lat", "lon"))
        variable[:] = values
        variable.units = "m"
    file["z"].units = "m"


def in_group(file: netCDF4.Dataset) -> None:
    file.createGroup("fields").createVariable("z", "f4", ("time", "lat", "lon"))[:] = VALUES


@dataclass
class Case:
    """One input.

    Attributes:
        files: what is written, by name: a data set, bytes, or a function that writes a file.
        expected: the field (time, height, width) or (time, channel, height, width) that the store must hold, or words
            of the sentence with which it is refused.
        options: options of the command, in addition to `DAYS`.
        written: options of `Dataset.to_netcdf`.
        segments: segments of the splits that have gaps.
        mask: the mask of the one channel.
        units: the units of the store.
    """

    files: Any
    expected: Any
    options: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    segments: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mask: np.ndarray | None = None
    units: str | None = None


STACK = np.stack([VALUES, VALUES + 1], 1)
SHIFTED = np.roll(VALUES, 4, -1)
CASES: dict[str, Case] = {
    # formats
    "netcdf 4": Case(dataset(), VALUES),
    "netcdf 3": Case(dataset(), VALUES, written={"format": "NETCDF3_CLASSIC"}),
    "netcdf 3 of 64 bits": Case(dataset(), VALUES, written={"format": "NETCDF3_64BIT"}),
    "netcdf 4 classic": Case(dataset(), VALUES, written={"format": "NETCDF4_CLASSIC"}),
    "compressed and chunked": Case(
        dataset(), VALUES, written={"encoding": {"z": {"zlib": True, "shuffle": True, "chunksizes": (7, 4, 3)}}}
    ),
    "unlimited time": Case(dataset(), VALUES, written={"unlimited_dims": ["time"]}),
    "big-endian": Case(dataset(), VALUES, written={"encoding": {"z": {"dtype": ">f4"}}}),
    "zarr 2": Case(("zarr", dataset(), 2), VALUES),
    "zarr 3": Case(("zarr", dataset(), 3), VALUES),
    "hdf5 without coordinates": Case(
        hdf5_without_scales,
        "has no variable 'd0' with the times",
        {"time_dimension": "d0", "row_dimension": "d1", "column_dimension": "d2"},
    ),
    "empty file": Case(b"", "is empty"),
    "other file": Case(b"not NetCDF at all", "cannot be read as NetCDF"),
    "truncated file": Case(("cut", dataset()), "cannot be read as NetCDF|is damaged"),
    "damaged values": Case(("damage", dataset()), "is damaged|cannot be read"),
    "no variable": Case(xr.Dataset(), "has 0 fields"),
    "variable in a group": Case(netcdf(in_group), "has no fields; it has fields in the groups fields .z.: name one by"),
    "variable in a group, without it": Case(
        netcdf(in_group),
        "no file has a variable 'z'; it has fields in the groups fields .z.: name one by --group",
        {"variable": ["z"]},
    ),
    "variable in a group that is named": Case(netcdf(in_group), VALUES, {"group": "fields"}),
    "variable in a group, by its path": Case(netcdf(in_group), VALUES, {"variable": ["/fields/z"]}),
    "variables of one name in several groups": Case(
        netcdf(in_two_groups), np.stack([VALUES + 1, VALUES + 2], 1), {"variable": ["obs/z", "model/z"]}
    ),
    "units of one of several variables of one name": Case(
        netcdf(in_two_groups),
        np.stack([VALUES + 2, VALUES.astype(np.float64) / 1000], 1),
        {"variable": ["model/z", "z"], "units": ["z=km"]},
    ),
    "logarithms of variables of one name": Case(
        netcdf(in_two_groups),
        np.log1p(np.stack([VALUES + 1, VALUES + 2], 1).astype(np.float64) / 1000),
        {"variable": ["obs/z", "model/z"], "log": ["z:1000"]},
    ),
    "variable in a group that is misspelt": Case(
        netcdf(in_group), "has no group 'field'; it has fields in the groups fields .z.", {"group": "field"}
    ),
    "variable that is not in the group": Case(
        netcdf(in_group), "no file has a variable 'fields/zz'; did you mean 'z'", {"variable": ["fields/zz"]}
    ),
    "variable in a group of one file": Case(
        {"a.nc": netcdf(in_group), "b.nc": dataset()}, VALUES, {"group": "fields", "variable": ["z"]}
    ),
    # types and units
    "float64": Case(dataset(VALUES.astype(np.float64)), VALUES),
    "float64 that is rounded": Case(dataset(VALUES + 1e-9), VALUES),
    "float64 beyond float32": Case(
        dataset(np.where(np.arange(72)[:, None, None] == 30, 1e300, VALUES.astype(np.float64))), "there are missing"
    ),
    "int16": Case(dataset(np.round(VALUES / 10).astype(np.int16)), np.round(VALUES / 10)),
    "int32": Case(dataset(np.round(VALUES).astype(np.int32)), np.round(VALUES)),
    "uint8": Case(dataset((VALUES % 200).astype(np.uint8)), np.floor(VALUES % 200)),
    "bool": Case(dataset(VALUES > 54_000), (VALUES > 54_000).astype(np.float32)),
    "text": Case(netcdf(text), "is no field of numbers"),
    "compound type": Case(netcdf(compound), "is no field of numbers|cannot be read"),
    "complex": Case(dataset().assign(z=(("time", "lat", "lon"), np.full((72, 6, 8), "x"))), "is no field of numbers"),
    "no units": Case(attributes("z", units=None)(dataset()), VALUES),
    "units that are a number": Case(attributes("z", units=1)(dataset()), VALUES),
    "units of time": Case(attributes("z", units="seconds")(dataset()), VALUES),
    "units since": Case(attributes("z", units="days since 2000-01-01")(dataset()), VALUES),
    "units that change": Case(
        days(same, attributes("z", units="m"), same),
        "z is in m in '.*b.nc' and in m..2 s..-2 in '.*a.nc', and these do not convert",
    ),
    "units that are missing in one file": Case(
        days(same, attributes("z", units=None), same), "z is in no units in '.*b.nc' and in m..2 s..-2 in '.*a.nc'"
    ),
    "units that are not known": Case(days(same, attributes("z", units="foo"), same), "'foo' is not known as units"),
    "units that convert": Case(
        days(attributes("z", units="Pa"), in_units("hPa", 0.01), in_units("millibars", 0.01)), VALUES
    ),
    "units that convert with an offset": Case(
        days(attributes("z", units="K"), in_units("Celsius", 1, -273.15), in_units("C", 1, -273.15)), VALUES
    ),
    "units of the first file, which is not the first in time": Case(
        {
            "a.nc": attributes("z", units="K")(dataset(VALUES[24:], 24)),
            "b.nc": in_units("degC", 1, -273.15)(dataset(VALUES[:24])),
        },
        VALUES,
        units="K",
    ),
    "units of the first file, which has no times": Case(
        {
            "a.nc": attributes("z", units="K")(dataset(VALUES[:0])),
            "b.nc": in_units("degC", 1, -273.15)(dataset()),
        },
        VALUES,
        units="K",
    ),
    "anomalies in other units": Case(
        days(
            attributes("z", units="K", long_name="anomaly of temperature"),
            attributes("z", units="degC", units_metadata="temperature: difference"),
            in_units("degF", 1.8),
        ),
        VALUES,
    ),
    "anomalies by their standard name": Case(
        attributes("z", units="K", standard_name="air_temperature_anomaly")(dataset()), VALUES, {"units": ["degC"]}
    ),
    "standard deviations of temperature": Case(
        attributes("z", units="K", cell_methods="time: standard_deviation")(dataset()), VALUES, {"units": ["degC"]}
    ),
    "temperatures that are said to be no differences": Case(
        attributes("z", units="K", long_name="difference", units_metadata="temperature: on_scale")(dataset()),
        VALUES.astype(np.float64) - 273.15,
        {"units": ["degC"]},
    ),
    "units without a dimension": Case(days(in_units("(0 - 1)"), in_units("%", 100), in_units("1")), VALUES),
    "units that are asked for": Case(
        attributes("z", units="K")(dataset()), VALUES.astype(np.float64) - 273.15, {"units": ["degC"]}
    ),
    "units of one variable of two": Case(
        with_t(dataset()),
        np.stack([VALUES, OTHER.astype(np.float64) - 273.15], 1),
        {"variable": ["z", "t"], "units": ["t=degC"]},
    ),
    "units of which variable": Case(
        with_t(dataset()), "--units degC: say of which", {"variable": ["z", "t"], "units": ["degC"]}
    ),
    "units of another variable": Case(
        with_t(dataset()), "has no variable 'q'; known: t, z", {"variable": ["z", "t"], "units": ["q=degC"]}
    ),
    "units that are asked for and do not convert": Case(dataset(), "and is to be in K, and these", {"units": ["K"]}),
    "units that are asked for of none": Case(
        attributes("z", units=None)(dataset()), "z is in no units in .* is to be in K", {"units": ["K"]}
    ),
    "valid_min in units that convert": Case(
        with_value(-999.0, valid_min=np.float32(0), units="hPa"), "z at 1979-01-02 06:00", {"units": ["Pa"]}
    ),
    "packed in units that convert": Case(
        packed()(dataset()), (np.round((VALUES - 54_000) / 2) * 2 + 54_000) / 1000, {"units": ["km"]}
    ),
    "units that are written otherwise": Case(days(same, attributes("z", units="m2 s-2"), same), VALUES),
    # logarithms
    "a logarithm of what is rounded below zero": Case(
        dataset(np.where(VALUES < 54_000, np.float32(-1e-4), VALUES)),
        np.log1p(np.where(VALUES < 54_000, np.float32(-1e-4), VALUES).astype(np.float64) / 1000),
        {"log": ["z:1e3"]},
    ),
    "a logarithm of what is negative": Case(
        with_value(-0.5), "z at 1979-01-02 06:00, lat -15, lon 135 .* is -0.5, and --log z takes no", {"log": ["z:1e3"]}
    ),
    "a logarithm of what is negative in the mean, with a mask": Case(
        dataset(-VALUES), "z at 1979-01-01 00:00, .* and --log z takes no negative values", {"log": ["z"], "mask": True}
    ),
    "a logarithm of nothing": Case(dataset(), "--log q: the field has no variable 'q'", {"log": ["q"]}),
    "a logarithm without a scale": Case(dataset(), "the scale is a positive number, .* not '0'", {"log": ["z:0"]}),
    "a scale of what is not there": Case(dataset(), "--min-max q: the store has no channel", {"min_max": ["q"]}),
    # missing values and packing
    "packed": Case(packed()(dataset()), PACKED),
    "packed with a fill value that is not used": Case(packed(_FillValue=np.int16(-32768))(dataset()), PACKED),
    "packed beyond its valid range": Case(packed(valid_max=np.int16(-100))(dataset()), "there are missing values"),
    "packed within its valid range": Case(
        packed(valid_range=np.array([-32000, 32000], np.int16))(dataset()), PACKED
    ),
    "not a number": Case(with_value(np.nan), "z at 1979-01-02 06:00, lat -15, lon 135"),
    "infinite": Case(with_value(np.inf), "missing values, the first of 1 here: z at 1979-01-02 06:00"),
    "fill value": Case(with_value(-999.0, _FillValue=np.float32(-999)), "z at 1979-01-02 06:00, lat -15, lon 135"),
    "missing_value": Case(with_value(-999.0, missing_value=np.float32(-999)), "z at 1979-01-02 06:00"),
    "valid_min": Case(with_value(-999.0, valid_min=np.float32(0)), "z at 1979-01-02 06:00"),
    "valid_max": Case(with_value(1e6, valid_max=np.float32(1e5)), "z at 1979-01-02 06:00"),
    "valid_range": Case(with_value(1e6, valid_range=np.array([0, 1e5], np.float32)), "z at 1979-01-02 06:00"),
    "valid_range that is text": Case(attributes("z", valid_range="0 to 9")(dataset()), VALUES),
    "never written": Case(netcdf(never_written), "z at 1979-01-02 06:00, lat -75, lon 0"),
    "fill by a number": Case(with_value(np.nan), with_value(7.0)["z"].values, {"fill": "7"}),
    "fill by a mean": Case(
        with_value(np.nan),
        with_value(np.delete(VALUES[30].ravel(), 19).mean(dtype=np.float64))["z"].values,
        {"fill": "mean"},
    ),
    "nothing to take a mean of": Case(
        dataset(np.where(np.arange(72)[:, None, None] == 30, np.float32(np.nan), VALUES)),
        "has no value at all",
        {"fill": "mean"},
    ),
    "missing at all times": Case(land(), "say by --fill what to put there, or by --mask"),
    "missing at all times, masked": Case(
        land(), np.where(SEA, VALUES, VALUES[0][SEA].mean(dtype=np.float64)), {"mask": True}, mask=SEA
    ),
    "missing at all times but one, masked": Case(
        dataset(np.where(SEA | (np.arange(72) == 30)[:, None, None], VALUES, np.float32(np.nan))),
        "z at 1979-01-02 06:00, lat -75, lon 0 .* has a value, but has none in the first frame",
        {"mask": True},
    ),
    "nothing missing, masked": Case(dataset(), VALUES, {"mask": True}),
    "missing at one time, masked": Case(
        with_value(np.nan),
        "z at 1979-01-02 06:00, lat -15, lon 135 .* has a value in",
        {"mask": True},
    ),
    "all missing, masked": Case(
        dataset(np.full_like(VALUES, np.nan)), "z has no value in the first frame", {"mask": True}
    ),
    "masked and filled": Case(land(), "--fill and --mask both", {"mask": True, "fill": "0"}),
    # times
    "times in days": Case(time_as(np.arange(72) / 24, units="days since 1979-01-01"), VALUES),
    "times in float32 days": Case(
        time_as((28854 + np.arange(72) / 24).astype(np.float32), units="days since 1900-01-01"), VALUES
    ),
    "times in float32 hours": Case(
        time_as((692496 + np.arange(72)).astype(np.float32), units="hours since 1900-01-01"), VALUES
    ),
    "gap in float32 days": Case(
        time_as((28854 + np.delete(np.arange(73), 40) / 24).astype(np.float32), units="days since 1900-01-01"),
        VALUES[:71],
        segments={"val": (0, 16)},
    ),
    "times in integers": Case(time_as(np.arange(72), units=HOURS), VALUES),
    "times in another zone": Case(time_as(np.arange(72.0), units="hours since 1979-01-01T02:00+02:00"), VALUES),
    "times as strings": Case(
        time_as([f"1979-01-{1 + h // 24:02}T{h % 24:02}" for h in range(72)]), "are no numbers; write them as CF"
    ),
    "times without units": Case(time_as(np.arange(72.0)), "have the units '', which are none of dates"),
    "times of unknown units": Case(time_as(np.arange(72.0), units="fortnights since 1979-01-01"), "cannot be read"),
    "times of a calendar that does not exist": Case(
        time_as(np.arange(72.0), units=HOURS, calendar="martian"), "cannot be read"
    ),
    "a missing time": Case(time_as(np.where(np.arange(72) == 5, np.nan, np.arange(72)), units=HOURS), "missing times"),
    "times that fall": Case(time_as(np.arange(72.0)[::-1], units=HOURS), "a repeat or a step back"),
    "a time twice": Case(
        time_as(np.where(np.arange(72) == 5, 4, np.arange(72)), units=HOURS), "a repeat or a step back"
    ),
    "a gap": Case(
        time_as(np.arange(72.0) + (np.arange(72) > 40), units=HOURS), VALUES[:71], segments={"val": (0, 17)}
    ),
    "gaps in two splits, and between them": Case(
        time_as(np.delete(np.arange(90), [*range(5, 8), *range(20, 28), *range(50, 57)]), units=HOURS),
        VALUES[:54],
        segments={"train": (0, 5), "test": (0, 2)},
    ),
    "a gap of one hour and a half": Case(
        time_as(np.arange(72.0) + 0.5 * (np.arange(72) > 40), units=HOURS),
        "an irregular step in time: 1979-01-02 16:00 is followed by 1979-01-02 17:30, where the interval is 1 h",
    ),
    "gaps, and every six hours": Case(
        time_as(np.delete(np.arange(80), [7, 31, 32, 36, 43, 44, 45, 46]), units=HOURS),
        VALUES[[0, 6, 11, 17, 23, 29, 38, 40, 46, 52, 58]],
        {"every": "6h"},
        segments={"val": (0, 2)},
    ),
    "no times": Case(dataset().drop_vars("time"), "has no variable 'time' with the times"),
    "one time": Case(dataset(VALUES[:1]), "has 1 times; a series needs at least 2"),
    "no time at all": Case(dataset(VALUES[:0]), "has 0 times"),
    "a last day of 23 hours": Case(dataset(VALUES[:71]), "is not covered .* every 1 h; a split has whole days"),
    "a first day of one hour": Case(
        dataset(np.concatenate([VALUES[:1], VALUES[:48]]), 23), "is not covered", {"train": "1979-01-01"}
    ),
    "calendar gregorian": Case(attributes("time", calendar="gregorian")(dataset()), VALUES),
    "calendars that are the same": Case(
        days(same, attributes("time", calendar="GREGORIAN"), attributes("time", calendar="proleptic_gregorian")), VALUES
    ),
    "calendars that are not": Case(days(same, attributes("time", calendar="noleap"), same), "has the calendar noleap"),
    "calendar by two names": Case(
        days(*[attributes("time", calendar=name) for name in ("noleap", "365_day", "noleap")]), VALUES
    ),
    "numeric calendar": Case(attributes("time", calendar=5)(dataset()), "calendar '5'"),
    "reference times of each file": Case(
        days(
            same,
            lambda part: part.assign_coords(time=("time", np.arange(24.0), {"units": "hours since 1979-01-02"})),
            lambda part: part.assign_coords(time=("time", np.arange(24) * 60, {"units": "minutes since 1979-01-03"})),
        ),
        VALUES,
    ),
    "a file of one time without a dimension": Case(
        {f"{h:02}.nc": dataset(VALUES[h : h + 1], h).isel(time=0) for h in range(0, 72, 12)}, VALUES[::12]
    ),
    "files in another order": Case({"c.nc": days(same, same, same)["a.nc"], "a.nc": days(same, same, same)["b.nc"],
        "b.nc": days(same, same, same)["c.nc"]}, VALUES),
    "a file twice": Case({"a.nc": dataset(), "b.nc": dataset()}, "a repeat or a step back"),
    "a file without times": Case(days(same, same, same) | {"d.nc": dataset(VALUES[:0])}, VALUES),
    "a file without the variable": Case(
        days(same, same, same) | {"d.nc": dataset().rename(z="q")}, VALUES, {"variable": ["z"]}
    ),
    # grid
    "rows from the north": Case(dataset().isel(lat=slice(None, None, -1)), VALUES[:, ::-1]),
    "dimensions in another order": Case(dataset().transpose("lon", "time", "lat"), VALUES),
    "names in capitals": Case(dataset().rename(lat="Latitude", lon="LONGITUDE", time="Time"), VALUES),
    "names that say nothing": Case(
        dataset().rename(lat="a", lon="b").assign_coords(
            a=("a", LATITUDE, {"standard_name": "latitude"}), b=("b", LONGITUDE, {"units": "degrees_east"})
        ),
        VALUES,
    ),
    "numeric axis": Case(attributes("lat", axis=1)(dataset()), VALUES),
    "numeric standard_name": Case(attributes("lat", standard_name=2.5)(dataset()), VALUES),
    "numeric units of latitude": Case(attributes("lat", units=1)(dataset()), VALUES),
    "units of latitude that are no angle": Case(attributes("lat", units="m")(dataset()), "which are not degrees"),
    "numeric coordinates attribute": Case(netcdf(odd_coordinates), "cannot be read as NetCDF"),
    "no latitudes": Case(dataset().drop_vars("lat"), "has no coordinate for its dimension lat"),
    "no longitudes": Case(dataset().drop_vars("lon"), "has no coordinate for its dimension lon"),
    "no coordinates of a projected grid": Case(
        dataset().drop_vars(["lat", "lon"]).rename(lat="y", lon="x"), VALUES, {"boundary": "zeros"}
    ),
    "coordinates of a projected grid in other units": Case(
        days(projected("m", 1000.0), projected("km", 1.0), projected("m", 1000.0)), VALUES, {"boundary": "zeros"}
    ),
    "other coordinates of a projected grid": Case(
        days(projected("m", 1000.0), projected("km", 1000.0), projected("m", 1000.0)),
        "has another grid",
        {"boundary": "zeros"},
    ),
    "latitudes in radians": Case(
        dataset().assign_coords(lat=("lat", np.deg2rad(LATITUDE), {"units": "radians"})), VALUES
    ),
    "latitudes in radians without units": Case(
        dataset().assign_coords(lat=np.deg2rad(LATITUDE), lon=np.deg2rad(LONGITUDE)), "seem to be radians"
    ),
    "latitudes that are not sorted": Case(dataset().isel(lat=[0, 2, 1, 3, 4, 5]), "lat of .* neither rises nor falls"),
    "latitudes that repeat": Case(dataset().isel(lat=[0, 1, 1, 3, 4, 5]), "lat of .* neither rises nor falls"),
    "latitudes beyond the pole": Case(dataset().assign_coords(lat=LATITUDE * 2), "reach -?150 degrees"),
    "a latitude that is missing": Case(
        dataset().assign_coords(lat=np.where(LATITUDE > 60, np.nan, LATITUDE)), "lat of .* has missing values"
    ),
    "latitudes as text": Case(dataset().assign_coords(lat=[f"{v:g}N" for v in LATITUDE]), "lat of .* is no number"),
    "longitudes from -180": Case(dataset(SHIFTED).assign_coords(lon=LONGITUDE - 180), SHIFTED),
    "longitudes that jump": Case(dataset().assign_coords(lon=(LONGITUDE + 180) % 360 - 180), VALUES),
    "longitudes that are not sorted": Case(dataset().isel(lon=[0, 1, 3, 2, 4, 5, 6, 7]), "lon of .* neither rises"),
    "a longitude twice": Case(
        dataset().isel(lon=[*range(8), 0]).assign_coords(lon=[*LONGITUDE, 360.0]), "the last column repeats the first"
    ),
    "half of the globe": Case(dataset().isel(lon=slice(0, 4)), "cover 180 of 360 degrees"),
    "half of the globe without a boundary": Case(
        dataset().isel(lon=slice(0, 4)), VALUES[:, :, :4], {"boundary": "zeros"}
    ),
    "another grid in a file": Case(
        days(same, lambda part: part.assign_coords(lat=LATITUDE + 1), same), "has another grid than"
    ),
    "another order of rows in a file": Case(
        days(same, lambda part: part.isel(lat=slice(None, None, -1)), same), "has another grid than"
    ),
    "another order of dimensions in a file": Case(
        days(same, lambda part: part.transpose("lat", "lon", "time"), same), VALUES
    ),
    "a further dimension of length one": Case(dataset().expand_dims("band"), VALUES),
    "a further dimension": Case(dataset().expand_dims(band=[1, 2]), "are not understood: band"),
    "one dimension twice": Case(netcdf(one_dimension_twice), "two dimensions of the same name|cannot be read"),
    "rows that are named longitudes": Case(
        dataset(), "--boundary cylinder joins the ends", {"row_dimension": "lon", "column_dimension": "lat"}
    ),
    "rows and columns exchanged": Case(
        dataset(),
        VALUES.transpose(0, 2, 1),
        {"row_dimension": "lon", "column_dimension": "lat", "boundary": "zeros"},
    ),
    "one dimension in two roles": Case(
        dataset(), "one dimension has one role", {"row_dimension": "lat", "column_dimension": "lat"}
    ),
    "variables on two grids": Case(
        {"a.nc": dataset(), "b.nc": dataset(OTHER).assign_coords(lat=LATITUDE / 2).rename(z="t")},
        "has another grid than .* for t",
        {"variable": ["z", "t"]},
    ),
    # levels
    "a level of length one": Case(at_level(500)(dataset()), VALUES),
    "levels that change from file to file": Case(
        days(at_level(500), at_level(850), at_level(850)), "z is at level 850 in '.*b.nc' and at level 500 in '.*a.nc'"
    ),
    "a level that is a scalar and changes": Case(
        days(*[lambda part, v=v: part.assign_coords(level=v) for v in (500.0, 850.0, 850.0)]), "z is at level 850 in"
    ),
    "levels in another order in each file": Case(
        days(two_levels, lambda part: two_levels(part).isel(level=[1, 0]), two_levels), VALUES, {"level": [500.0]}
    ),
    "the level that is second": Case(
        days(two_levels, lambda part: two_levels(part).isel(level=[1, 0]), two_levels),
        VALUES + 1,
        {"variable": ["z@850"]},
    ),
    "all levels": Case(two_levels(dataset()), STACK, {"level": [500.0, 850.0]}),
    "all levels in another order": Case(two_levels(dataset()), STACK[:, ::-1], {"variable": ["z@850", "z@500"]}),
    "levels that fall": Case(two_levels(dataset(), 850, 500), STACK[:, ::-1], {"level": [500.0, 850.0]}),
    "a level that one file has not": Case(
        days(two_levels, at_level(850), two_levels), "z in '.*b.nc' has no level 500", {"level": [500.0]}
    ),
    "one level of several in one file": Case(days(two_levels, at_level(500), two_levels), VALUES, {"level": [500.0]}),
    "levels in other units in one file": Case(
        days(two_levels, lambda part: two_levels(part, 50_000, 85_000), two_levels), "has no level 500",
        {"level": [500.0]},
    ),
    "levels in other units, as they say, in one file": Case(
        days(at_levels("hPa", 500, 850), at_levels("Pa", 50_000, 85_000), at_levels("millibars", 500, 850)),
        VALUES,
        {"level": [500.0]},
    ),
    "one level in other units in one file": Case(
        days(
            *[
                lambda part, level=level, units=units: attributes("level", units=units)(at_level(level)(part))
                for level, units in ((500, "hPa"), (50_000, "Pa"), (500, "hPa"))
            ]
        ),
        VALUES,
    ),
    "levels in units that are not known in one file": Case(
        days(at_levels("hPa", 500, 850), at_levels("foo", 500, 850), at_levels("hpa", 500, 850)),
        VALUES,
        {"level": [500.0]},
    ),
    "other levels in units that are not known in one file": Case(
        days(at_levels("hPa", 500, 850), at_levels("foo", 500, 700), at_levels("hPa", 500, 850)),
        "the levels of z are in foo in '.*b.nc' and in hPa in '.*a.nc', and 'foo' is not known",
        {"level": [500.0]},
    ),
    "levels of another kind in one file": Case(
        days(at_levels("hPa", 500, 850), at_levels("m", 500, 850), at_levels("hPa", 500, 850)),
        "the levels of z are in m in '.*b.nc' and in hPa in '.*a.nc'",
        {"level": [500.0]},
    ),
    "a level twice": Case(two_levels(dataset()), "z500 is asked for twice", {"level": [500.0, 500.0]}),
    "a variable twice": Case(dataset(), "z is asked for twice", {"variable": ["z", "z"]}),
    "a level twice in a file": Case(two_levels(dataset(), 500, 500), "has 2 levels 500", {"level": [500.0]}),
    "a level that is no number": Case(two_levels(dataset()), "a level is a number, as in z@500", {"variable": ["z@a"]}),
    "a level of a variable that has none": Case(dataset(), "has no levels to select from", {"variable": ["z@500"]}),
    "no choice of levels": Case(two_levels(dataset()), "select with --level one or more of 500, 850"),
    "a level that another variable has not": Case(
        {"a.nc": two_levels(dataset()), "b.nc": at_level(850)(dataset(OTHER)).rename(z="t")},
        "t in '.*b.nc' has no level 500; there are 850",
        {"variable": ["z", "t"], "level": [500.0]},
    ),
    "a level of each variable": Case(
        {"a.nc": two_levels(dataset()), "b.nc": at_level(850)(dataset(OTHER)).rename(z="t")},
        np.stack([VALUES, OTHER], 1),
        {"variable": ["z@500", "t@850"]},
    ),
    "a surface variable beside one with levels": Case(
        {"a.nc": two_levels(dataset()), "b.nc": dataset(OTHER).rename(z="t")},
        np.stack([VALUES + 1, OTHER], 1),
        {"variable": ["z", "t"], "level": [850.0]},
    ),
    "a scalar coordinate that changes": Case(
        days(*[lambda part, v=v: part.assign_coords(member=v) for v in (0, 1, 1)]), "z is at member 1 in"
    ),
    # several variables
    "two variables of one file": Case(
        with_t(dataset()), np.stack([OTHER, VALUES], 1), {"variable": ["t", "z"]}
    ),
    "a choice of variables": Case(with_t(dataset()), "has 2 fields .z, t.; name those wanted"),
    "a variable that is misspelt": Case(
        with_t(dataset()), "no file has a variable 'tt'; did you mean 't'", {"variable": ["tt"]}
    ),
    "variables at other times": Case(
        {"a.nc": dataset(), "b.nc": dataset(OTHER, 1).rename(z="t")},
        "t is not given at the same times as z",
        {"variable": ["z", "t"]},
    ),
    "a variable that is a coordinate": Case(dataset(), "cannot tell which dimension", {"variable": ["lat"]}),
    # selections
    "every six hours": Case(dataset(), VALUES[::6], {"every": "6h"}),
    "every five hours": Case(dataset(), "is not covered|holds no time", {"every": "50h"}),
    "every 90 minutes": Case(dataset(), "no multiple of the interval of the data, 1 h", {"every": "90min"}),
    "every now and then": Case(dataset(), "--every is an interval such as", {"every": "often"}),
    "a part of the globe": Case(
        dataset(), VALUES[:, 2:5, 1:4], {"area": "50/40/-20/140", "boundary": "zeros"}
    ),
    "a part around the first meridian": Case(
        dataset(), VALUES[:, 2:5][:, :, [7, 0, 1]], {"area": "50/-50/-20/60", "boundary": "zeros"}
    ),
    "a band around the globe": Case(dataset(), VALUES[:, 2:5], {"area": "50/0/-20/360"}),
    "a band from the west": Case(dataset(), SHIFTED[:, 2:5], {"area": "50/-180/-20/180"}),
    "a part without points": Case(dataset(), "holds no grid point", {"area": "10/0/5/40", "boundary": "zeros"}),
    "a part that stands on its head": Case(dataset(), "north is above south", {"area": "-20/0/50/40"}),
    "a part that is no part": Case(dataset(), "--area is NORTH/WEST", {"area": "50/0"}),
    "a part that goes around": Case(dataset(), "cover 135 of 360", {"area": "50/40/-20/140"}),
    "a finer grid": Case(dataset(), "is finer than the grid, 6 x 8", {"regrid": "12x16"}),
    "a grid that is none": Case(dataset(), "--regrid is HEIGHTxWIDTH", {"regrid": "half"}),
    "blocks that do not divide": Case(dataset(), "--coarsen 4 does not divide the grid, 6 x 8", {"coarsen": 4}),
    # samples
    "an ensemble": Case(
        xr.concat([dataset(), dataset(OTHER)], "number"),
        "has 2 samples, so that --train is a number of them",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
def test_odd_input_is_right_to_the_bit_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    files = case.files if isinstance(case.files, dict) else {"a.nc": case.files}
    for file, content in files.items():
        write(tmp_path / file, content, case.written)
    monkeypatch.chdir(tmp_path)
    options = DAYS | case.options
    if isinstance(case.expected, str):
        with pytest.raises(UserError) as refusal:
            convert([*files], "out.zarr", **options, workers=1, storage=str(tmp_path))
        assert re.search(case.expected, str(refusal.value)), refusal.value
        assert "\n" not in str(refusal.value)
        return
    convert([*files], "out.zarr", **options, workers=1, storage=str(tmp_path))
    store = FieldStore.open(LocalFolder(tmp_path / "out.zarr"))
    stored = np.concatenate([store.load(split)[0] for split in ("train", "val", "test")])
    expected = np.asarray(case.expected, np.float32)
    assert np.array_equal(stored, expected if expected.ndim == 4 else expected[:, None])
    segments = {split: store.segments(split) for split in ("train", "val", "test")}
    assert segments == {"train": (0,), "val": (0,), "test": (0,)} | case.segments
    mask = store.mask()
    assert mask is None if case.mask is None else np.array_equal(mask, case.mask[None])
    assert store.attributes["format_version"] == (2 if case.segments or case.mask is not None else 1)
    assert case.units is None or (store.attributes["units"], store.units_of(["z"])) == (case.units, [case.units])
    assert store.latitude is None or np.isin(np.round(store.latitude, 6), LATITUDE).all()


def write(path: Path, content: Any, options: dict[str, Any]) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, xr.Dataset):
        content.to_netcdf(path, **options)
    elif isinstance(content, tuple):
        kind, part, *rest = content
        if kind == "zarr":
            part.to_zarr(path, zarr_format=rest[0], consolidated=rest[0] == 2)
            return
        part.to_netcdf(path, encoding={"z": {"zlib": True, "chunksizes": (72, 6, 8)}})
        whole = path.read_bytes()
        begin, end = len(whole) // 4, len(whole) // 2
        path.write_bytes(whole[:end] if kind == "cut" else whole[:begin] + b"\xff" * (end - begin) + whole[end:])
    else:
        content(path)
