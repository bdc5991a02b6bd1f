"""The frames of a split: in memory where they fit, read from the store where they do not."""

from __future__ import annotations

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.store import FieldStore, coarsened
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import s3_request

if TYPE_CHECKING:
    import zarr


class Split(Protocol):
    """Frames of a split, wherever they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples, times, channels, height, width."""

    def windows(self, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
        """`length` consecutive frames of each sample from its start, (B, length, C, H, W), in field units."""

    def on(self, device: torch.device) -> Split:
        """The split where its windows are wanted, in the device's memory if it is in memory at all."""


@dataclass(frozen=True)
class MemorySplit:
    """A split in memory; a batch of windows is one indexing operation. Pickles without a copy."""

    field_NTCHW: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.field_NTCHW.shape

    @cached_property
    def _tensor(self) -> torch.Tensor:
        with warnings.catch_warnings():
            # shared memory is read-only, and indexing copies out of it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self.field_NTCHW)

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {"field_NTCHW": self.field_NTCHW}

    def on(self, device: torch.device) -> Split:
        """The same on a device."""
        if device.type == "cpu":
            return self
        return DeviceSplit(self._tensor.to(device))

    def windows(self, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
        return _gathered(self._tensor, sample_B, start_B, length)


@dataclass(frozen=True)
class DeviceSplit:
    """A split in the memory of a GPU."""

    field_NTCHW: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.field_NTCHW.shape)

    def windows(self, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
        def moved(index: torch.Tensor) -> torch.Tensor:
            return index.pin_memory().to(self.field_NTCHW.device, non_blocking=True)

        return _gathered(self.field_NTCHW, moved(sample_B), moved(start_B), length)

    def on(self, device: torch.device) -> Split:
        """The same on a device."""
        return DeviceSplit(self.field_NTCHW.to(device))


@dataclass(frozen=True)
class StoredSplit:
    """A split that is read from its store batch by batch, its windows side by side."""

    location: Location
    split: str
    coarsen: int
    variables: list[str] | None
    shape: tuple[int, ...]

    @cached_property
    def _store(self) -> FieldStore:
        # opened where it is used: handles of object storage do not survive a fork
        return FieldStore.open(self.location)

    @cached_property
    def _array(self) -> zarr.Array:
        return self._store.array(self.split)

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(16)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("location", "split", "coarsen", "variables", "shape")}

    def windows(self, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
        array = self._array
        channels = self._store.indices(self.variables)

        def read(place: tuple[int, int]) -> np.ndarray:
            sample, start = place

            def ask() -> np.ndarray:
                return np.asarray(array[sample, start : start + length])

            try:
                values = ask() if isinstance(self.location, LocalFolder) else s3_request(self.location.url, ask)
            except (ValueError, RuntimeError, OSError) as error:
                raise UserError(f"'{self.location.url}' is damaged: {self.split} cannot be read ({error})") from None
            if not np.isfinite(values).all():
                raise UserError(f"'{self.location.url}' is damaged: {self.split} has values that are not finite")
            return coarsened(values[:, channels], self.coarsen)

        places = zip(sample_B.tolist(), start_B.tolist(), strict=True)
        return torch.from_numpy(np.stack(list(self._readers.map(read, places))))

    def on(self, device: torch.device) -> Split:
        """Itself: its windows are read into the processor's memory."""
        return self


@dataclass(frozen=True)
class FieldData:
    """Training and validation splits with what a training must know of them; one copy serves a whole node."""

    train: Split
    val: Split
    mean: tuple[float, ...]
    """of each channel of the training split, in the field's units, before coarsening"""
    std: tuple[float, ...]
    padding: str
    is_series: bool

    @classmethod
    def load(cls, store: FieldStore, data: DataConfig) -> FieldData:
        """Load the splits, or leave on disk those that exceed the memory they may use."""
        return cls(
            train=open_split(store, "train", data),
            val=open_split(store, "val", data),
            mean=tuple(store.statistic("mean", data.variables)),
            std=tuple(store.statistic("std", data.variables)),
            padding=store.padding,
            is_series=store.is_series,
        )

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.shape[2:]
        return channels, height, width


def open_split(store: FieldStore, split: str, data: DataConfig) -> Split:
    """A split in memory, or read from its store where it is larger than `memory_budget`."""
    shape = store.shape(split, data.coarsen, data.variables)
    if 4 * math.prod(shape) > memory_budget():
        return StoredSplit(store.location, split, data.coarsen, data.variables, shape)
    return MemorySplit(store.load(split, data.coarsen, data.variables))


def memory_budget() -> float:
    """Bytes that a split may take: MCRNN_MEMORY in GB where it is set, else half of what is free now.

    Raises:
        UserError: MCRNN_MEMORY is not a number.
    """
    given = os.environ.get("MCRNN_MEMORY")
    if given is None:
        import psutil

        return psutil.virtual_memory().available / 2
    try:
        return float(given) * 1e9
    except ValueError:
        raise UserError(f"MCRNN_MEMORY is a number of GB such as 16, not '{given}'") from None


def _gathered(field_NTCHW: torch.Tensor, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
    samples, frames, *frame = field_NTCHW.shape
    values = math.prod(frame)
    # every window of the split as a row of one view: a batch is one gather of whole rows
    rows = field_NTCHW.as_strided((samples * frames - length + 1, length * values), (values, 1))
    return rows.index_select(0, sample_B * frames + start_B).view(-1, length, *frame)
