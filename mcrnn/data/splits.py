"""The frames of a split: in memory where they fit, else read from the store batch by batch.

Axes: N sample, B window of a batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.description import FieldDescription
from mcrnn.data.field_reader import coarsened
from mcrnn.data.memory import device_memory_budget, memory_budget
from mcrnn.data.segments import WHOLE, Segments
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import s3_request

if TYPE_CHECKING:
    import zarr

READERS = 16
"""Threads in which a `StoredSplit` reads the windows of a batch."""


class Split(Protocol):
    """The frames of a split, wherever they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of samples, times and channels, height and width."""

    def windows(self, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
        """Return windows of consecutive frames.

        Args:
            sample_B: sample of each window, int64.
            start_B: first frame of each window, int64.
            length: frames of a window.

        Returns:
            (B, length, C, H, W), in the field's units.
        """

    def on(self, device: torch.device) -> Split:
        """Return the split in the memory of a device, or unchanged where it does not fit or is not in memory."""


@dataclass(frozen=True)
class MemorySplit:
    """A split in this machine's memory. Pickling does not copy it, so Ray's workers on a node share one copy."""

    field_NTCHW: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.field_NTCHW.shape

    @cached_property
    def _tensor(self) -> torch.Tensor:
        with warnings.catch_warnings():
            # Ray's shared memory is read-only. PyTorch warns of that, but windows are copies and nothing writes to it.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self.field_NTCHW)

    def __getstate__(self) -> dict[str, np.ndarray]:
        # Without the tensor: PyTorch would pickle a copy of its values.
        return {"field_NTCHW": self.field_NTCHW}

    def on(self, device: torch.device) -> Split:
        if device.type == "cpu" or self.field_NTCHW.nbytes > device_memory_budget(device):
            return self
        return DeviceSplit(self._tensor.to(device))

    def windows(self, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
        return _gather_windows(self._tensor, sample_B, start_B, length)


@dataclass(frozen=True)
class DeviceSplit:
    """A split in the memory of a GPU."""

    field_NTCHW: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.field_NTCHW.shape)

    def windows(self, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
        # Pinned memory is copied to the GPU without the host waiting for it.
        sample_B, start_B = (
            index_B.pin_memory().to(self.field_NTCHW.device, non_blocking=True) for index_B in (sample_B, start_B)
        )
        return _gather_windows(self.field_NTCHW, sample_B, start_B, length)

    def on(self, device: torch.device) -> Split:
        return DeviceSplit(self.field_NTCHW.to(device))


@dataclass(frozen=True)
class StoredSplit:
    """A split that does not fit in memory. The windows of a batch are read from its store at the same time.

    Attributes:
        location: folder of the store.
        split: train, val or test.
        coarsen: side of the blocks of grid points that are averaged.
        variables: names of the channels, None for all.
        shape: samples, times, channels, height and width, after coarsening.
    """

    location: Location
    split: str
    coarsen: int
    variables: list[str] | None
    shape: tuple[int, ...]

    @cached_property
    def _store(self) -> FieldStore:
        # Opened in the process that reads, because connections to object storage do not survive a fork.
        return FieldStore.open(self.location)

    @cached_property
    def _array(self) -> zarr.Array:
        return self._store.array(self.split)

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READERS)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("location", "split", "coarsen", "variables", "shape")}

    def windows(self, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
        def read(sample: int, start: int) -> np.ndarray:
            return self._read(sample, slice(start, start + length))

        windows = self._readers.map(read, sample_B.tolist(), start_B.tolist())
        return torch.from_numpy(np.stack(list(windows)))

    def _read(self, sample: int, times: slice) -> np.ndarray:
        """Return some frames of a sample, (T, C, H, W).

        Raises:
            UserError: the store is damaged, or stays out of reach.
        """

        def request() -> np.ndarray:
            return np.asarray(self._array[sample, times])

        try:
            values = request() if isinstance(self.location, LocalFolder) else s3_request(self.location.url, request)
        except UserError:
            raise  # storage that cannot be reached, or refuses to answer, is not damaged
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"'{self.location.url}' is damaged: {self.split} cannot be read ({error})") from None
        if not np.isfinite(values).all():
            raise UserError(f"'{self.location.url}' is damaged: {self.split} has values that are not finite")
        store, variables = self._store, self.variables
        chosen = values[:, store.channel_indices(variables)]
        return coarsened(chosen, self.coarsen, store.row_weights, store.mask(variables=variables))

    def on(self, device: torch.device) -> Split:
        return self


@dataclass(frozen=True)
class FieldData:
    """All that a training needs of a store. Ray keeps one copy of it for all workers of a node.

    Attributes:
        train: the training split.
        val: the validation split.
        field: description of the field.
        is_series: whether each split is one sample with many times.
        train_segments: segments of the training split.
        val_segments: segments of the validation split.
    """

    train: Split
    val: Split
    field: FieldDescription
    is_series: bool
    train_segments: Segments = WHOLE
    val_segments: Segments = WHOLE

    @classmethod
    def load(cls, store: FieldStore, data: DataConfig) -> FieldData:
        """Load the training and validation splits, or leave on disk those that exceed `memory_budget`."""
        return cls(
            train=open_split(store, "train", data),
            val=open_split(store, "val", data),
            field=FieldDescription.of(store, data),
            is_series=store.is_series,
            train_segments=store.segments("train"),
            val_segments=store.segments("val"),
        )


def open_split(store: FieldStore, split: str, data: DataConfig) -> Split:
    """Load a split into memory, or leave it in its store where it is larger than `memory_budget`."""
    shape = store.shape(split, data.coarsen, data.variables)
    if 4 * math.prod(shape) > memory_budget():
        return StoredSplit(store.location, split, data.coarsen, data.variables, shape)
    return MemorySplit(store.load(split, data.coarsen, data.variables))


@dataclass(frozen=True)
class SplitAddress:
    """Where a split is, so that another process can open it within a memory budget of its own.

    Attributes:
        location: folder of the store.
        digest: digest of the store, which may have got other frames since.
        split: train, val or test.
        data: the channels, and the number of grid points to coarsen by.
    """

    location: Location
    digest: str
    split: str
    data: DataConfig

    def open(self) -> Split:
        """Open the split, see `open_split`.

        Raises:
            UserError: the store is out of reach, damaged, or another one by now.
        """
        store = FieldStore.open(self.location).as_of(self.digest)
        if store.digest != self.digest:
            raise UserError(f"the store '{store.name}' has been built anew meanwhile: run the same command again")
        return open_split(store, self.split, self.data)

    def unopened(self, shape: tuple[int, ...]) -> StoredSplit:
        """Return the split without any frames in memory; `shape` is its shape."""
        return StoredSplit(self.location, self.split, self.data.coarsen, self.data.variables, shape)


def _gather_windows(
    field_NTCHW: torch.Tensor, sample_B: torch.Tensor, start_B: torch.Tensor, length: int
) -> torch.Tensor:
    """Copy windows out of a contiguous field by a single indexing operation.

    Seen as a sequence of N * T frames, the field has a window starting at every frame, and consecutive windows overlap
    in all frames but one. `as_strided` makes these overlapping windows the rows of a matrix without copying, so that a
    batch is a selection of rows.
    """
    samples, frames, *frame_shape = field_NTCHW.shape
    frame_size = math.prod(frame_shape)
    rows = field_NTCHW.as_strided((samples * frames - length + 1, length * frame_size), (frame_size, 1))
    return rows.index_select(0, sample_B * frames + start_B).view(-1, length, *frame_shape)
