"""Time axes of NetCDF files: in any calendar of the CF conventions, regular, cut into splits of whole days."""

from __future__ import annotations

from dataclasses import dataclass

import cftime
import numpy as np

from mcrnn.errors import UserError


@dataclass(frozen=True)
class TimeAxis:
    """Increasing times in one calendar, at a fixed interval or at calendar months, seasons or years."""

    seconds: np.ndarray
    """since `REFERENCE`, float64"""
    calendar: str
    step: str
    """'1 h', '6 h', '1 d', '1 month', '3 months', '1 year'"""

    REFERENCE = "seconds since 1900-01-01"

    @classmethod
    def of(cls, seconds: np.ndarray, calendar: str, origin: str) -> TimeAxis:
        """Recognise the interval.

        Args:
            seconds: since `REFERENCE` in the calendar.
            calendar: of the CF conventions.
            origin: where they come from, for messages.

        Raises:
            UserError: fewer than two times, or a gap or a repeat; names the first.
        """
        if len(seconds) < 2:
            raise UserError(f"{origin} has {len(seconds)} times; a series needs at least 2")
        steps = np.diff(seconds)
        usual = float(np.median(steps))
        wrong = np.abs(steps - usual) > max(1e-6 * abs(usual), 1e-3)
        if usual > 0 and not wrong.any():
            return cls(seconds, calendar, _name_of(usual))
        dates = cftime.num2date(seconds, cls.REFERENCE, calendar=calendar)
        months = np.array([12 * date.year + date.month for date in dates])
        month_steps = np.diff(months)
        if month_steps[0] > 0 and (month_steps == month_steps[0]).all() and steps.min() > 86_400 * 27:
            count = int(month_steps[0])
            years = count // 12 if count % 12 == 0 else 0
            name = f"{years} year{'s' * (years > 1)}" if years else f"{count} month{'s' * (count > 1)}"
            return cls(seconds, calendar, name)
        place = int(np.argmax(wrong if usual > 0 else steps <= 0))
        kind = "a repeat or a step back" if steps[place] <= 0 else "a gap"
        raise UserError(
            f"{origin} has {kind} in time: {show(dates[place])} is followed by {show(dates[place + 1])}, "
            f"where the interval is {_name_of(abs(usual))}. Leave the files out or repair them; "
            "windows across a gap would be wrong"
        )

    def date(self, index: int) -> cftime.datetime:
        """One time as a date."""
        return cftime.num2date(self.seconds[index], self.REFERENCE, calendar=self.calendar)

    def part(self, text: str, option: str) -> tuple[int, int]:
        """Indices [first, last) of a range of whole days, both ends included.

        Args:
            text: `START:END`, each a year, a month or a day, such as 1979:2014 or 1979-03:1979-05-15.
            option: where it was given, for messages.

        Raises:
            UserError: not such a range, or not covered by the axis.
        """
        ends = text.split(":")
        if len(ends) == 1:
            ends *= 2
        if len(ends) != 2:
            raise UserError(f"{option} {text} is not a range such as 1979:2014 or 1979-03-01:1979-05-31")
        first = _seconds(_parse(ends[0], self.calendar, option, after=False), self.calendar)
        beyond = _seconds(_parse(ends[1], self.calendar, option, after=True), self.calendar)
        if beyond <= first:
            raise UserError(f"{option} {text} ends before it starts")
        # times that stand in the middle of their interval, as monthly means do, cover it
        slack = max(86_400.0, float(np.diff(self.seconds).max()))
        if self.seconds[0] >= first + slack or self.seconds[-1] + slack < beyond:
            raise UserError(
                f"{option} {text} is not covered by the data, which has {show(self.date(0))} to {show(self.date(-1))}"
            )
        start, stop = np.searchsorted(self.seconds, [first, beyond])
        if start == stop:
            raise UserError(f"{option} {text} holds no time of the data")
        return int(start), int(stop)


def to_seconds(values: np.ndarray, units: str, calendar: str, origin: str) -> np.ndarray:
    """Times of a file as seconds since `TimeAxis.REFERENCE`.

    Raises:
        UserError: the units or the calendar are not of the CF conventions.
    """
    try:
        dates = cftime.num2date(values, units, calendar=calendar, only_use_cftime_datetimes=True)
        return np.asarray(cftime.date2num(dates, TimeAxis.REFERENCE, calendar=calendar), dtype=np.float64)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"the times of {origin} cannot be read: units '{units}', calendar '{calendar}' ({error})"
        ) from None


def show(date: cftime.datetime) -> str:
    """A date as people write it."""
    return date.strftime("%Y-%m-%d %H:%M")


def _seconds(date: cftime.datetime, calendar: str) -> float:
    return float(cftime.date2num(date, TimeAxis.REFERENCE, calendar=calendar))


def _parse(text: str, calendar: str, option: str, *, after: bool) -> cftime.datetime:
    """Midnight at the start of a year, month or day, or of the one after it."""
    try:
        parts = [int(part) for part in text.split("-")]
        if not 1 <= len(parts) <= 3:
            raise ValueError("year, month and day")
        year, month, day = (*parts, 1, 1)[:3]
        date = cftime.datetime(year, month, day, calendar=calendar)
        if not after:
            return date
        if len(parts) == 3:
            return cftime.num2date(_seconds(date, calendar) + 86_400, TimeAxis.REFERENCE, calendar=calendar)
        year, month = (year + 1, 1) if len(parts) == 1 or month == 12 else (year, month + 1)
        return cftime.datetime(year, month, 1, calendar=calendar)
    except ValueError as error:
        raise UserError(
            f"{option}: '{text}' is not a year, month or day such as 1979, 1979-03 or 1979-03-31 "
            f"in the calendar {calendar} ({error})"
        ) from None


def _name_of(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
