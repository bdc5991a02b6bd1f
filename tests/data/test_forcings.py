"""The solar angle and the day of the year against values that are known without the code."""

from __future__ import annotations

import datetime

import cftime
import numpy as np
import pytest

from mcrnn.data.forcings import dates_of, forcing_values


def cosine(date: object, latitude: float, longitude: float) -> float:
    place = np.array([latitude]), np.array([longitude])
    return float(forcing_values(["solar-angle"], [date], place)["cos_solar_zenith"][0, 0, 0])


def test_solar_angle_is_that_of_the_almanac() -> None:
    # At noon of the equinox the sun is in the zenith of the equator, but for 7 minutes by which it is late in March.
    noon = datetime.datetime(2020, 3, 20, 12)
    assert cosine(noon, 0.0, 0.0) == pytest.approx(1.0, abs=1e-3)
    assert cosine(noon, 0.0, 180.0) == pytest.approx(-1.0, abs=1e-3)
    assert cosine(noon, 60.0, 0.0) == pytest.approx(0.5, abs=3e-3)
    # Solstice at 40 N, 105 W, where 19:00 UTC is 12:00 of mean time and the sun 1.8 minutes late: declination 23.44,
    # hour angle -0.45 degrees, so sin 40 sin 23.44 + cos 40 cos 23.44 cos 0.45 = 0.2557 + 0.7028 = 0.9585.
    assert cosine(datetime.datetime(2020, 6, 21, 19), 40.0, -105.0) == pytest.approx(0.9585, abs=1e-3)
    # Three hours later it is 45 degrees further: 0.2557 + 0.7028 cos 44.55 = 0.7565.
    assert cosine(datetime.datetime(2020, 6, 21, 22), 40.0, -105.0) == pytest.approx(0.7565, abs=2e-3)
    # The sun does not set in the polar summer, nor rise in the polar winter: sin 23.44 = 0.3978 at any hour.
    for hour in (0, 7, 18):
        assert cosine(datetime.datetime(2020, 6, 21, hour), 90.0, 33.0) == pytest.approx(0.3978, abs=1e-3)
        assert cosine(datetime.datetime(2020, 6, 21, hour), -90.0, 33.0) == pytest.approx(-0.3978, abs=1e-3)


def test_year_goes_around_once_in_every_calendar() -> None:
    dates = [cftime.datetime(2001, month, 1, calendar="360_day") for month in (1, 4, 7, 10)]
    found = forcing_values(["day-of-year"], dates, None)
    assert found["sin_day_of_year"].ravel() == pytest.approx([0, 1, 0, -1], abs=1e-6)
    assert found["cos_day_of_year"].ravel() == pytest.approx([1, 0, -1, 0], abs=1e-6)
    same = [datetime.datetime(2004, 2, 29, 6, 30), cftime.datetime(2004, 2, 29, 6, 30, calendar="standard")]
    values = forcing_values(["day-of-year"], same, None)["sin_day_of_year"].ravel()
    assert values[0] == values[1] == pytest.approx(np.sin(2 * np.pi * (59 + 6.5 / 24) / 366), abs=1e-7)


def test_dates_of_forecasts_are_one_for_all_or_one_for_each() -> None:
    assert [str(date) for date in dates_of("2001-02-03T06:00", 2, "noleap")] == ["2001-02-03 06:00:00"] * 2
    assert [date.day for date in dates_of(["2001-02-03", datetime.date(2001, 2, 4)], 2, "noleap")] == [3, 4]
    with pytest.raises(ValueError, match="2 dates are given for 3 forecasts"):
        dates_of(["2001-02-03", "2001-02-04"], 3, "noleap")
    with pytest.raises(ValueError, match="'soon' is no date such as 2018-03-01"):
        dates_of("soon", 1, "noleap")
