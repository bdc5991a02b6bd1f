"""Animate one sample of a store, as the paper's data generator does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.reports.animation import animate_channels, check_animation

MOST_FRAMES = 400
"""Largest number of frames of an animation. Of longer samples, evenly spaced frames are shown."""


def animate_sample(
    store: FieldStore, split: str, sample: int, target: Path, on_frame: Callable[[int], None] = lambda n: None
) -> None:
    """Write an animation of a sample: one panel for each channel, with the same colours in all frames.

    Args:
        store: the store.
        split: train, val or test.
        sample: position of the sample in the split.
        target: the file to write, which ends with .mp4 or .gif.
        on_frame: called with the number of each frame that is drawn.

    Raises:
        UserError: there is no such sample, or `target` cannot be written, see
            `mcrnn.reports.animation.check_animation`.
    """
    check_animation(target)
    array = store.array(split)
    if not 0 <= sample < array.shape[0]:
        raise UserError(f"split '{split}' has samples 0 to {array.shape[0] - 1}, not {sample}")
    every = -(-array.shape[1] // MOST_FRAMES)
    frames_TCHW = np.asarray(array[sample, ::every])
    if (mask_CHW := store.mask()) is not None:
        frames_TCHW = np.where(mask_CHW, frames_TCHW, np.nan)
    if store.is_from_the_north:
        frames_TCHW = frames_TCHW[:, :, ::-1]
    units = store.units_of(store.channels)
    labels = [name if unit == "1" else f"{name} [{unit}]" for name, unit in zip(store.channels, units, strict=True)]
    titles = [f"{split} {sample}, frame {t * every + 1} of {array.shape[1]}" for t in range(len(frames_TCHW))]
    animate_channels(target, frames_TCHW, labels, titles, on_frame=on_frame)
