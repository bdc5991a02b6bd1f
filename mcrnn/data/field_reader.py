"""Read the field of a split object by object: the values of each, checked, as the configuration selects them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mcrnn.data.manifest import Manifest, damaged_error, map_ahead
from mcrnn.data.masks import coarse_mask

if TYPE_CHECKING:
    import zarr

Block = tuple[slice, slice, np.ndarray]
"""Samples and times of a part of a split, and its values (n, t, C, H, W), float32, in the field's units."""


@dataclass(frozen=True)
class FieldReader:
    """Reads the objects of one split.

    Attributes:
        manifest: the objects of the store.
        split: train, val or test.
        array: the field of the split as it is stored, (N, T, C, H, W).
        channels: positions of the channels that are wanted, in order.
        coarsen: side of the blocks of grid points that are averaged; it divides the grid.
        row_weights: weights of the rows in these means, see `coarsened`.
        mask: mask of the channels on the grid of the store, None where all points have values.
    """

    manifest: Manifest
    split: str
    array: zarr.Array
    channels: list[int]
    coarsen: int
    row_weights: np.ndarray | None
    mask: np.ndarray | None = None

    def blocks(self, into: np.ndarray | None = None) -> Iterator[Block]:
        """Read all objects in the order of the data, several at a time.

        Args:
            into: array of the whole split that receives the values; the blocks are then views of it.

        Raises:
            UserError: an object is damaged, or a value is not finite.
        """
        keys = sorted((key for key in self.manifest.objects if key.startswith(self._prefix)), key=self._origin)
        return map_ahead(functools.partial(self._load, into=into), keys)

    @property
    def _prefix(self) -> str:
        return f"{self.split}/field/c/"

    @property
    def _shard(self) -> tuple[int, ...]:
        assert self.array.shards is not None, "fields are always written in shards"
        return self.array.shards

    def _origin(self, key: str) -> tuple[int, int]:
        """Return the first sample and time of an object. Its key ends with its position among the shards, n/t/0/0/0."""
        n, t = key.removeprefix(self._prefix).split("/")[:2]
        return int(n) * self._shard[0], int(t) * self._shard[1]

    def _load(self, key: str, into: np.ndarray | None) -> Block:
        """Read an object, and select and average its values as they are wanted."""
        n, t = self._origin(key)
        samples = slice(n, min(n + self._shard[0], self.array.shape[0]))
        times = slice(t, min(t + self._shard[1], self.array.shape[1]))
        target = into[samples, times] if into is not None else None
        as_stored = self.coarsen == 1 and self.channels == list(range(self.array.shape[2]))
        if as_stored and target is not None:
            # Decoded where it is to be, because allocating memory and copying would take as long as decoding.
            self._decode(key, target)
            return samples, times, target
        values = np.empty((samples.stop - n, times.stop - t, *self.array.shape[2:]), np.float32)
        self._decode(key, values)
        if not as_stored:
            values = coarsened(values[:, :, self.channels], self.coarsen, self.row_weights, self.mask)
        if target is None:
            return samples, times, values
        target[...] = values
        return samples, times, target

    def _decode(self, key: str, out: np.ndarray) -> None:
        """Read an object and decode it into an array of its shape.

        Raises:
            UserError: the object is missing or damaged, or a value is not finite.
        """
        # Imported here because a served model imports this module and has none of the codecs installed.
        from mcrnn.data.sharding import decode

        content = self.manifest.read(key)
        try:
            decode(content, self._shard, self.array.chunks, out)
        except (ValueError, RuntimeError) as error:
            raise damaged_error(self.manifest.location, f"{key} cannot be decoded ({error})") from None
        if not np.isfinite(out).all():
            raise damaged_error(self.manifest.location, f"{key} has values that are not finite")


def coarsened(
    values: np.ndarray, block: int, row_weights: np.ndarray | None = None, mask_CHW: np.ndarray | None = None
) -> np.ndarray:
    """Return the means over blocks of `block` x `block` grid points, which lie along the last two axes.

    Args:
        values: float32 (..., height, width).
        block: side of a block; it divides height and width.
        row_weights: weight of each row, such as the area of its cells; None if all have the same.
        mask_CHW: points that count, of values (..., channel, height, width). Blocks without any have the mean of all.
    """
    if block == 1:
        return values
    if mask_CHW is not None:
        return _coarsened_within(mask_CHW, values, block, row_weights)
    *rest, height, width = values.shape
    blocks = values.reshape(*rest, height // block, block, width // block, block)
    if row_weights is None:
        return blocks.mean(axis=(-3, -1), dtype=np.float32)
    weights = row_weights.reshape(height // block, block)
    weights = weights / weights.sum(1, keepdims=True)
    rows = blocks.mean(axis=-1, dtype=np.float64)
    return (rows * weights[:, :, None]).sum(axis=-2).astype(np.float32)


def _coarsened_within(
    mask_CHW: np.ndarray, values: np.ndarray, block: int, row_weights: np.ndarray | None
) -> np.ndarray:
    """Return the means over the points of each block that are in a mask."""

    def sums(of: np.ndarray) -> np.ndarray:
        *rest, height, width = of.shape
        return of.reshape(*rest, height // block, block, width // block, block).sum((-3, -1))

    area_H1 = np.ones((mask_CHW.shape[1], 1)) if row_weights is None else row_weights[:, None]
    weights_CHW = np.where(mask_CHW, area_H1, 0.0)
    weights_CHW += ~np.repeat(np.repeat(coarse_mask(mask_CHW, block), block, 1), block, 2) * area_H1
    return (sums(np.where(weights_CHW > 0, values, 0.0) * weights_CHW) / sums(weights_CHW)).astype(np.float32)
