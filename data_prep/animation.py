"""An animation of one sample of a store, as the paper's generator has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.reports.animation import write_animation

MOST_FRAMES = 400
"""of a long series; more are thinned out"""


def check_target(target: Path) -> None:
    """Refuse what cannot be written, before any work.

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
    """Write the frames of a sample, one panel a channel, with fixed colours.

    Raises:
        UserError: no such sample, or the ending of `target` is neither .mp4 nor .gif.
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
        # at most a thousandth of the values beyond the colours, so that one extreme does not wash out the rest
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
