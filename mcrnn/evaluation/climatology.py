"""The climatology of a store's training split: computed once, kept with the store, and read as far as it is needed.

The climatology of hourly values at 0.25 degrees has 36 GB for each channel, which is more than most machines have
memory. So the sums over the training split are accumulated in a scratch file where they exceed the memory budget, the
means are written in slabs of some megabytes, and only those slabs that a batch needs are in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.memory import memory_budget
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.storage.location import Location

if TYPE_CHECKING:
    import cftime

DAYS_AROUND = 15
"""Days before and after a day of the year that are averaged with it, so that a few years of data suffice."""
DAYS = 366
VERSION = 1
"""Version of the files; another one makes them be computed anew."""
SLAB_BYTES = 16e6
"""Size of a file of means, at least the hours of one day."""
SHARE_OF_BUDGET = 0.25
"""Share of `memory_budget` that sums, and slabs that are kept in memory, may take."""
INDEX = "index.json"


@dataclass
class Slabs:
    """The means of all keys in files of consecutive keys, some of which are in memory.

    Attributes:
        location: folder of the files.
        shape: keys, channels, height and width.
        keys: number of keys in a file.
        loaded: the files that are in memory, by number, the one that was used last at the end.
    """

    location: Location
    shape: tuple[int, ...]
    keys: int
    loaded: dict[int, np.ndarray] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"loaded": {}}  # another process reads what it needs

    def __getitem__(self, key_BT: np.ndarray) -> np.ndarray:
        """Return the means of some keys, (*keys, C, H, W)."""
        found = np.empty((*key_BT.shape, *self.shape[1:]), dtype=np.float32)
        for number in np.unique(key_BT // self.keys).tolist():
            chosen = key_BT // self.keys == number
            found[chosen] = self._slab(number)[key_BT[chosen] - number * self.keys]
        return found

    def _slab(self, number: int) -> np.ndarray:
        slab = self.loaded.pop(number, None)
        if slab is None:
            slab = np.load(io.BytesIO(self.location.read(_slab_name(number))), allow_pickle=False)
            while self.loaded and (len(self.loaded) + 1) * slab.nbytes > SHARE_OF_BUDGET * memory_budget():
                self.loaded.pop(next(iter(self.loaded)))
        self.loaded[number] = slab
        return slab


@dataclass(frozen=True)
class Climatology:
    """The mean of the training split at each grid point, where frames have dates by day of the year and hour.

    A *key* is a pair of day of the year and hour, as one number; without dates there is a single key.

    Attributes:
        means: mean of each key, float32, (keys, C, H, W), in the field's units; an array, or files in parts.
        key_T: key of each frame of the split to forecast; None without dates.
    """

    means: np.ndarray | Slabs
    key_T: np.ndarray | None

    @classmethod
    def of(cls, store: FieldStore, split: str, data: DataConfig, elsewhere: Location | None = None) -> Climatology:
        """Read the climatology of a store's training split, or compute and keep it, to forecast another split.

        Args:
            store: the field store. The climatology is kept in its folder `climatology`.
            split: the split whose frames are forecast.
            data: the channels, and the number of grid points to coarsen by.
            elsewhere: folder where it is kept if the store's folder cannot be written.
        """
        dates = store.dates("train")
        hours = [] if dates is None else sorted({_hour(date) for date in dates})
        asked = {
            "version": VERSION,
            "store_digest": store.digest,
            "coarsen": data.coarsen,
            "channels": store.channel_indices(data.variables),
        }
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        places = [store.location.child("climatology").child(name)]
        places += [elsewhere.child("climatology").child(name)] if elsewhere is not None else []
        means: np.ndarray | Slabs | None = None
        for place in places:
            if means is None:
                means = _kept(place, asked)
        if means is None:
            means = _compute(store, data, None if dates is None else _keys(dates, hours), len(hours), places, asked)
        if dates is None:
            return cls(means, None)
        split_dates = store.dates(split)
        assert split_dates is not None
        return cls(means, _keys(split_dates, hours))

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
            mean_CHW = torch.from_numpy(self.means[np.zeros(1, dtype=int)][0])
            return mean_CHW.expand(len(start_B), len(offsets), *mean_CHW.shape)
        return torch.from_numpy(self.means[self.key_T[start_B.numpy()[:, None] + offsets]])


def _hour(date: cftime.datetime) -> float:
    return date.hour + date.minute / 60


def _keys(dates: Sequence[cftime.datetime], hours: Sequence[float]) -> np.ndarray:
    """Number dates by day of the year and hour, of which the nearest of `hours` is taken."""
    hour_T = np.array([_hour(date) for date in dates])
    day_T = np.array([date.dayofyr - 1 for date in dates])
    return day_T * len(hours) + np.abs(hour_T[:, None] - np.array(hours)).argmin(1)


def _slab_name(number: int) -> str:
    return f"{number:05d}.npy"


def _kept(place: Location, asked: dict[str, Any]) -> Slabs | None:
    """Return the climatology that is kept in a folder; None where there is none, or one of other data."""
    try:
        index = json.loads(place.read(INDEX))
        return Slabs(place, tuple(index["shape"]), index["keys"]) if index["asked"] == asked else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, UserError):
        return None


def _compute(
    store: FieldStore,
    data: DataConfig,
    key_T: np.ndarray | None,
    hours: int,
    places: Sequence[Location],
    asked: dict[str, Any],
) -> np.ndarray | Slabs:
    """Compute the means and keep them in the first place that can be written; in memory where there is none.

    The training split is read object by object, so that it need not fit in memory, and summed in float64.
    """
    shape = (1 if key_T is None else DAYS * hours, *store.shape("train", data.coarsen, data.variables)[2:])
    with tempfile.TemporaryFile(prefix="mcrnn-climatology-") as scratch:
        if 8 * math.prod(shape) > SHARE_OF_BUDGET * memory_budget():
            total_KCHW: np.ndarray = np.memmap(scratch, np.float64, "w+", shape=shape)
        else:
            total_KCHW = np.zeros(shape)
        frames_K = np.zeros(len(total_KCHW))
        for _, times, values_NTCHW in store.blocks("train", data.coarsen, data.variables):
            if key_T is None:
                total_KCHW[0] += values_NTCHW.sum((0, 1), dtype=np.float64)
                frames_K[0] += values_NTCHW.shape[0] * values_NTCHW.shape[1]
                continue
            for key, values_CHW in zip(key_T[times], values_NTCHW[0], strict=True):
                total_KCHW[key] += values_CHW
                frames_K[key] += 1
        keys = max(1, hours) * max(1, int(SLAB_BYTES / (4 * max(1, hours) * math.prod(shape[1:]))))
        for place in places:
            try:
                for number, slab_KCHW in enumerate(_slabs(total_KCHW, frames_K, hours, keys)):
                    content = io.BytesIO()
                    np.save(content, slab_KCHW)
                    place.write(_slab_name(number), content.getvalue())
                index = {"asked": asked, "shape": shape, "keys": keys}
                place.write(INDEX, json.dumps(index).encode())
                return Slabs(place, shape, keys)
            except UserError:
                continue  # a folder that cannot be written
        return np.concatenate(list(_slabs(total_KCHW, frames_K, hours, keys)))


def _slabs(total_KCHW: np.ndarray, frames_K: np.ndarray, hours: int, keys: int) -> Iterator[np.ndarray]:
    """Yield the means of all keys, so many at a time, over `DAYS_AROUND` days around each in a circular year.

    Args:
        total_KCHW: sum over the frames of each key.
        frames_K: number of frames of each key.
        hours: number of hours of a day that have keys; 0 without dates.
        keys: number of keys at a time, a multiple of `hours`.
    """
    if hours == 0:
        yield (total_KCHW / frames_K[:, None, None, None]).astype(np.float32)
        return
    total = total_KCHW.reshape(DAYS, hours, *total_KCHW.shape[1:])
    frames = frames_K.reshape(DAYS, hours, 1, 1, 1)
    overall_mean = sum(total[day].sum(0) for day in range(DAYS)) / frames.sum()  # for days that the split lacks
    around = np.arange(-DAYS_AROUND, DAYS_AROUND + 1)
    slab: list[np.ndarray] = []
    for day in range(DAYS):
        days = (day + around) % DAYS
        window_frames = frames[days].sum(0)
        window_total = np.zeros(total.shape[1:])
        for each in days:  # one after the other, so that memory holds one day of sums
            window_total += total[each]
        mean = np.where(window_frames > 0, window_total / np.maximum(window_frames, 1), overall_mean)
        slab.append(mean.astype(np.float32))
        if len(slab) * hours == keys or day == DAYS - 1:
            yield np.concatenate(slab)
            slab = []
