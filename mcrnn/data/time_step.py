"""The time between the frames of a field: which time follows another, in any calendar."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union, cast

if TYPE_CHECKING:
    import cftime

Time = Union["cftime.datetime", float]
"""A date, or a number where the times of a field have no units."""
SECONDS = {"s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
"""Units of a fixed interval, in seconds."""
MONTHS = {"month": 1, "months": 1, "year": 12, "years": 12}
"""Units of an interval of the calendar, in months."""
TOLERANCE = 1e-6
"""Share of the interval by which times may differ that are to be the same."""


@dataclass(frozen=True)
class TimeStep:
    """An interval: a fixed one between dates, one of whole months or years, or a number without units.

    Attributes:
        text: the interval as stores and models describe it, such as "6 h", "1 month" or "0.5".
        count: its number of units.
        unit: a key of `SECONDS` or `MONTHS`, or empty.
    """

    text: str
    count: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> TimeStep:
        """Read an interval.

        Raises:
            ValueError: it is none of the known forms.
        """
        found = re.fullmatch(r"([0-9.e+-]+) ?([a-z]*)", text.strip())
        if found is None or found.group(2) not in ("", *SECONDS, *MONTHS):
            raise ValueError(f"'{text}' is not an interval such as 6 h, 1 month or 0.5")
        return cls(text, float(found.group(1)), found.group(2))

    @property
    def words(self) -> str:
        """The interval in a sentence."""
        return "1 time unit" if self.text == "1" else self.text

    @property
    def needs_dates(self) -> bool:
        """Whether it lies between dates, and not between numbers."""
        return bool(self.unit)

    def after(self, time: Time, steps: int) -> Time:
        """Return the time some steps later, a date of the kind that is given (cftime, pandas or datetime).

        A day that the month does not have becomes the month's last day.
        """
        if not self.unit:
            return cast("float", time) + steps * self.count
        date = cast("cftime.datetime", time)
        if self.unit in SECONDS:
            return date + datetime.timedelta(seconds=steps * self.count * SECONDS[self.unit])
        months = 12 * date.year + date.month - 1 + steps * round(self.count) * MONTHS[self.unit]
        first = date.replace(year=months // 12, month=months % 12 + 1, day=1)
        days = ((first + datetime.timedelta(days=32)).replace(day=1) - first).days  # of the month, in any calendar
        return first.replace(day=min(date.day, days))

    def leads_to(self, earlier: Time, later: Time) -> bool:
        """Return whether one time is a step after another. Of steps of months, only the months are compared."""
        if self.unit in MONTHS:
            a, b = cast("cftime.datetime", earlier), cast("cftime.datetime", later)
            return 12 * (b.year - a.year) + b.month - a.month == round(self.count) * MONTHS[self.unit]
        return abs(self._between(earlier, later) - self.count) <= TOLERANCE * self.count

    def steps_between(self, earlier: Time, later: Time) -> int | None:
        """Return how many steps one time is after another; None where that is no whole number, or less than one."""
        if self.unit in MONTHS:
            a, b = cast("cftime.datetime", earlier), cast("cftime.datetime", later)
            steps = (12 * (b.year - a.year) + b.month - a.month) / (round(self.count) * MONTHS[self.unit])
        else:
            steps = self._between(earlier, later) / self.count
        count = round(steps)
        return count if count >= 1 and abs(steps - count) <= TOLERANCE * count else None

    def _between(self, earlier: Time, later: Time) -> float:
        """Return the number of units between two times, where the interval is a fixed one."""
        difference = later - earlier
        if isinstance(difference, datetime.timedelta):
            return difference.total_seconds() / SECONDS[self.unit]
        return float(difference)


def parse_date(text: str, calendar: str) -> cftime.datetime:
    """Read a date such as 2018-03-01 or 2018-03-01T06:00.

    Raises:
        ValueError: the text is no date of the calendar.
    """
    import cftime

    found = re.fullmatch(r"(-?\d+)-(\d\d?)-(\d\d?)(?:[T ](\d\d?)(?::(\d\d))?(?::(\d\d))?)?Z?", text)
    if found is None:
        raise ValueError(f"'{text}' is no date such as 2018-03-01 or 2018-03-01T06:00")
    return cftime.datetime(*(int(part or 0) for part in found.groups()), calendar=calendar)


def is_same(a: Time, b: Time) -> bool:
    """Return whether two times are the same, but for the rounding of numbers and of parts of a second."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= TOLERANCE * max(abs(a), abs(b), TOLERANCE)
    return abs(hours_between(a, b)) < 0.5 / 3_600


def hours_between(earlier: Time, later: Time) -> float:
    """Return the hours from one date to another."""
    return cast("datetime.timedelta", later - earlier).total_seconds() / 3_600


def show(time: Time) -> str:
    """Return a time as text, for example 1979-01-01 06:00 or 12.5."""
    if isinstance(time, int | float):
        return f"{time:g}"
    return time.strftime("%Y-%m-%d %H:%M" if not time.second else "%Y-%m-%d %H:%M:%S")
