"""Which times or samples of a field the splits have: those of some dates, or some numbers of samples."""

from __future__ import annotations

import itertools

from data_prep.gridded_field import GriddedField
from data_prep.time_axis import TimeAxis
from mcrnn.errors import UserError

Ranges = dict[str, tuple[int, int]]
"""For each split its first time (or sample), and the one after its last."""


def split_ranges(field: GriddedField, splits: dict[str, str]) -> Ranges:
    """Return the times or samples of splits.

    Args:
        field: the field.
        splits: for each split the dates of a series, or the number of samples, as the options name them.

    Raises:
        UserError: see `_dates` and `_counts`.
    """
    return _dates(field, splits) if field.samples is None else _counts(field.samples, splits)


def _dates(field: GriddedField, splits: dict[str, str]) -> Ranges:
    """Return the times of splits by date.

    Raises:
        UserError: two splits share times, or the field does not cover one.
    """
    assert isinstance(field.axis, TimeAxis), "a series has dates"
    ranges = {name: field.axis.part(text, f"--{name}") for name, text in splits.items()}
    ordered = sorted(ranges.items(), key=lambda item: item[1])
    for (name, (_, stop)), (other, (start, _)) in itertools.pairwise(ordered):
        if start < stop:
            raise UserError(f"--{name} and --{other} overlap; splits must not share any day")
    return ranges


def _counts(samples: int, splits: dict[str, str]) -> Ranges:
    """Return the samples of splits by number: one after the other, in the order of the sources.

    Raises:
        UserError: a number is none, or all together are more than there are.
    """
    ranges: Ranges = {}
    start = 0
    for name, text in splits.items():
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"the field has {samples} samples, so that --{name} is a number of them, not '{text}'")
        ranges[name] = (start, start + int(text))
        start += int(text)
    if start > samples:
        raise UserError(f"the splits ask for {start} samples, and there are {samples}")
    return ranges
