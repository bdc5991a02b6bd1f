"""The baselines that any forecaster must beat: persistence and climatology.

Both forecast lead times 1 .. n, in the field's units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.store import FieldStore

DAYS_AROUND = 15
"""Days before and after a day of the year that are averaged with it, so that a few years of data suffice."""


def persistence(frames_BTCHW: torch.Tensor, steps: int) -> torch.Tensor:
    """Forecast that nothing changes.

    Args:
        frames_BTCHW: the given frames.
        steps: number of lead times.

    Returns:
        The last given frame at each of the lead times 1 .. steps, (B, steps, C, H, W), without copying it.
    """
    return frames_BTCHW[:, -1:].expand(-1, steps, -1, -1, -1)


@dataclass(frozen=True)
class Climatology:
    """The mean of the training split at each grid point, where frames have dates by day of the year and hour.

    A *key* is a pair of day of the year and hour, as one number; without dates there is a single key.

    Attributes:
        mean_KCHW: mean of each key, float32, in the field's units.
        key_T: key of each frame of the split to forecast; None without dates.
    """

    mean_KCHW: np.ndarray
    key_T: np.ndarray | None

    @classmethod
    def of(cls, store: FieldStore, split: str, data: DataConfig) -> Climatology:
        """Compute the climatology of a store's training split, to forecast the frames of another split.

        The training split is read object by object, so that it need not fit in memory, and summed in float64.

        Args:
            store: the field store.
            split: the split whose frames are forecast.
            data: the channels, and the number of grid points to coarsen by.
        """
        dates = store.dates("train")
        keys, hours = (None, []) if dates is None else _keys(dates, None)
        num_keys = 1 if keys is None else 366 * len(hours)
        shape = store.shape("train", data.coarsen, data.variables)[2:]
        total_KCHW, frames_K = np.zeros((num_keys, *shape)), np.zeros(num_keys)
        for _, times, values_NTCHW in store.blocks("train", data.coarsen, data.variables):
            if keys is None:
                total_KCHW[0] += values_NTCHW.sum((0, 1), dtype=np.float64)
                frames_K[0] += values_NTCHW.shape[0] * values_NTCHW.shape[1]
            else:
                np.add.at(total_KCHW, keys[times], values_NTCHW[0])
                np.add.at(frames_K, keys[times], 1)
        if keys is None:
            return cls((total_KCHW / frames_K[:, None, None, None]).astype(np.float32), None)
        split_dates = store.dates(split)
        assert split_dates is not None
        key_T, _ = _keys(split_dates, hours)
        window_frames_K = _sum_over_days(frames_K, len(hours))[:, None, None, None]
        window_total_KCHW = _sum_over_days(total_KCHW, len(hours))
        overall_mean_CHW = total_KCHW.sum(0) / frames_K.sum()  # for days of the year that the training split lacks
        mean_KCHW = np.where(window_frames_K > 0, window_total_KCHW / np.maximum(window_frames_K, 1), overall_mean_CHW)
        return cls(mean_KCHW.astype(np.float32), key_T)

    def at(self, start_B: torch.Tensor, frames: slice) -> torch.Tensor:
        """Return the climatology at frames of windows.

        Args:
            start_B: index in the split of each window's first frame.
            frames: the frames to forecast, counted from the window's first one.

        Returns:
            (B, T, C, H, W), float32.
        """
        offsets = np.arange(frames.start, frames.stop)
        if self.key_T is None:
            mean_CHW = torch.from_numpy(self.mean_KCHW[0])
            return mean_CHW.expand(len(start_B), len(offsets), *mean_CHW.shape)
        return torch.from_numpy(self.mean_KCHW[self.key_T[start_B.numpy()[:, None] + offsets]])


def _keys(dates: list, hours: list[float] | None) -> tuple[np.ndarray, list[float]]:
    """Number the dates by day of the year and hour.

    Args:
        dates: dates of frames, as cftime objects.
        hours: hours of the day that have a key, of which the nearest is taken; by default those of the dates.

    Returns:
        The key of each date, and the hours of the day.
    """
    hour_T = np.array([date.hour + date.minute / 60 for date in dates])
    hours = sorted(set(hour_T.tolist())) if hours is None else hours
    day_T = np.array([date.dayofyr - 1 for date in dates])
    return day_T * len(hours) + np.abs(hour_T[:, None] - np.array(hours)).argmin(1), hours


def _sum_over_days(values_K: np.ndarray, hours: int) -> np.ndarray:
    """Sum values by key over `DAYS_AROUND` days before and after each; the year is a circle."""
    by_day = values_K.reshape(366, hours, *values_K.shape[1:])
    total = sum(np.roll(by_day, days, axis=0) for days in range(-DAYS_AROUND, DAYS_AROUND + 1))
    return np.asarray(total).reshape(values_K.shape)
