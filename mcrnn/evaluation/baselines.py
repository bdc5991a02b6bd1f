"""What any forecaster must beat: persistence and climatology.

Both are forecasts of lead times 1 .. n, in the field's units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.store import FieldStore

DAYS_AROUND = 15
"""before and after a day of the year that count for its mean, so that a few years suffice"""


def persistence(frames_BTCHW: torch.Tensor, steps: int) -> torch.Tensor:
    """The last given frame, held: lead times 1 .. steps, (B, steps, C, H, W)."""
    return frames_BTCHW[:, -1:].expand(-1, steps, -1, -1, -1)


@dataclass(frozen=True)
class Climatology:
    """The training split's mean at each grid point: of dated series by day of the year and hour, else of all."""

    mean_KCHW: np.ndarray
    """of each key, float32"""
    key_T: np.ndarray | None
    """of each frame of the split that it is for; None where there is but one"""

    @classmethod
    def of(cls, store: FieldStore, split: str, data: DataConfig) -> Climatology:
        """Of a store's training split, for the frames of another; read object by object, summed in float64.

        Args:
            store: whose training split it is.
            split: whose frames it is for.
            data: which channels, and how coarse.
        """
        dates = store.dates("train")
        keys, hours = (None, []) if dates is None else _keys(dates, None)
        count = 1 if keys is None else 366 * len(hours)
        shape = store.shape("train", data.coarsen, data.variables)[2:]
        total_KCHW, number_K = np.zeros((count, *shape)), np.zeros(count)
        for _, times, values_NTCHW in store.blocks("train", data.coarsen, data.variables):
            if keys is None:
                total_KCHW[0] += values_NTCHW.sum((0, 1), dtype=np.float64)
                number_K[0] += values_NTCHW.shape[0] * values_NTCHW.shape[1]
            else:
                np.add.at(total_KCHW, keys[times], values_NTCHW[0])
                np.add.at(number_K, keys[times], 1)
        if keys is None:
            return cls((total_KCHW / number_K[:, None, None, None]).astype(np.float32), None)
        other = store.dates(split)
        assert other is not None
        key_T, _ = _keys(other, hours)
        around_K = _around(number_K, len(hours))[:, None, None, None]
        of_all_CHW = total_KCHW.sum(0) / number_K.sum()  # for days of the year that the training split lacks
        mean_KCHW = np.where(around_K > 0, _around(total_KCHW, len(hours)) / np.maximum(around_K, 1), of_all_CHW)
        return cls(mean_KCHW.astype(np.float32), key_T)

    def at(self, start_B: torch.Tensor, frames: slice) -> torch.Tensor:
        """Of windows' frames, (B, T, C, H, W).

        Args:
            start_B: first frame of each window in the split.
            frames: of the window, from its first one.
        """
        offsets = np.arange(frames.start, frames.stop)
        if self.key_T is None:
            mean_CHW = torch.from_numpy(self.mean_KCHW[0])
            return mean_CHW.expand(len(start_B), len(offsets), *mean_CHW.shape)
        return torch.from_numpy(self.mean_KCHW[self.key_T[start_B.numpy()[:, None] + offsets]])


def _keys(dates: list, hours: list[float] | None) -> tuple[np.ndarray, list[float]]:
    """The day of the year and hour of each date as one number, and the hours that there are."""
    of_day = np.array([date.hour + date.minute / 60 for date in dates])
    hours = sorted(set(of_day.tolist())) if hours is None else hours
    days = np.array([date.dayofyr - 1 for date in dates])
    return days * len(hours) + np.abs(of_day[:, None] - np.array(hours)).argmin(1), hours


def _around(sums_K: np.ndarray, hours: int) -> np.ndarray:
    """Sums over the days around each, round the year."""
    by_day = sums_K.reshape(366, hours, *sums_K.shape[1:])
    total = sum(np.roll(by_day, days, axis=0) for days in range(-DAYS_AROUND, DAYS_AROUND + 1))
    return np.asarray(total).reshape(sums_K.shape)
