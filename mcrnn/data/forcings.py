"""Forcings: what is known of every moment ahead of it because it follows from date and place alone.

`solar-angle` is the channel `cos_solar_zenith`: the cosine of the angle between sun and zenith at the moment of the
frame, negative at night. Declination and equation of time are the Fourier series of Spencer (1971, Search 2, 172), as
NOAA's general solar position calculations have them (https://gml.noaa.gov/grad/solcalc/solareqns.PDF); their errors, of
0.0006 rad and half a minute, change the cosine by up to 0.003. `day-of-year` is the two channels `sin_day_of_year` and
`cos_day_of_year` of the angle that goes once around in a year of the calendar.

Needs neither pandas nor cftime, because served models import it: a date is any object that has the methods of
`datetime.datetime`, such as those of cftime.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

STATIC = "static"
"""Kind of an input that does not change in time, such as orography."""
SOLAR_ANGLE, DAY_OF_YEAR = "solar-angle", "day-of-year"
CHANNELS = {SOLAR_ANGLE: ("cos_solar_zenith",), DAY_OF_YEAR: ("sin_day_of_year", "cos_day_of_year")}
"""Names of the channels of each forcing."""

DECLINATION = (0.006918, (-0.399912, 0.070257), (-0.006758, 0.000907), (-0.002697, 0.00148))
EQUATION_OF_TIME = (0.000075, (0.001868, -0.032077), (-0.014615, -0.040849))
"""Mean, and coefficients of cosine and sine of each multiple of the angle of the year, in radians."""


def forcing_values(
    names: Sequence[str], dates: Sequence[Any], place: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Compute the channels of forcings.

    Args:
        names: the forcings, keys of `CHANNELS`.
        dates: the times, in UTC.
        place: degrees north of each row, and degrees east of each column; needed for the solar angle only.

    Returns:
        For each channel its values in float32: (T, H, W) of the solar angle, (T, 1, 1) of the day of the year.
    """
    year_T, day_T = _angles(dates)
    found: dict[str, np.ndarray] = {}
    if SOLAR_ANGLE in names:
        assert place is not None, "a field with the solar angle lies on a globe"
        latitude, longitude = place
        declination_T, equation_T = _series(year_T, *DECLINATION), _series(year_T, *EQUATION_OF_TIME)
        hour_TW = (day_T - np.pi + equation_T)[:, None] + np.deg2rad(longitude)
        latitude_H = np.deg2rad(latitude)[:, None]
        declination_T11 = declination_T[:, None, None]
        cosine = np.sin(latitude_H) * np.sin(declination_T11)
        cosine = cosine + np.cos(latitude_H) * np.cos(declination_T11) * np.cos(hour_TW)[:, None, :]
        (name,) = CHANNELS[SOLAR_ANGLE]
        found[name] = cosine.astype(np.float32)
    if DAY_OF_YEAR in names:
        for name, function in zip(CHANNELS[DAY_OF_YEAR], (np.sin, np.cos), strict=True):
            found[name] = function(year_T).astype(np.float32)[:, None, None]
    return found


def _angles(dates: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of the year and of the day that have passed as angles, (T,) each."""
    parts = []
    for date in dates:
        midnight = date.replace(hour=0, minute=0, second=0, microsecond=0)
        begin = midnight.replace(month=1, day=1)
        year = begin.replace(year=date.year + 1) - begin
        parts.append(((date - begin) / year, (date - midnight) / datetime.timedelta(days=1)))
    angles_T2 = 2 * np.pi * np.array(parts, dtype=np.float64).reshape(-1, 2)
    return angles_T2[:, 0], angles_T2[:, 1]


def _series(angle_T: np.ndarray, mean: float, *coefficients: tuple[float, float]) -> np.ndarray:
    """Return the sum of a Fourier series at some angles."""
    total_T = np.full_like(angle_T, mean)
    for order, (cosine, sine) in enumerate(coefficients, start=1):
        total_T += cosine * np.cos(order * angle_T) + sine * np.sin(order * angle_T)
    return total_T


def dates_of(start: Any, count: int, calendar: str) -> list[Any]:
    """Return the dates that a caller gives for some forecasts.

    Args:
        start: a date as text, such as 2018-03-01T06:00, or as an object; or one for each forecast.
        count: number of forecasts.
        calendar: calendar of dates that are text.

    Raises:
        ValueError: a text is no date, or there are more or fewer dates than forecasts.
    """
    given = [start] if isinstance(start, str) or hasattr(start, "year") else list(start)
    if len(given) not in (1, count):
        raise ValueError(f"{len(given)} dates are given for {count} forecasts: give one for all, or one for each")
    from mcrnn.data.time_step import parse_date

    dates = [parse_date(date, calendar) if isinstance(date, str) else date for date in given]
    return dates * count if len(dates) == 1 else dates
