"""An animation of one sample of a store, as the paper's generator has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mcrnn.errors import UserError
from mcrnn.fields import FieldStore

FRAMES_PER_SECOND = 12
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

    ffmpeg comes with the package imageio-ffmpeg; none is needed on the machine.

    Raises:
        UserError: no such sample, or the ending of `target` is neither .mp4 nor .gif.
    """
    check_target(target)
    array = store.array(split)
    if not 0 <= sample < array.shape[0]:
        raise UserError(f"split '{split}' has samples 0 to {array.shape[0] - 1}, not {sample}")
    every = -(-array.shape[1] // MOST_FRAMES)
    frames_TCHW = np.asarray(array[sample, ::every])

    import imageio_ffmpeg
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import FFMpegWriter, PillowWriter

    matplotlib.rcParams["animation.ffmpeg_path"] = imageio_ffmpeg.get_ffmpeg_exe()
    channels, height, width = frames_TCHW.shape[1:]
    figure, grid = plt.subplots(
        1,
        channels,
        squeeze=False,
        figsize=(max(4.0, 4.0 * width / height) * channels + 0.8, 4.2),
        layout="constrained",
    )
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
    mp4 = target.suffix.lower() == ".mp4"
    # yuv420p is what browsers and slides can play; it wants even numbers of pixels
    even = ["-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
    writer = (
        FFMpegWriter(FRAMES_PER_SECOND, codec="libx264", extra_args=even) if mp4 else PillowWriter(FRAMES_PER_SECOND)
    )
    with writer.saving(figure, str(target), dpi=110):
        for t, frame_CHW in enumerate(frames_TCHW):
            for image, frame in zip(images, frame_CHW, strict=True):
                image.set_data(frame)
            title.set_text(f"{split} {sample}, frame {t * every + 1} of {array.shape[1]}")
            writer.grab_frame()
            on_frame(t)
    plt.close(figure)
