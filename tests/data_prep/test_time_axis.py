"""Times that are regular but for gaps."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.time_axis import TimeAxis
from mcrnn.errors import UserError

HOUR = 3_600.0


def axis(hours: list[int]) -> TimeAxis:
    return TimeAxis.of(np.array(hours) * HOUR, "standard", "the data")


def test_interval_that_only_gaps_have_is_not_taken_for_the_one_that_was_asked_for() -> None:
    mornings = axis([24 * day + hour for day in range(20) for hour in (5, 6, 7)])
    with pytest.raises(UserError, match="--every 6h takes no two times that lie 6h apart"):
        mornings.every("6h")
    six_hourly, taken = axis([*range(24), *range(48, 96)]).every("6h")
    assert (six_hourly.step, six_hourly.segments) == ("6 h", (0, 4))
    assert taken.tolist() == [0, 6, 12, 18, *range(24, 72, 6)]


@pytest.mark.parametrize("missing", [1, 36, 100, 1000])
def test_gap_of_any_length_is_recognised_in_rounded_times(missing: int) -> None:
    hours = np.array([*range(400), *range(400 + missing, 800 + missing)]) + 701_280  # since 1900, so in 1980
    days = (hours / 24).astype(np.float32).astype(np.float64)
    rounding = float(np.spacing(np.float32(days[-1]))) * 86_400
    found = TimeAxis.of(days * 86_400, "standard", "the data", rounding)
    assert (found.step, found.segments) == ("1 h", (0, 400))
    assert np.array_equal(found.seconds, hours * HOUR)


def test_longest_gaps_are_named() -> None:
    hours = [hour for hour in range(200) if hour not in (3, 7, 11, *range(100, 140))]
    said = axis(hours).describe_gaps()
    assert "1900-01-05 03:00 to 1900-01-06 20:00 and 1 shorter ones" in said
