"""The rules by which the windows of an evaluation start, so that all models are compared on the same windows."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mcrnn.data.segments import WHOLE, Segments, segment_of, starts_within
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import Starts, evaluation_windows
from mcrnn.errors import UserError

if TYPE_CHECKING:
    import cftime

WEEKDAYS = (0, 3)
"""Monday and Thursday, on which the weather centres start their reforecasts."""
FEWEST_BIWEEKLY = 2
"""Where fewer forecasts start on these days, the default is another rule."""


def windows_by_rule(
    store: FieldStore, split: str, shape: tuple[int, ...], steps: int, warm_up: int, rule: str | None
) -> tuple[Starts, str]:
    """Return the windows that a rule gives.

    Args:
        store: the field store.
        split: name of the split.
        shape: shape of the split.
        steps: length of a window, which has one frame more.
        warm_up: number of given frames, of which the last one begins the forecast.
        rule: `all`, `every N`, `biweekly` or `apart`; None for the default, see `EvaluationSet.of`.

    Returns:
        The windows, and the rule as it is reported.

    Raises:
        UserError: there is no such rule, or it does not fit the store.
    """
    if not store.is_series:
        if rule is not None:
            raise UserError(f"--starts is for series; '{store.name}' has samples, each evaluated from its first frame")
        return evaluation_windows(shape, False, steps), "every sample from its first frame"
    dates, segments = store.dates(split), store.segments(split)
    possible = starts_within(segments, shape[1], steps + 1)
    rule = rule or _default_rule(dates, warm_up, possible, segments)
    if rule == "apart":
        return evaluation_windows(shape, True, steps, segments=segments), "one after the other"
    if rule == "all":
        chosen = possible
    elif found := re.fullmatch(r"every[ =]?([1-9][0-9]*)", rule):
        chosen = starts_within(segments, shape[1], steps + 1, every=int(found.group(1)))
    elif rule == "biweekly":
        if dates is None:
            raise UserError(f"--starts biweekly needs dates, which the frames of '{store.name}' have not; try all")
        chosen = biweekly_starts(dates, warm_up, possible)
        if not len(chosen):
            raise UserError(
                f"no Monday or Thursday of the {split} split leaves room for {steps} steps; try --starts all"
            )
    else:
        raise UserError(f"--starts is all, 'every N', biweekly or apart, not '{rule}'")
    start = torch.from_numpy(chosen)
    return (torch.zeros_like(start), start), rule


def _default_rule(
    dates: Sequence[cftime.datetime] | None, warm_up: int, possible: np.ndarray, segments: Segments
) -> str:
    """Return the rule for a series where none is named: weekdays only where the frames have them all."""
    if dates is None:
        return "apart"
    before_gaps = {first - 1 for first in segments}
    first = next((t for t in range(len(dates) - 1) if t not in before_gaps), None)
    if first is not None and dates[first + 1] - dates[first] > datetime.timedelta(days=1):
        return "all"  # weekly or monthly frames fall on one weekday, or on any
    return "biweekly" if len(biweekly_starts(dates, warm_up, possible)) >= FEWEST_BIWEEKLY else "apart"


def biweekly_starts(dates: Sequence[cftime.datetime], warm_up: int, possible: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the starts whose last given frame is the first one of a Monday or Thursday.

    Calendars without leap days or with months of 30 days have weekdays of their own, which also come twice in 7 days.

    Args:
        dates: date of each frame.
        warm_up: number of given frames.
        possible: first frames of the windows among which is chosen.
    """
    days = [(date.year, date.month, date.day) for date in dates]
    given = (int(start) + warm_up - 1 for start in possible)  # the last given frame begins the forecast
    first_of_day = (t for t in given if t == 0 or days[t] != days[t - 1])
    return np.array([t - warm_up + 1 for t in first_of_day if dates[t].dayofwk in WEEKDAYS], dtype=int)


def overlap_of(windows: Starts, steps: int, segments: Segments = WHOLE) -> float | None:
    """Return how many consecutive windows share a frame, at least 1; None where each window is a sample of its own.

    Args:
        windows: sample and first frame of each window.
        steps: length of a window, which has one frame more.
        segments: segments of a series. Windows of different ones share no frame.
    """
    sample_B, start_B = windows
    if len(sample_B) > 1 and len(sample_B.unique()) == len(sample_B):
        return None
    same_segment = np.diff(segment_of(start_B.numpy(), segments)) == 0
    spacings = np.diff(start_B.numpy())[same_segment]
    if len(segments) > 1 and not len(spacings):
        return 1.0
    spacing = max(1.0, float(spacings.sum()) / max(1, len(spacings)))
    return max(1.0, (steps + 1) / spacing)
