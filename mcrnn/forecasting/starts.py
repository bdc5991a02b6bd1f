"""Where forecasts start: which frames are the last given ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mcrnn.data.time_step import Time, is_same, parse_date, show
from mcrnn.errors import UserError
from mcrnn.forecasting.frames import GivenFrames


def find_starts(given: GivenFrames, wanted: Sequence[str], warm_up: int) -> list[int]:
    """Return the last given frame of each forecast.

    Args:
        given: the frames.
        wanted: times of last given frames, `all` or `every N`; where there are none, the newest frame.
        warm_up: number of frames that a forecast is given.

    Raises:
        UserError: there is no such frame, there are too few before it, or they are not as far apart as the model takes
            them.
    """
    times = given.times
    if len(times) < warm_up:
        raise UserError(
            f"'{given.name}' has {len(times)} frames, and a forecast is given {warm_up}: give more frames, or ask for "
            "fewer given ones (warm-up)"
        )
    frames: list[int] = []
    gaps = {i for i in range(len(times) - 1) if not given.step.leads_to(times[i], times[i + 1])}
    for text in wanted:
        every = re.fullmatch(r"every[ =]?([1-9]\d*)", "every 1" if text == "all" else text)
        if every is None:
            frames.append(_frame_at(given, text))
        else:
            possible = range(warm_up - 1, len(times), int(every.group(1)))
            frames += [last for last in possible if not gaps.intersection(range(last - warm_up + 1, last))]
    if not wanted:
        frames.append(len(times) - 1)
    for last in frames:
        _check(given, last, warm_up, gaps)
    if not frames:
        raise UserError(f"'{given.name}' has nowhere {warm_up} frames in a row that are {given.step.words} apart")
    return sorted(set(frames))


def _frame_at(given: GivenFrames, text: str) -> int:
    """Return the frame of a time.

    Raises:
        UserError: the text is no time, or there is no frame of that time.
    """
    time = _parse(text, given.times[0])
    same = [i for i, t in enumerate(given.times) if is_same(t, time)]
    if len(same) != 1:
        first, last = show(given.times[0]), show(given.times[-1])
        raise UserError(
            f"start {text}: '{given.name}' has {'no frame' if not same else 'several frames'} of this time; its "
            f"{len(given.times)} frames are from {first} to {last}"
        )
    return same[0]


def _parse(text: str, like: Time) -> Time:
    """Read a time: a number, or a date in the calendar of the times."""
    if isinstance(like, int | float):
        try:
            return float(text)
        except ValueError:
            raise UserError(f"a start is a time such as {show(like)}, 'all' or 'every N', not '{text}'") from None
    try:
        return parse_date(text, like.calendar)
    except ValueError:
        raise UserError(
            f"a start is a date such as 2018-03-01 or 2018-03-01T06:00 in the calendar {like.calendar}, 'all' or "
            f"'every N', not '{text}'"
        ) from None


def _check(given: GivenFrames, last: int, warm_up: int, gaps: set[int]) -> None:
    first = last - warm_up + 1
    if first < 0:
        raise UserError(
            f"'{given.name}' has {last + 1} frames up to {show(given.times[last])}, and a forecast is given {warm_up}: "
            "start later, or ask for fewer given frames (warm-up)"
        )
    if between := sorted(gaps.intersection(range(first, last))):
        a, b = given.times[between[0]], given.times[between[0] + 1]
        raise UserError(
            f"'{given.name}' has a frame of {show(a)} followed by one of {show(b)}; the model takes frames "
            f"{given.step.words} apart, without gaps"
        )
