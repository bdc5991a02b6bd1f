"""Units in the spellings of files: which mean the same, how others convert, and what is no conversion at all."""

from __future__ import annotations

import pytest

from mcrnn.data.units import find_conversion


def test_spellings_of_the_same_units_need_no_conversion() -> None:
    for one, other in (
        ("m**2 s**-2", "m2 s-2"),
        ("m^2/s^2", "J kg-1"),
        ("C", "degC"),
        ("Celsius", "degrees C"),
        ("Degrees Celsius", "deg_C"),
        ("Kelvin", "K"),
        ("hPa", "millibars"),
        ("mb", "mbar"),
        ("hpa", "mbar"),
        ("pa", "Pa"),
        ("(0 - 1)", "1"),
        ("0-1", "kg kg**-1"),
        ("~", "dimensionless"),
        ("gpm", "m"),
        ("kg kg-1", "1"),
        ("mol mol-1", "1"),
        ("J m-3", "Pa"),
        ("N m s-1", "V A"),
        ("s-1", "Hz"),
        ("mm of water equivalent", "mm"),
    ):
        assert find_conversion(one, other) is None, (one, other)


def test_factor_and_offset_are_those_of_the_definition() -> None:
    for source, target, scale, offset in (
        ("degC", "K", 1.0, 273.15),
        ("K", "Celsius", 1.0, -273.15),
        ("degF", "K", 0.555555555556, 255.372222222),
        ("degC", "degF", 1.8, 32.0),
        ("hPa", "Pa", 100.0, 0.0),
        ("Pa", "mb", 0.01, 0.0),
        ("%", "(0 - 1)", 0.01, 0.0),
        ("g kg-1", "kg kg**-1", 0.001, 0.0),
        ("1e-3", "1", 0.001, 0.0),
        ("degC day-1", "K h-1", 0.0416666666667, 0.0),
        ("ppm", "mol mol-1", 1e-06, 0.0),
        ("umol mol-1", "nmol/mol", 1000.0, 0.0),
        ("mW m-2 sr-1", "W m-2 sr-1", 0.001, 0.0),
        ("mm/day", "m s**-1", 1.15740740741e-08, 0.0),
    ):
        found = find_conversion(source, target)
        assert found is not None, (source, target)
        assert (found.scale, found.offset) == (scale, offset), (source, target)


def test_what_would_be_wrong_is_no_conversion() -> None:
    for source, target, reason in (
        ("m", "m2 s-2", "do not convert"),
        ("1", "K", "do not convert"),
        ("kg m-2", "mm", "do not convert"),
        ("dB", "1", "do not convert"),
        ("foo", "K", "'foo' is not known"),
        ("degree-C", "K", "'degree-C' is not known|do not convert"),
        ("-5 K", "K", "'-5 K' is not known"),
        ("psu", "1e-3", "'psu' is counted in several ways"),
        ("mm month-1", "mm day-1", "months and years"),
        ("kg kg-1", "mol mol-1", "ratios of different quantities"),
        ("g/kg", "mole/mole", "ratios of different quantities"),
        ("m3 m-3", "kg kg**-1", "ratios of different quantities"),
        ("kg kg-1 s-1", "mol mol-1 day-1", "ratios of different quantities"),
        ("kg kg-1", "ppm", "ratios of different quantities"),
        ("W m-2 sr-1", "W m-2", "do not convert"),
        ("sr-1", "1", "do not convert"),
        ("Hz", "rad s-1", "do not convert"),
        ("days since 2000-01-01", "hours since 2000-01-01", "is not known"),
    ):
        with pytest.raises(ValueError, match=reason):
            find_conversion(source, target)
