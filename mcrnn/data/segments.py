"""The segments of a series: the parts between gaps in time, which no window crosses.

Segments are given by the positions of their first frames, in order; a series without gaps has the one that starts at 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Segments = tuple[int, ...]
"""Position of the first frame of each segment."""

WHOLE: Segments = (0,)
"""The segments of a series without gaps, and of samples."""


def spans(segments: Segments, frames: int) -> list[tuple[int, int]]:
    """Return the first frame of each segment, and the one after its last.

    Args:
        segments: the segments.
        frames: number of frames of the series.
    """
    return list(itertools.pairwise((*segments, frames)))


def within(segments: Segments, start: int, stop: int) -> Segments:
    """Return the segments of the frames `start` to `stop` - 1, counted from `start`."""
    return (0, *(first - start for first in segments if start < first < stop))


def starts_within(segments: Segments, frames: int, length: int, every: int = 1) -> np.ndarray:
    """Return the first frames of windows that lie within one segment each.

    Args:
        segments: the segments.
        frames: number of frames of the series.
        length: frames of a window.
        every: frames between the starts of a segment, the first of which is its first frame.
    """
    return np.concatenate([np.arange(first, stop - length + 1, every) for first, stop in spans(segments, frames)])


def segment_of(positions: Sequence[int] | np.ndarray, segments: Segments) -> np.ndarray:
    """Return the number of the segment in which each frame lies."""
    return np.searchsorted(np.asarray(segments), np.asarray(positions), side="right") - 1
