"""Statistics of each channel of a field that need not be in memory as a whole: those of its parts can be merged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Statistics of each channel, computed in float64.

    Attributes:
        count: number of values of each channel.
        mean: mean of each channel.
        squares: sum of the squared deviations from the mean of each channel.
        min: smallest value of each channel.
        max: largest value of each channel.
    """

    count: list[int]
    mean: list[float]
    squares: list[float]
    min: list[float]
    max: list[float]

    @classmethod
    def of(cls, field_NTCHW: np.ndarray, mask_CHW: np.ndarray | None = None) -> Statistics:
        """Compute the statistics of an array.

        Args:
            field_NTCHW: the array.
            mask_CHW: points that count, None for all.
        """
        found = cls([], [], [], [], [])
        for channel in range(field_NTCHW.shape[2]):
            chosen = field_NTCHW[:, :, channel] if mask_CHW is None else field_NTCHW[:, :, channel, mask_CHW[channel]]
            found.count.append(chosen.size)
            found.min.append(float(chosen.min()))
            found.max.append(float(chosen.max()))
            values = chosen.astype(np.float64)
            found.mean.append(float(values.mean()))
            values -= found.mean[-1]  # in place, because new memory would take as long as the arithmetic
            found.squares.append(float(np.square(values, out=values).sum()))
        return found

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Statistics:
        """Return the statistics of which `to_json` made a dictionary.

        In records of builds that were begun before there were masks, all channels have one count.
        """
        count, channels = content["count"], len(content["mean"])
        return cls(**content | {"count": [count] * channels if isinstance(count, int) else count})

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of values together.

        The sums of squares are merged by the update of Chan, Golub and LeVeque (1979, Stanford STAN-CS-79-773), which
        does not lose digits where the mean is large compared with the deviations.
        """
        counts, mean, squares = [], [], []
        for c, (mean_here, mean_there) in enumerate(zip(self.mean, other.mean, strict=True)):
            here, there = self.count[c], other.count[c]
            counts.append(count := here + there)
            delta = mean_there - mean_here
            mean.append(mean_here + delta * there / count)
            squares.append(self.squares[c] + other.squares[c] + delta**2 * here * there / count)
        return Statistics(
            counts,
            mean,
            squares,
            [min(pair) for pair in zip(self.min, other.min, strict=True)],
            [max(pair) for pair in zip(self.max, other.max, strict=True)],
        )

    @classmethod
    def from_summary(cls, summary: dict[str, list[float]], count: list[int]) -> Statistics:
        """Return the statistics of so many values of each channel, whose summary is known."""
        squares = [std**2 * n for std, n in zip(summary["std"], count, strict=True)]
        return cls(count, summary["mean"], squares, summary["min"], summary["max"])

    def summary(self) -> dict[str, list[float]]:
        """Return mean, standard deviation (of the population), min and max of each channel."""
        std = [(s / count) ** 0.5 for s, count in zip(self.squares, self.count, strict=True)]
        return {"mean": self.mean, "std": std, "min": self.min, "max": self.max}

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as a dictionary, from which `from_json` makes them again."""
        return asdict(self)
