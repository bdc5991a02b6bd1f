"""Padding of frames by what lies beyond the boundary of the field.

Axes: N frames, C channels, H height, W width; P grid points (H x W).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mcrnn import device

PADDINGS = ("circular", "cylinder", "zeros")


@dataclass(frozen=True)
class BoundaryPadding:
    """Pads frames by what lies beyond the boundary of the field.

    `circular` wraps both axes, `cylinder` wraps the width (longitude) and has zeros beyond the height (latitude),
    `zeros` has zeros beyond both.
    """

    rows: int
    """Rows wrapped around at either end of the height."""
    columns: int
    """Columns wrapped around at either end of the width."""
    zeros: tuple[int, int]
    """Rows and columns of zeros at either end, which the convolution itself adds."""

    @classmethod
    def of(cls, padding: str, kernel_size: int) -> BoundaryPadding:
        """Return the padding that keeps the grid under a convolution.

        Args:
            padding: circular, cylinder or zeros.
            kernel_size: of the convolution, odd.

        Raises:
            ValueError: the padding is unknown or the size even.
        """
        if padding not in PADDINGS:
            raise ValueError(f"padding must be {', '.join(PADDINGS[:-1])} or {PADDINGS[-1]}, not '{padding}'")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the grid is kept, not {kernel_size}")
        p = kernel_size // 2
        rows = p if padding == "circular" else 0
        columns = p if padding != "zeros" else 0
        return cls(rows, columns, (p - rows, p - columns))

    @property
    def kernel_size(self) -> int:
        """Side of the kernel whose convolution keeps the grid."""
        return 2 * (self.rows + self.zeros[0]) + 1

    def __call__(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Wrap frames of any memory layout around their edges, by one gather; the result is channels last.

        Raises:
            ValueError: the grid is smaller than what is wrapped around it.
        """
        if not self.rows and not self.columns:
            return x_NCHW.contiguous(memory_format=torch.channels_last)
        frames, channels, height, width = x_NCHW.shape
        points = device.constant(wrapped_points, height, width, self.rows, self.columns, x_NCHW.device, like=x_NCHW)
        x_NPC = x_NCHW.permute(0, 2, 3, 1).reshape(frames, height * width, channels)
        padded_NPC = x_NPC.index_select(1, points)
        return padded_NPC.view(frames, height + 2 * self.rows, -1, channels).permute(0, 3, 1, 2)

    def inside(self, padded_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the frames that were padded; a view."""
        height, width = padded_NCHW.shape[2:]
        return padded_NCHW[:, :, self.rows : height - self.rows, self.columns : width - self.columns]


def neighbours(height: int, width: int, boundary: BoundaryPadding, place: torch.device) -> torch.Tensor:
    """Return, for each grid point, the indices of the points around it, itself among them, row by row.

    Returns:
        (P k k,). The index of what lies beyond a boundary with zeros is P.

    Raises:
        ValueError: the grid is smaller than what is wrapped around it.
    """
    points = wrapped_points(height, width, boundary.rows, boundary.columns, place)
    rows, columns = boundary.zeros
    padded = points.view(height + 2 * boundary.rows, -1)
    padded = F.pad(padded, (columns, columns, rows, rows), value=height * width)
    return padded.unfold(0, boundary.kernel_size, 1).unfold(1, boundary.kernel_size, 1).flatten()


def wrapped_points(height: int, width: int, rows: int, columns: int, place: torch.device) -> torch.Tensor:
    """Return, for each point of the padded grid, the index of the grid point that it repeats."""
    if height < rows or width < columns:
        raise ValueError(
            f"a grid of {height} x {width} is too small for a kernel that reaches {max(rows, columns)} beyond it"
        )
    row = torch.arange(-rows, height + rows, device=place) % height
    column = torch.arange(-columns, width + columns, device=place) % width
    return (row[:, None] * width + column).flatten()
