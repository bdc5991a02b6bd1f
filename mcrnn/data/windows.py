"""Which windows of a split a training or an evaluation uses, in which order.

A window of `sequence_length` S takes S + 1 consecutive frames f_0 .. f_S: inputs f_0 .. f_{S-1}, targets f_1 .. f_S. An
epoch of a training has one window from a random position of each sample. An epoch of a series has consecutive windows
that do not overlap, whose common offset is drawn anew for each epoch. Where the series has gaps, each of its segments
is covered in this way, and no window crosses a gap.

Axes: N sample, B window of a batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.segments import WHOLE, Segments, spans, starts_within
from mcrnn.data.splits import Split
from mcrnn.errors import UserError

Starts = tuple[torch.Tensor, torch.Tensor]
"""Sample and first frame of each window, both int64 (windows,)."""


def check_length(frames: int, needed: int, purpose: str, segments: Segments = WHOLE) -> None:
    """Refuse windows that are longer than the samples, or than all segments of a series.

    Args:
        frames: number of frames of each sample.
        needed: number of frames of a window.
        purpose: what needs such windows, for the message.
        segments: segments of a series.

    Raises:
        UserError: no sample or segment has as many frames as are needed.
    """
    longest = max(stop - first for first, stop in spans(segments, frames))
    if needed > longest and len(segments) > 1:
        raise UserError(
            f"{purpose} needs {needed} frames without a gap in time, and the longest of the {len(segments)} segments "
            f"between gaps has {longest}"
        )
    if needed > longest:
        raise UserError(f"{purpose} needs samples of {needed} frames, the store has {frames}")


def evaluation_windows(
    shape: tuple[int, ...], is_series: bool, steps: int, most: int | None = None, segments: Segments = WHOLE
) -> Starts:
    """Return the windows of an evaluation, which are the same at each call.

    Of samples, each has one window, which starts at its first frame. A series has as many windows as fit one after the
    other without overlap into each of its segments.

    Args:
        shape: shape of the split.
        is_series: whether the split is one sample with many times.
        steps: length of the evaluation; a window has one frame more.
        most: largest number of windows; where there are more, evenly spread ones are taken.
        segments: segments of a series.

    Raises:
        UserError: the samples or segments are too short.
    """
    check_length(shape[1], steps + 1, f"an evaluation of {steps} steps", segments)
    if is_series:
        starts = torch.from_numpy(starts_within(segments, shape[1], steps + 1, every=steps + 1))
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
        segments: segments of a series.
    """

    split: Split
    data: DataConfig
    is_series: bool
    batch_size: int
    seed: int
    segments: Segments = WHOLE

    def __post_init__(self) -> None:
        length = self.data.sequence_length
        check_length(self.split.shape[1], length + 1, f"data.sequence_length {length}", self.segments)

    @property
    def windows_per_epoch(self) -> int:
        """`data.windows_per_epoch` where it is set, else the number of windows of one pass over the split."""
        if self.data.windows_per_epoch is not None:
            return self.data.windows_per_epoch
        return self._windows_per_pass

    @property
    def _windows_per_pass(self) -> int:
        """Number of samples, or number of windows of a series that fit whatever the common offset of a segment is."""
        if not self.is_series:
            return self.split.shape[0]
        return sum(map(self._windows_in, spans(self.segments, self.split.shape[1])))

    def _windows_in(self, span: tuple[int, int]) -> int:
        """Return the number of windows of a pass over a segment, 0 where it is shorter than a window."""
        frames, window = span[1] - span[0], self.data.sequence_length + 1
        if self.data.fixed_windows or frames < window:
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
        """Draw the windows of one pass over the split: one of each sample, or those that cover each segment."""
        count, window, frames = self._windows_per_pass, self.data.sequence_length + 1, self.split.shape[1]
        order = torch.randperm(count, generator=generator)
        if not self.is_series:
            num_starts = 1 if self.data.fixed_windows else frames - window + 1
            starts = torch.randint(num_starts, (count,), generator=generator)
            return order, starts
        firsts: list[torch.Tensor] = []
        for span in spans(self.segments, frames):
            if covering := self._windows_in(span):
                spare = span[1] - span[0] - covering * window
                largest_offset = 0 if self.data.fixed_windows else min(window - 1, spare)
                offset = torch.randint(largest_offset + 1, (), generator=generator)
                firsts.append(span[0] + offset + torch.arange(covering) * window)
        return torch.zeros_like(order), torch.cat(firsts)[order]

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
