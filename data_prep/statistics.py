"""Statistics of each channel of a field that need not be in memory as a whole: those of its parts can be merged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Statistics of each channel, computed in float64.

    Attributes:
        count: number of values of a channel.
        mean: mean of each channel.
        squares: sum of the squared deviations from the mean of each channel.
        min: smallest value of each channel.
        max: largest value of each channel.
    """

    count: int
    mean: list[float]
    squares: list[float]
    min: list[float]
    max: list[float]

    @classmethod
    def of(cls, field_NTCHW: np.ndarray) -> Statistics:
        """Compute the statistics of an array."""
        means, squares = [], []
        for channel in range(field_NTCHW.shape[2]):
            values = field_NTCHW[:, :, channel].astype(np.float64)
            means.append(float(values.mean()))
            values -= means[-1]  # in place, because new memory would take as long as the arithmetic
            squares.append(float(np.square(values, out=values).sum()))
        all_but_channel = (0, 1, 3, 4)
        return cls(
            field_NTCHW.size // field_NTCHW.shape[2],
            means,
            squares,
            field_NTCHW.min(all_but_channel).astype(float).tolist(),
            field_NTCHW.max(all_but_channel).astype(float).tolist(),
        )

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of values together.

        The sums of squares are merged by the update of Chan, Golub and LeVeque (1979, Stanford STAN-CS-79-773), which
        does not lose digits where the mean is large compared with the deviations.
        """
        count = self.count + other.count
        mean, squares = [], []
        for c, (mean_here, mean_there) in enumerate(zip(self.mean, other.mean, strict=True)):
            delta = mean_there - mean_here
            mean.append(mean_here + delta * other.count / count)
            squares.append(self.squares[c] + other.squares[c] + delta**2 * self.count * other.count / count)
        return Statistics(
            count,
            mean,
            squares,
            [min(pair) for pair in zip(self.min, other.min, strict=True)],
            [max(pair) for pair in zip(self.max, other.max, strict=True)],
        )

    def summary(self) -> dict[str, list[float]]:
        """Return mean, standard deviation (of the population), min and max of each channel."""
        std = [(s / self.count) ** 0.5 for s in self.squares]
        return {"mean": self.mean, "std": std, "min": self.min, "max": self.max}

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as a dictionary, from which `Statistics(**dictionary)` makes them again."""
        return asdict(self)
