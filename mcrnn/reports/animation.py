"""Write animations as .mp4 or .gif. The package imageio-ffmpeg brings its own ffmpeg; none need be installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcrnn.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAMES_PER_SECOND = 12
"""Default speed of an animation."""


def write_animation(
    target: Path,
    figure: Figure,
    frames: int,
    draw: Callable[[int], None],
    *,
    frames_per_second: int = FRAMES_PER_SECOND,
    dpi: int = 110,
) -> None:
    """Write an animation.

    Args:
        target: file to write, which ends with .mp4 or .gif.
        figure: the figure that is animated.
        frames: number of frames.
        draw: called with the index of each frame; changes the figure to show that frame.
        frames_per_second: speed of the animation.
        dpi: resolution of the animation, in dots per inch.
    """
    import imageio_ffmpeg
    import matplotlib
    from matplotlib.animation import FFMpegWriter, PillowWriter

    matplotlib.rcParams["animation.ffmpeg_path"] = imageio_ffmpeg.get_ffmpeg_exe()
    # browsers and slides play yuv420p only, which needs even numbers of pixels
    even = ["-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
    mp4 = target.suffix.lower() == ".mp4"
    writer = (
        FFMpegWriter(frames_per_second, codec="libx264", extra_args=even) if mp4 else PillowWriter(frames_per_second)
    )
    with writer.saving(figure, str(target), dpi=dpi):
        for frame in range(frames):
            draw(frame)
            if frame == 0:
                fix_layout(figure)
            writer.grab_frame()


def fix_layout(figure: Figure) -> None:
    """Arrange a figure once and for all: matplotlib would do it again whenever the figure is drawn, and it is slow."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def check_animation(target: Path) -> None:
    """Refuse a file that no animation can be written to, before any work is done.

    Raises:
        UserError: the ending is neither .mp4 nor .gif, or the folder is missing.
    """
    if target.suffix.lower() not in (".mp4", ".gif"):
        raise UserError(f"an animation is written as .mp4 or .gif, not '{target.name}'")
    if not target.resolve().parent.is_dir():
        raise UserError(f"there is no folder '{target.parent}' for '{target.name}'")


def animate_channels(
    target: Path,
    frames_TCHW: np.ndarray,
    labels: Sequence[str],
    titles: Sequence[str],
    *,
    frames_per_second: int = FRAMES_PER_SECOND,
    on_frame: Callable[[int], None] = lambda index: None,
) -> None:
    """Write an animation of a field, with a panel for each channel and the same colours in all frames.

    Args:
        target: file to write, which ends with .mp4 or .gif.
        frames_TCHW: the frames, first row at the bottom.
        labels: name and units of each channel.
        titles: title of each frame.
        frames_per_second: speed of the animation.
        on_frame: called with the index of each frame that is drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    channels, height, width = frames_TCHW.shape[1:]
    size = (max(4.0, 4.0 * width / height) * channels + 0.8, 4.2)
    figure, grid = plt.subplots(1, channels, squeeze=False, figsize=size, layout="constrained")
    images = []
    for values_THW, label, axes in zip(frames_TCHW.swapaxes(0, 1), labels, grid[0], strict=True):
        low, high = np.nanquantile(values_THW, (0.0005, 0.9995))  # extremes would make all else pale
        images.append(axes.imshow(values_THW[0], origin="lower", vmin=low, vmax=high, cmap="viridis"))
        axes.set(xticks=[], yticks=[])
        figure.colorbar(images[-1], ax=axes, label=label)
    heading = figure.suptitle(titles[0])

    def draw(t: int) -> None:
        for image, values_HW in zip(images, frames_TCHW[t], strict=True):
            image.set_data(values_HW)
        heading.set_text(titles[t])
        on_frame(t)

    write_animation(target, figure, len(frames_TCHW), draw, frames_per_second=frames_per_second)
    plt.close(figure)
