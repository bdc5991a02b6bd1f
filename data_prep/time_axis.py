"""Time axes of files: regular but for gaps, in any calendar of the CF conventions, cut into splits of whole days."""

from __future__ import annotations

import re
from dataclasses import dataclass

import cftime
import numpy as np

from mcrnn.data.segments import WHOLE, Segments
from mcrnn.data.time_step import SECONDS, show
from mcrnn.errors import UserError

SHOWN_GAPS = 3
"""Gaps that a message names."""


@dataclass(frozen=True)
class TimeAxis:
    """Increasing times in one calendar, at a fixed interval or at one of whole calendar months or years.

    Where times are missing, there is a *gap*: a step of several intervals. It ends a segment.

    Attributes:
        seconds: the times in seconds since `REFERENCE`, float64.
        calendar: name of the calendar in the CF conventions.
        step: the interval in words, such as "1 h", "6 h", "1 d", "1 month", "3 months" or "1 year".
        segments: position of the first time of each segment.
    """

    seconds: np.ndarray
    calendar: str
    step: str
    segments: Segments = WHOLE

    REFERENCE = "seconds since 1900-01-01"
    """Units of all times, in the words of the CF conventions."""

    @classmethod
    def of(cls, seconds: np.ndarray, calendar: str, origin: str, rounding: float = 0.0) -> TimeAxis:
        """Recognise the interval of some times.

        Args:
            seconds: the times in seconds since `REFERENCE`.
            calendar: name of their calendar in the CF conventions.
            origin: where the times come from, for messages.
            rounding: seconds between two neighbouring numbers of the type that the times were stored in. What was
                rounded more coarsely than to milliseconds is made regular again.

        Raises:
            UserError: there are fewer than two times, or one repeats, or a step is not a multiple of the interval; the
                message names the first.
        """
        if len(seconds) < 2:
            raise UserError(f"{origin} has {len(seconds)} times; a series needs at least 2")
        if rounding > 1e-3 and (regular := _without_rounding(seconds, rounding)) is not None:
            seconds = regular
        steps = np.diff(seconds)
        usual = float(np.quantile(steps, 0.5, method="lower"))
        tolerance = max(1e-6 * abs(usual), 1e-3)
        if usual > 0 and not (np.abs(steps - usual) > tolerance).any():
            return cls(seconds, calendar, _name_of(usual))
        dates = cftime.num2date(seconds, cls.REFERENCE, calendar=calendar)
        months = np.array([12 * date.year + date.month for date in dates])
        month_steps = np.diff(months)
        intervals = np.maximum(np.rint(steps / usual), 1.0) if usual > 0 else np.ones(len(steps))
        wrong = np.abs(steps - intervals * usual) > tolerance * intervals
        if usual > 0 and not wrong.any():
            return cls(seconds, calendar, _name_of(usual), _after_gaps(intervals))
        # Fewer than 27 days between two times mean that they only happen to fall into successive months.
        count = int(np.quantile(month_steps, 0.5, method="lower"))
        if count > 0 and not (month_steps % count).any() and month_steps.min() > 0 and steps.min() > 86_400 * 27:
            years = count // 12 if count % 12 == 0 else 0
            name = f"{years} year{'s' * (years > 1)}" if years else f"{count} month{'s' * (count > 1)}"
            return cls(seconds, calendar, name, _after_gaps(month_steps / count))
        index = int(np.argmax(wrong if usual > 0 else steps <= 0))
        kind = "a repeat or a step back" if steps[index] <= 0 else "an irregular step"
        raise UserError(
            f"{origin} has {kind} in time: {show(dates[index])} is followed by {show(dates[index + 1])}, "
            f"where the interval is {_name_of(abs(usual))}. Leave the files out or repair them; "
            "times may be missing, but all steps are multiples of the interval"
        )

    def describe_gaps(self) -> str:
        """Return the longest gaps in words: the last time before each and the first after it; empty without gaps."""
        lengths = {first: self.seconds[first] - self.seconds[first - 1] for first in self.segments[1:]}
        longest = sorted(sorted(lengths, key=lambda first: -lengths[first])[:SHOWN_GAPS])
        gaps = [f"{show(self.date(first - 1))} to {show(self.date(first))}" for first in longest]
        return ", ".join(gaps) + f" and {len(lengths) - SHOWN_GAPS} shorter ones" * (len(lengths) > SHOWN_GAPS)

    @property
    def _steps_without_gaps(self) -> np.ndarray:
        """The steps between times of one segment, in seconds."""
        return np.delete(np.diff(self.seconds), [first - 1 for first in self.segments[1:]])

    def date(self, index: int) -> cftime.datetime:
        """Return the time at a position as a date."""
        return cftime.num2date(self.seconds[index], self.REFERENCE, calendar=self.calendar)

    def dates(self, start: int, stop: int) -> list[cftime.datetime]:
        """Return the times at the positions from `start` to `stop` - 1 as dates."""
        return list(cftime.num2date(self.seconds[start:stop], self.REFERENCE, calendar=self.calendar))

    def every(self, text: str) -> tuple[TimeAxis, np.ndarray]:
        """Take one of so many times.

        Args:
            text: the interval that is wanted, such as 6h, 30min or 2d. Intervals that divide a day start at midnight.

        Returns:
            The axis of the times that are taken, and their positions in this one.

        Raises:
            UserError: the text is no such interval, or no multiple of that of the data.
        """
        match = re.fullmatch(r"([1-9][0-9]*) ?(min|h|d)", text.strip())
        if match is None:
            raise UserError(f"--every is an interval such as 30min, 6h or 1d, not '{text}'")
        wanted = int(match[1]) * SECONDS[match[2]]
        steps = self._steps_without_gaps
        stride = round(wanted / float(steps[0]))
        if stride < 1 or np.abs(stride * steps - wanted).max() > 1e-3 * stride:
            raise UserError(f"--every {text} is no multiple of the interval of the data, {self.step}")
        phase = min(wanted, 86_400.0)
        on_time = np.flatnonzero(np.abs(np.mod(self.seconds + 1e-3, phase)) < 2e-3)
        intervals = np.concatenate([[0.0], np.cumsum(np.rint(np.diff(self.seconds) / float(steps[0])))])
        taken = np.flatnonzero(np.mod(intervals - intervals[on_time[0] if len(on_time) else 0], stride) == 0)
        apart = np.rint(np.diff(intervals[taken]) / stride)
        if not (apart == 1).any():
            raise UserError(
                f"--every {text} takes no two times that lie {text} apart: there are gaps, or too few times"
            )
        return TimeAxis(self.seconds[taken], self.calendar, _name_of(wanted), _after_gaps(apart)), taken

    def part(self, text: str, option: str) -> tuple[int, int]:
        """Find the times of a range of whole days.

        Args:
            text: `FROM:TO`, each a year, a month or a day and both included, such as 1979:2014 or 1979-03:1979-05-15.
                One year, month or day alone is a range, too.
            option: the option that has this value, for messages.

        Returns:
            Position of the first time in the range, and of the first after it.

        Raises:
            UserError: the text is not such a range, or the times do not cover it.
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
        # A time may stand in the middle of the interval that it covers, as those of monthly means do.
        interval = float(self._steps_without_gaps.max())
        if self.seconds[0] >= first + interval or self.seconds[-1] + interval < beyond:
            raise UserError(
                f"{option} {text} is not covered by the data, which has {show(self.date(0))} to {show(self.date(-1))} "
                f"every {self.step}; a split has whole days"
            )
        start, stop = np.searchsorted(self.seconds, [first, beyond])
        if start == stop:
            raise UserError(f"{option} {text} holds no time of the data")
        return int(start), int(stop)


def same_calendar(calendar: str, other: str, first_seconds: float) -> bool:
    """Return whether two calendars, named as `calendar_name` does, agree from a time on."""
    both = {calendar, other}
    begins_1582 = _seconds(cftime.datetime(1582, 10, 15, calendar="standard"), "standard")
    return len(both) == 1 or (both == {"standard", "proleptic_gregorian"} and first_seconds >= begins_1582)


def calendar_name(text: str) -> str:
    """Return the name of a calendar, one of those that mean the same."""
    lower = text.strip().lower()
    return {"gregorian": "standard", "365_day": "noleap", "366_day": "all_leap"}.get(lower, lower)


def to_seconds(values: np.ndarray, units: str, calendar: str, origin: str) -> np.ndarray:
    """Convert the times of a file to seconds since `TimeAxis.REFERENCE`.

    Args:
        values: the times as they are in the file.
        units: their units, such as "hours since 1979-01-01".
        calendar: name of their calendar.
        origin: where the times come from, for messages.

    Raises:
        UserError: the units or the calendar are not of the CF conventions.
    """
    if not values.size:
        return np.zeros(0)
    try:
        dates = cftime.num2date(values, units, calendar=calendar, only_use_cftime_datetimes=True)
        return np.asarray(cftime.date2num(dates, TimeAxis.REFERENCE, calendar=calendar), dtype=np.float64)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"the times of {origin} cannot be read: units '{units}', calendar '{calendar}' ({error})"
        ) from None


def rounding_in_seconds(values: np.ndarray, units: str, calendar: str) -> float:
    """Return how far two neighbouring numbers of the type of some times are apart, in seconds."""
    if values.dtype.kind != "f" or not len(values):
        return 0.0
    largest = values[np.abs(values).argmax()]
    apart = np.float64(np.nextafter(largest, values.dtype.type(np.inf))) - np.float64(largest)
    # In whole units, because dates have no more than microseconds.
    one = to_seconds(np.array([0.0, 1.0]), units, calendar, "the times")
    return float(apart * (one[1] - one[0]))


def _without_rounding(seconds: np.ndarray, rounding: float) -> np.ndarray | None:
    """Return times that are regular but for gaps and differ from some times by their rounding only.

    Returns:
        The times, None if there are none.
    """
    steps = np.diff(seconds)
    usual = float(np.quantile(steps, 0.5, method="lower"))
    usual = float(steps[steps < 1.5 * usual].mean()) if usual > 0 else usual  # nearer to the interval than one step
    with_gaps = np.maximum(np.rint(steps / usual), 1.0) if usual > 0 else np.ones(len(steps))
    for intervals in (np.ones(len(steps)), with_gaps):
        position = np.concatenate([[0.0], np.cumsum(intervals)])
        mean = float(seconds[-1] - seconds[0]) / position[-1]
        if mean < 2 * rounding:
            return None
        step = _nice(mean, 2 * rounding / position[-1])
        regular = _nice(float(seconds[0]), rounding) + step * position
        if np.abs(regular - seconds).max() <= 2 * rounding:
            return regular
    return None


def _after_gaps(intervals: np.ndarray) -> Segments:
    """Return the position of the first time of each segment.

    Args:
        intervals: number of intervals between each time and the next; more than 1 in a gap.
    """
    return (0, *(int(index) + 1 for index in np.flatnonzero(intervals > 1.5)))


def _nice(seconds: float, uncertainty: float) -> float:
    """Return the number of whole days, else hours, minutes or seconds, that a time or interval may be."""
    for unit in (86_400, 3_600, 60, 1):
        whole = round(seconds / unit) * unit
        if whole > 0 and abs(whole - seconds) <= uncertainty:
            return float(whole)
    return seconds


def _seconds(date: cftime.datetime, calendar: str) -> float:
    return float(cftime.date2num(date, TimeAxis.REFERENCE, calendar=calendar))


def _parse(text: str, calendar: str, option: str, *, after: bool) -> cftime.datetime:
    """Return midnight at the start of a year, month or day, or at the start of the one after it."""
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
    """Return an interval in the largest unit of which it is a multiple, such as "6 h"."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
