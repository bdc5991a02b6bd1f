"""Units of the CF conventions: which ones mean the same, and how values are converted from one to another.

Units are understood by pint, with the registry of cf_xarray, which knows the spellings of the CF conventions. The rest
of this module is what is written in files besides, and what would be converted to wrong numbers. Neither package is
imported as long as units are equal but for their spelling. Conversion of files and forecasts from files both use it, so
that they convert and refuse the same.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

NO_UNITS = ("1", "(0 - 1)", "0 - 1", "~", "-", "dimensionless", "unitless", "fraction", "proportion", "numeric")
"""Units of numbers without a dimension, as files have them, in lower case."""

SPELLINGS = {"mb": "millibar", "hpa": "hPa", "HPa": "hPa", "pa": "Pa"}
"""Units as files have them, of which pint makes others: millibarns of mb, and years of pa."""

AMBIGUOUS = {"practical_salinity_unit"}
"""Units of pint that others count in another way: a salinity of 35 is 35 psu, and 35 of 1e-3, and 35 of 1."""

PARTS = ("ppm", "ppb")
"""Begin of units that are a part of a whole, of which they do not say what it is."""

POWER_OF_TWO = 2.0**20
"""A value whose conversion tells the factor to all digits."""

_TEMPERATURE = re.compile(r"(?:deg(?:ree)?s?[ _.]*)?(c|celsius|k|kelvin|f|fahrenheit)", re.IGNORECASE)


class UnknownUnitsError(ValueError):
    """Some text is not known as units."""


@dataclass(frozen=True)
class Conversion:
    """How values are converted: those in `target` are `scale` times those in `source`, plus `offset`."""

    source: str
    target: str
    scale: float
    offset: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Convert values, in float64."""
        return np.asarray(values, np.float64) * self.scale + self.offset

    @property
    def words(self) -> str:
        """The conversion in a sentence."""
        return f"is converted from {self.source} to {self.target}"


def is_difference(attributes: Mapping[str, Any]) -> bool:
    """Return whether the attributes of a variable say that its values are differences, which have no zero of a scale.

    The attribute `units_metadata` says so since version 1.11 of the CF conventions; before, names and methods do.
    """
    said, methods, *names = (
        str(attributes.get(key, "")).lower().replace("_", " ")
        for key in ("units_metadata", "cell_methods", "standard_name", "long_name")
    )
    if "temperature:" in said:
        return "temperature: difference" in said
    has_method = re.search(r":\s*(standard deviation|range|variance)\b", methods)
    return has_method is not None or any(re.search(r"\b(anomal(y|ies)|differences?)\b", name) for name in names)


@functools.lru_cache(maxsize=1024)
def find_conversion(source: str, target: str, *, is_difference: bool = False) -> Conversion | None:
    """Return how values are converted, None where the units mean the same.

    Factor and offset are rounded to 12 digits, so that they are what they are by definition, such as 273.15.

    Args:
        source: units of the values, `"1"` of numbers without a dimension.
        target: units that they are to have.
        is_difference: whether the values are differences, such as anomalies of temperature, which have no offset.

    Raises:
        ValueError: one is not known, or they do not convert into each other; the message is the end of a sentence.
    """
    if _plain(source) == _plain(target):
        return None
    (factor, unit), (divisor, other) = _parse(source), _parse(target)
    if _differ_in_angles(unit, other):
        raise ValueError("these do not convert into each other")
    of_quantities, of_others = _ratio_of(source), _ratio_of(target)
    if of_quantities and of_others and of_quantities.isdisjoint(of_others):
        raise ValueError("these are ratios of different quantities")
    if _calendar_units(unit) != _calendar_units(other):
        raise ValueError("months and years are no fixed number of days")
    from cf_xarray.units import units as registry
    from pint import PintError

    def convert(value: float) -> float:
        return float(registry.Quantity(value * factor, unit).to(other).magnitude) / divisor

    try:
        with np.errstate(all="ignore"):
            offset = convert(0.0)
            scale = (convert(POWER_OF_TWO) - offset) / POWER_OF_TWO
            is_affine = bool(np.isclose(convert(2.0), 2 * scale + offset, rtol=1e-9))
    except (PintError, ArithmeticError):
        is_affine = False
    if not is_affine:  # other dimensions, or a logarithm such as dB
        raise ValueError("these do not convert into each other")
    scale, offset = float(f"{scale:.12g}"), 0.0 if is_difference else float(f"{offset:.12g}")
    return None if (scale, offset) == (1.0, 0.0) else Conversion(source, target, scale, offset)


