"""The rules by which the windows of an evaluation start, so that all models are compared on the same windows."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

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
    dates = store.dates(split)
    last_start = shape[1] - steps - 1
    rule = rule or _default_rule(dates, warm_up, last_start)
    if rule == "apart":
        return evaluation_windows(shape, True, steps), "one after the other"
    if rule == "all":
        chosen = np.arange(last_start + 1)
    elif found := re.fullmatch(r"every[ =]?([1-9][0-9]*)", rule):
        chosen = np.arange(0, last_start + 1, int(found.group(1)))
    elif rule == "biweekly":
        if dates is None:
            raise UserError(f"--starts biweekly needs dates, which the frames of '{store.name}' have not; try all")
        chosen = biweekly_starts(dates, warm_up, last_start)
        if not len(chosen):
            raise UserError(
                f"no Monday or Thursday of the {split} split leaves room for {steps} steps; try --starts all"
            )
    else:
        raise UserError(f"--starts is all, 'every N', biweekly or apart, not '{rule}'")
    start = torch.from_numpy(chosen)
    return (torch.zeros_like(start), start), rule


def _default_rule(dates: Sequence[cftime.datetime] | None, warm_up: int, last_start: int) -> str:
    """Return the rule for a series where none is named: weekdays only where the frames have them all."""
    if dates is None:
        return "apart"
    if len(dates) > 1 and dates[1] - dates[0] > datetime.timedelta(days=1):
        return "all"  # weekly or monthly frames fall on one weekday, or on any
    return "biweekly" if len(biweekly_starts(dates, warm_up, last_start)) >= FEWEST_BIWEEKLY else "apart"


def biweekly_starts(dates: Sequence[cftime.datetime], warm_up: int, last_start: int) -> np.ndarray:
    """Return the starts whose last given frame is the first one of a Monday or Thursday.

    Calendars without leap days or with months of 30 days have weekdays of their own, which also come twice in 7 days.
    """
    days = [(date.year, date.month, date.day) for date in dates]
    given = range(warm_up - 1, warm_up + last_start)  # the last given frame begins the forecast
    first_of_day = (t for t in given if t == 0 or days[t] != days[t - 1])
    return np.array([t - warm_up + 1 for t in first_of_day if dates[t].dayofwk in WEEKDAYS], dtype=int)


def overlap_of(windows: Starts, steps: int) -> float | None:
    """Return how many consecutive windows share a frame, at least 1; None where each window is a sample of its own.

    Args:
        windows: sample and first frame of each window.
        steps: length of a window, which has one frame more.
    """
    sample_B, start_B = windows
    if len(sample_B) > 1 and len(sample_B.unique()) == len(sample_B):
        return None
    spacing = max(1.0, float(start_B[-1] - start_B[0]) / max(1, len(start_B) - 1))
    return max(1.0, (steps + 1) / spacing)
