"""Masks: the points at which a field has no value at any time, such as land for the temperature of the sea.

A mask is a boolean array (C, H, W), True where the channel has values. Points outside count for nothing: neither in
statistics nor in loss, errors or means over blocks. None stands for a field with a value at every point.
"""

from __future__ import annotations

import base64
import functools
import zlib

import numpy as np


def coarse_mask(mask_CHW: np.ndarray, block: int) -> np.ndarray:
    """Return the mask of means over blocks, which have a value where at least one of their points has one.

    Args:
        mask_CHW: the mask.
        block: side of a block; it divides height and width.
    """
    channels, height, width = mask_CHW.shape
    blocks = mask_CHW.reshape(channels, height // block, block, width // block, block)
    return np.asarray(blocks.any((2, 4)))


def mask_weights(mask_CHW: np.ndarray, row_weights: np.ndarray | None = None) -> np.ndarray:
    """Return weights (C, H, W) whose product with a field has, as its plain mean, the mean over the points of the mask.

    Args:
        mask_CHW: the mask; each channel has a point.
        row_weights: weight of each row, such as the area of its cells; None if all have the same.
    """
    weights = mask_CHW.astype(np.float64) if row_weights is None else mask_CHW * row_weights[:, None]
    return weights / weights.mean((1, 2), keepdims=True)


def encode_mask(mask_CHW: np.ndarray | None) -> str:
    """Return a mask as text, such as models keep it in their JSON; empty for None."""
    if mask_CHW is None:
        return ""
    packed = zlib.compress(np.packbits(mask_CHW).tobytes(), 9)
    return f"{'x'.join(map(str, mask_CHW.shape))}:{base64.b64encode(packed).decode()}"


@functools.lru_cache(maxsize=16)
def decode_mask(text: str) -> np.ndarray | None:
    """Return the mask that `encode_mask` has made a text of, not to be written to."""
    if not text:
        return None
    sizes, _, packed = text.partition(":")
    shape = tuple(map(int, sizes.split("x")))
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    mask = np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
    mask.flags.writeable = False
    return mask
