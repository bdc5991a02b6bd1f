"""Which windows of a split a training or an evaluation uses, in which order.

A window of `sequence_length` S takes S + 1 consecutive frames f_0 .. f_S: inputs f_0 .. f_{S-1}, targets f_1 .. f_S. An
epoch of a training has one window from a random position of each sample. An epoch of a series has consecutive windows
that do not overlap, whose common offset is drawn anew for each epoch.

Axes: N sample, B window of a batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.splits import Split
from mcrnn.errors import UserError

Starts = tuple[torch.Tensor, torch.Tensor]
"""Sample and first frame of each window, both int64 (windows,)."""


def check_length(frames: int, needed: int, purpose: str) -> None:
    """Refuse windows that are longer than the samples.

    Args:
        frames: number of frames of each sample.
        needed: number of frames of a window.
        purpose: what needs such windows, for the message.

    Raises:
        UserError: `needed` is above `frames`.
    """
    if needed > frames:
        raise UserError(f"{purpose} needs samples of {needed} frames, the store has {frames}")


def evaluation_windows(shape: tuple[int, ...], is_series: bool, steps: int, most: int | None = None) -> Starts:
    """Return the windows of an evaluation, which are the same at each call.

    Of samples, each has one window, which starts at its first frame. A series has as many windows as fit one after the
    other without overlap.

    Args:
        shape: shape of the split.
        is_series: whether the split is one sample with many times.
        steps: length of the evaluation; a window has one frame more.
        most: largest number of windows; where there are more, evenly spread ones are taken.

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
    """The windows of each epoch of a training, in random order.

    The windows of an epoch follow from the seed and the number of the epoch alone, so that a training can go on from a
    checkpoint with the same windows.

    Attributes:
        split: the training split.
        data: section `data` of the configuration.
        is_series: whether the split is one sample with many times.
        batch_size: windows of a global batch, which the workers share.
        seed: seed of the training.
    """

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
        """`data.windows_per_epoch` where it is set, else the number of windows of one pass over the split."""
        if self.data.windows_per_epoch is not None:
            return self.data.windows_per_epoch
        return self._windows_per_pass

    @property
    def _windows_per_pass(self) -> int:
        """Number of samples, or number of windows of a series that fit whatever their common offset is."""
        if not self.is_series:
            return self.split.shape[0]
        frames, window = self.split.shape[1], self.data.sequence_length + 1
        if self.data.fixed_windows:
            return frames // window
        return max(1, (frames - window + 1) // window)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return math.ceil(self.windows_per_epoch / self.batch_size)

    def starts(self, epoch: int) -> Starts:
        """Return sample and first frame of every window of an epoch, in the order in which they are used."""
        # Epochs have the lower 20 bits for themselves, so that no two pairs of seed and epoch share a generator.
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        passes = [self._pass(generator) for _ in range(math.ceil(self.windows_per_epoch / self._windows_per_pass))]
        samples, starts = (torch.cat(parts)[: self.windows_per_epoch] for parts in zip(*passes, strict=True))
        return samples, starts

    def _pass(self, generator: torch.Generator) -> Starts:
        """Draw the windows of one pass over the split: one of each sample, or one cover of the series."""
        count, window, frames = self._windows_per_pass, self.data.sequence_length + 1, self.split.shape[1]
        order = torch.randperm(count, generator=generator)
        if not self.is_series:
            num_starts = 1 if self.data.fixed_windows else frames - window + 1
            starts = torch.randint(num_starts, (count,), generator=generator)
            return order, starts
        largest_offset = 0 if self.data.fixed_windows else min(window - 1, frames - count * window)
        offset = torch.randint(largest_offset + 1, (), generator=generator)
        return torch.zeros_like(order), offset + order * window

    def epoch(self, epoch: int, rank: int = 0, world_size: int = 1, first_batch: int = 0) -> Iterator[Batch]:
        """Read the batches of an epoch, or one worker's part of each.

        Args:
            epoch: number of the epoch.
            rank: number of the worker.
            world_size: number of workers.
            first_batch: number of batches of the epoch that are left out because they have been trained on.
        """
        length = self.data.sequence_length + 1
        samples, starts = self.starts(epoch)
        for first in range(first_batch * self.batch_size, len(samples), self.batch_size):
            batch = torch.arange(first, min(first + self.batch_size, len(samples)))
            part = batch[rank::world_size]
            weight = len(part) * world_size / len(batch)
            if weight == 0:
                # The last batch may have fewer windows than there are workers. Every worker must take part in every
                # step, or the others would wait for it: this one computes on some window, with a weight of zero.
                part = batch[:1]
            yield Batch(self.split.windows(samples[part], starts[part], length), part.tolist(), weight)


@dataclass(frozen=True)
class Batch:
    """A worker's part of a global batch.

    Attributes:
        windows_BTCHW: (B, S + 1, C, H, W) in the field's units.
        positions: position of each window in the epoch; the noise of a window is drawn from it.
        weight: number of workers times the part's share of the global batch. Multiplied by it, the part's mean loss
            averages over the workers to the mean loss of the global batch.
    """

    windows_BTCHW: torch.Tensor
    positions: list[int]
    weight: float


def prefetch(batches: Iterator[Batch]) -> Generator[Batch]:
    """Yield the same batches, and read the next one in a thread while one is in use."""
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(next, batches, None)
        while (batch := reading.result()) is not None:
            reading = reader.submit(next, batches, None)
            yield batch
