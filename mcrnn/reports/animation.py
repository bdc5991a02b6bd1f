"""Moving pictures, as .mp4 or .gif; ffmpeg comes with the package imageio-ffmpeg, none is needed on the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAMES_PER_SECOND = 12


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
        target: file that ends with .mp4 or .gif.
        figure: that is drawn.
        frames: their number.
        draw: changes the figure to a frame.
        frames_per_second: of the result.
        dpi: of the result.
    """
    import imageio_ffmpeg
    import matplotlib
    from matplotlib.animation import FFMpegWriter, PillowWriter

    matplotlib.rcParams["animation.ffmpeg_path"] = imageio_ffmpeg.get_ffmpeg_exe()
    # yuv420p is what browsers and slides can play; it wants even numbers of pixels
    even = ["-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
    mp4 = target.suffix.lower() == ".mp4"
    writer = (
        FFMpegWriter(frames_per_second, codec="libx264", extra_args=even) if mp4 else PillowWriter(frames_per_second)
    )
    with writer.saving(figure, str(target), dpi=dpi):
        for frame in range(frames):
            draw(frame)
            writer.grab_frame()
