"""Windows of a split: in memory where it fits, read from the store where it does not.

A window of `sequence_length` S takes S + 1 consecutive frames f_0 .. f_S: inputs f_0 .. f_{S-1}, targets
f_1 .. f_S. An epoch has one random window of each training sample; of a series, consecutive windows that do
not overlap, whose common offset is drawn anew each epoch.

Axes: N sample, B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.splits import Split
from mcrnn.errors import UserError

if TYPE_CHECKING:
    pass

Starts = tuple[torch.Tensor, torch.Tensor]
"""sample and first frame of each window, int64 (windows,)"""


def check_length(frames: int, needed: int, what: str) -> None:
    """Refuse windows that are longer than the samples.

    Raises:
        UserError: `needed` is above `frames`.
    """
    if needed > frames:
        raise UserError(f"{what} needs samples of {needed} frames, the store has {frames}")


def evaluation_windows(shape: tuple[int, ...], is_series: bool, steps: int, most: int | None = None) -> Starts:
    """The fixed windows of an evaluation of `steps` steps: each sample's first frame, or, of a series, every
    steps + 1 frames.

    Args:
        shape: of the split.
        is_series: whether it is one sample with many times.
        steps: length of the evaluation; a window has one frame more.
        most: at most so many windows, evenly spread.

    Raises:
        UserError: the samples are too short.
    """
    check_length(shape[1], steps + 1, f"an evaluation of {steps} steps")
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


def prefetch(batches: Iterator[Batch]) -> Generator[Batch]:
    """The same batches, each read while the one before is in use."""
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(next, batches, None)
        while (batch := reading.result()) is not None:
            reading = reader.submit(next, batches, None)
            yield batch
