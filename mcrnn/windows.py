"""Windows of a split: in memory where it fits, read from the store where it does not.

A window of `sequence_length` S takes S + 1 consecutive frames f_0 .. f_S: inputs f_0 .. f_{S-1}, targets
f_1 .. f_S. An epoch has one random window of each training sample; of a series, consecutive windows that do
not overlap, whose common offset is drawn anew each epoch.

Axes: N sample, B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from mcrnn.config.sections import Configuration, DataConfig
from mcrnn.errors import UserError
from mcrnn.fields import FieldStore, coarsened
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.retry import answered

if TYPE_CHECKING:
    import zarr

Starts = tuple[torch.Tensor, torch.Tensor]
"""sample and first frame of each window, int64 (windows,)"""


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


def _gathered(field_NTCHW: torch.Tensor, sample_B: torch.Tensor, start_B: torch.Tensor, length: int) -> torch.Tensor:
    samples, frames, *frame = field_NTCHW.shape
    values = math.prod(frame)
    # every window of the split as a row of one view: a batch is one gather of whole rows
    rows = field_NTCHW.as_strided((samples * frames - length + 1, length * values), (values, 1))
    return rows.index_select(0, sample_B * frames + start_B).view(-1, length, *frame)


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
                values = ask() if isinstance(self.location, LocalFolder) else answered(self.location.url, ask)
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


@dataclass(frozen=True)
class Scaling:
    """Between the field's units and those the model sees, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: DataConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Scaling:
        """Of the training split's statistics, or none, as the configuration says."""
        return cls(mean, std) if data.normalize else cls((0.0,) * len(mean), (1.0,) * len(std))

    def to_model(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Field units to model units."""
        mean, std = self._like(x_BTCHW)
        return (x_BTCHW - mean) / std

    def to_physical(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Model units to field units."""
        mean, std = self._like(x_BTCHW)
        return x_BTCHW * std + mean

    def _like(self, x_BTCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = x_BTCHW.shape[-3]  # all, or the first that are predicted
        mean, std = (
            torch.tensor(v[:channels], dtype=x_BTCHW.dtype, device=x_BTCHW.device) for v in (self.mean, self.std)
        )
        return mean[:, None, None], std[:, None, None]


def check_length(frames: int, needed: int, what: str) -> None:
    """Refuse windows that are longer than the samples.

    Raises:
        UserError: `needed` is above `frames`.
    """
    if needed > frames:
        raise UserError(f"{what} needs samples of {needed} frames, the store has {frames}")


def check_exam(store: FieldStore, config: Configuration, sequence_length: int | None = None) -> None:
    """Refuse, before anything is loaded or started, a configuration that the store cannot serve.

    Raises:
        UserError: the grid, the variables or the length of the samples do not fit.
    """
    height, width = store.grid(config.data.coarsen)
    padding, reach = config.model.padding or store.padding, config.model.kernel_size // 2
    if (padding != "zeros" and width < reach) or (padding == "circular" and height < reach):
        raise UserError(
            f"model.kernel_size {config.model.kernel_size} is too large for a grid of {height} x {width}: make it "
            "smaller, or data.coarsen"
        )
    channels, predicted = len(store.indices(config.data.variables)), config.model.channels_out
    if predicted is not None and predicted > channels:
        raise UserError(f"model.channels_out ({predicted}) is above the number of variables ({channels})")
    exam, length = config.validation, sequence_length or config.data.sequence_length
    check_length(store.array("train").shape[1], length + 1, f"data.sequence_length {length}")
    check_length(
        store.array("val").shape[1],
        exam.warm_up + exam.horizon + 1,
        f"validation with warm_up {exam.warm_up} and horizon {exam.horizon}",
    )


def evaluation_windows(shape: tuple[int, ...], is_series: bool, steps: int, most: int | None = None) -> Starts:
    """The fixed windows of an exam of `steps` steps: each sample's first frame, or, of a series, every
    steps + 1 frames.

    Args:
        shape: of the split.
        is_series: whether it is one sample with many times.
        steps: of the exam; a window has one frame more.
        most: at most so many windows, evenly spread.

    Raises:
        UserError: the samples are too short.
    """
    check_length(shape[1], steps + 1, f"an exam of {steps} steps")
    if is_series:
        starts = torch.arange(0, shape[1] - steps, steps + 1)
        samples = torch.zeros_like(starts)
    else:
        samples = torch.arange(shape[0])
        starts = torch.zeros_like(samples)
    if most is not None and most < len(samples):
        picked = torch.linspace(0, len(samples) - 1, most).round().long()
        samples, starts = samples[picked], starts[picked]
    return samples, starts


@dataclass(frozen=True)
class TrainingWindows:
    """The windows of each epoch, in random order, anew each epoch and the same for the same seed."""

    split: Split
    data: DataConfig
    is_series: bool
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        length = self.data.sequence_length
        check_length(self.split.shape[1], length + 1, f"data.sequence_length {length}")

    @property
    def windows_per_epoch(self) -> int:
        """`data.windows_per_epoch`, or one a sample, or as many of a series as fit at every offset."""
        if self.data.windows_per_epoch is not None:
            return self.data.windows_per_epoch
        return self._windows_per_pass

    @property
    def _windows_per_pass(self) -> int:
        if not self.is_series:
            return self.split.shape[0]
        frames, window = self.split.shape[1], self.data.sequence_length + 1
        if self.data.fixed_windows:
            return frames // window
        return max(1, (frames - window + 1) // window)

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return math.ceil(self.windows_per_epoch / self.batch_size)

    def starts(self, epoch: int) -> Starts:
        """Sample and first frame of every window of an epoch, in order."""
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        passes = [self._pass(generator) for _ in range(math.ceil(self.windows_per_epoch / self._windows_per_pass))]
        samples, starts = (torch.cat(parts)[: self.windows_per_epoch] for parts in zip(*passes, strict=True))
        return samples, starts

    def _pass(self, generator: torch.Generator) -> Starts:
        count, window, frames = self._windows_per_pass, self.data.sequence_length + 1, self.split.shape[1]
        order = torch.randperm(count, generator=generator)
        if not self.is_series:
            highest = 1 if self.data.fixed_windows else frames - window + 1
            starts = torch.randint(highest, (count,), generator=generator)
            return order, starts
        slack = 0 if self.data.fixed_windows else min(window - 1, frames - count * window)
        offset = torch.randint(slack + 1, (), generator=generator)
        return torch.zeros_like(order), offset + order * window

    def epoch(self, epoch: int, rank: int = 0, world_size: int = 1, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_batch` on, or one worker's part of each."""
        length = self.data.sequence_length + 1
        samples, starts = self.starts(epoch)
        for first in range(first_batch * self.batch_size, len(samples), self.batch_size):
            whole = torch.arange(first, min(first + self.batch_size, len(samples)))
            mine = whole[rank::world_size]
            weight = len(mine) * world_size / len(whole)
            if weight == 0:
                mine = whole[:1]  # every worker takes part in every step; this one's weight is zero
            yield Batch(self.split.windows(samples[mine], starts[mine], length), mine.tolist(), weight)


@dataclass(frozen=True)
class Batch:
    """A worker's part of a global batch."""

    windows_BTCHW: torch.Tensor
    """(B, S + 1, C, H, W) in the field's units"""
    places: list[int]
    """of the windows in the epoch"""
    weight: float
    """the part's share of the global batch times the number of workers, by which its mean loss is multiplied so that
    the workers' mean is the global batch's mean"""


def ahead(batches: Iterator[Batch]) -> Generator[Batch]:
    """The same batches, each read while the one before is in use."""
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(next, batches, None)
        while (batch := reading.result()) is not None:
            reading = reader.submit(next, batches, None)
            yield batch
