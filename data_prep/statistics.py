"""Statistics of a field that is never in memory as a whole: exact in float64, mergeable, by channel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Count a channel; mean, sum of squared deviations and extremes of each channel."""

    count: int
    mean: list[float]
    squares: list[float]
    min: list[float]
    max: list[float]

    @classmethod
    def of(cls, field_NTCHW: np.ndarray) -> Statistics:
        """Statistics of an array of five dimensions, the third of which is the channel."""
        means, squares = [], []
        for channel in range(field_NTCHW.shape[2]):
            values = field_NTCHW[:, :, channel].astype(np.float64)
            means.append(float(values.mean()))
            squares.append(float(np.square(values - means[-1]).sum()))
        rest = (0, 1, 3, 4)
        return cls(
            field_NTCHW.size // field_NTCHW.shape[2],
            means,
            squares,
            field_NTCHW.min(rest).astype(float).tolist(),
            field_NTCHW.max(rest).astype(float).tolist(),
        )

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both sets of values (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        mean, squares = [], []
        for c, (ours, theirs) in enumerate(zip(self.mean, other.mean, strict=True)):
            delta = theirs - ours
            mean.append(ours + delta * other.count / count)
            squares.append(self.squares[c] + other.squares[c] + delta**2 * self.count * other.count / count)
        return Statistics(
            count,
            mean,
            squares,
            [min(pair) for pair in zip(self.min, other.min, strict=True)],
            [max(pair) for pair in zip(self.max, other.max, strict=True)],
        )

    def summary(self) -> dict[str, list[float]]:
        """mean, std (of the population), min and max of each channel."""
        std = [(s / self.count) ** 0.5 for s in self.squares]
        return {"mean": self.mean, "std": std, "min": self.min, "max": self.max}

    def to_json(self) -> dict[str, Any]:
        """For a marker."""
        return asdict(self)
