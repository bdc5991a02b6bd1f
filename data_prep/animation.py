"""Animate one sample of a store, as the paper's data generator does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.reports.animation import write_animation

MOST_FRAMES = 400
"""Largest number of frames of an animation. Of longer samples, evenly spaced frames are shown."""


def check_target(target: Path) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        UserError: the ending is neither .mp4 nor .gif, or the folder is missing.
    """
    if target.suffix.lower() not in (".mp4", ".gif"):
        raise UserError(f"an animation is written as .mp4 or .gif, not '{target.name}'")
    if not target.resolve().parent.is_dir():
        raise UserError(f"there is no folder '{target.parent}' for '{target.name}'")


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
        UserError: there is no such sample, or `target` cannot be written, see `check_target`.
    """
    check_target(target)
    array = store.array(split)
    if not 0 <= sample < array.shape[0]:
        raise UserError(f"split '{split}' has samples 0 to {array.shape[0] - 1}, not {sample}")
    every = -(-array.shape[1] // MOST_FRAMES)
    frames_TCHW = np.asarray(array[sample, ::every])

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    channels, height, width = frames_TCHW.shape[1:]
    figure, grid = plt.subplots(
        1,
        channels,
        squeeze=False,
        figsize=(max(4.0, 4.0 * width / height) * channels + 0.8, 4.2),
        layout="constrained",
    )
    if store.is_from_the_north:
        frames_TCHW = frames_TCHW[:, :, ::-1]
    images = []
    for c, axes in enumerate(grid[0]):
        # The range of colours leaves out a thousandth of the values, so that extremes do not make all others pale.
        low, high = np.quantile(frames_TCHW[:, c], (0.0005, 0.9995))
        images.append(axes.imshow(frames_TCHW[0, c], origin="lower", vmin=low, vmax=high, cmap="viridis"))
        axes.set(xticks=[], yticks=[])
        units = store.attributes["units"]
        label = store.channels[c] if units == "1" else f"{store.channels[c]} [{units}]"
        figure.colorbar(images[-1], ax=axes, label=label)
    title = figure.suptitle("frame 1")

    def draw(t: int) -> None:
        for image, frame in zip(images, frames_TCHW[t], strict=True):
            image.set_data(frame)
        title.set_text(f"{split} {sample}, frame {t * every + 1} of {array.shape[1]}")
        on_frame(t)

    write_animation(target, figure, len(frames_TCHW), draw)
    plt.close(figure)