def _plain(units: str) -> str:
    """Return units without the ways in which the same ones are written: m**2 s**-2, m^2 s^-2, m2 s-2."""
    return re.sub(r"\s+", " ", re.sub(r"\*\*|\^", "", units)).strip()


def _parse(text: str) -> tuple[float, Any]:
    """Return what pint understands by some units: a number, such as the 0.001 of `1e-3 m`, and its unit.

    Raises:
        ValueError: it understands nothing, or a product of an angle and a temperature, as of `degree-C`, or what is
            ambiguous.
    """
    from cf_xarray.units import units as registry
    from pint.util import to_units_container

    spelled = _spelled(text)
    factor = 1.0
    unit: Any
    try:
        try:
            unit = registry.Unit(spelled)
        except ValueError:  # of units with a number
            product: Any = registry.Quantity(registry.parse_expression(spelled))
            factor, unit = float(product.magnitude), product.units
        names = set(to_units_container(unit))
    except Exception:  # pint's parser raises errors of all kinds
        raise UnknownUnitsError(f"'{text}' is not known as units") from None
    has_angle = not names.isdisjoint(("degree", "degrees", "radian"))
    if (has_angle and any(name.startswith("delta_") for name in names)) or not factor > 0:
        raise UnknownUnitsError(f"'{text}' is not known as units")
    if not names.isdisjoint(AMBIGUOUS):
        raise ValueError(f"'{text}' is counted in several ways")
    return factor, unit


def _spelled(text: str) -> str:
    """Return units in the spelling of pint."""
    units = " ".join(text.split())
    if units.lower() in NO_UNITS or units.lower().replace("-", " - ") in NO_UNITS:
        return "1"
    if match := _TEMPERATURE.fullmatch(units):
        return {"c": "degC", "k": "kelvin", "f": "degF"}[match[1][0].lower()]
    if units in SPELLINGS:
        return SPELLINGS[units]
    units = re.sub(r" of water(?: equivalent)?$", "", units)
    return re.sub(r"\b[A-Z][a-z]{3,}\b", lambda word: word[0].lower(), units)


def _differ_in_angles(unit: Any, other: Any) -> bool:
    """Return whether one unit is per solid angle and the other is not, or one is a frequency and the other per angle.

    Angles are numbers for pint, so that it takes `W m-2 sr-1` and `W m-2` for the same.
    """
    from cf_xarray.units import units as registry
    from pint.util import to_units_container

    def angles(of: Any) -> float:
        exponents: Any = to_units_container(registry.get_root_units(of)[1])
        return float(exponents.get("radian", 0))

    def is_frequency(of: Any) -> bool:
        return "hertz" in to_units_container(of)

    difference = abs(angles(unit) - angles(other))
    return difference >= 2 or (difference > 0 and (is_frequency(unit) or is_frequency(other)))


def _ratio_of(text: str) -> set[str]:
    """Return which quantities are divided by themselves in some units: `[mass]` of `kg kg-1`, none of `1` or `J kg-1`.

    Parts per million and billion are those of substance, as for mixing ratios of gases.
    """
    from cf_xarray.units import units as registry

    symbols = [symbol for symbol in re.findall(r"[^\W\d]+", _spelled(text)) if symbol.lower() != "e"]
    if any(symbol.lower().startswith(PARTS) for symbol in symbols):
        return {"[substance]"}
    names: list[str] = []
    for symbol in symbols:
        with contextlib.suppress(Exception):  # of pint's parser, where a part is no unit by itself
            found = registry.Unit(symbol).dimensionality
            names += found if len(found) == 1 else ()
    whole = _parse(text)[1].dimensionality
    return {name for name in names if names.count(name) > 1 and not whole.get(name, 0)}


def _calendar_units(unit: Any) -> dict[str, Any]:
    """Return the exponents of those parts of a unit whose length is not fixed."""
    from pint.util import to_units_container

    return {name: power for name, power in to_units_container(unit).items() if "month" in name or "year" in name}
