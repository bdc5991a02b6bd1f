"""Write animations as .mp4 or .gif. The package imageio-ffmpeg brings its own ffmpeg; none need be installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
