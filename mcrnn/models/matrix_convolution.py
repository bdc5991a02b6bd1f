"""Convolutions on processors as products of matrices: the values around each grid point, times the weight.

Frames lie in memory with the channels last, so that the channels of a point are one run. One gather copies the values
around some points, across the boundary as well, so that no frame is padded; they stay in the cache. For the few
channels of these networks this is faster than to pad a single frame and to let PyTorch convolve it, and with AVX2 up to
1.6 times as fast for several frames, too. `python -m benchmarks.models` measures the whole step.

Axes: N frames, C channels, H height, W width; P grid points (H x W), K output channels, k side of the kernel; R values
around a point (k x k x C).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from mcrnn import device
from mcrnn.models.boundary import BoundaryPadding, neighbours

VALUES_AT_A_TIME = 1 << 18
"""Values around grid points that are copied at a time, 1 MiB: they stay in the cache of one core."""

LARGEST_SINGLE_FRAME = 51_200
"""Values of a frame, 200 channels of 16 x 16, up to which the product is used with AVX-512."""


def is_faster(x_NCHW: torch.Tensor) -> bool:
    """Return whether the functions below are at least as fast as PyTorch's for these frames."""
    if type(x_NCHW) is not torch.Tensor or x_NCHW.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if not device.on_processor(x_NCHW):
        return False
    vectors = torch.backends.cpu.get_cpu_capability()
    is_small = len(x_NCHW) == 1 and x_NCHW.numel() <= LARGEST_SINGLE_FRAME
    return vectors == "AVX2" or (vectors == "AVX512" and is_small)


def matrix_of(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight (K, C, k, k) as the matrix that `convolve` takes, (R, K); a copy without gradients."""
    return weight.detach().permute(2, 3, 1, 0).reshape(-1, len(weight)).contiguous()


@torch.no_grad()
def convolve(
    x_NCHW: torch.Tensor, matrix_RK: torch.Tensor, bias: torch.Tensor | None, boundary: BoundaryPadding
) -> torch.Tensor:
    """Convolve frames; nothing is recorded for autograd.

    Args:
        x_NCHW: the frames, channels last.
        matrix_RK: the weight, see `matrix_of`.
        bias: (K,), or None.
        boundary: what lies beyond the boundary.

    Returns:
        (N, K, H, W), channels last.
    """
    frames, channels, height, width = x_NCHW.shape
    points, outputs = height * width, matrix_RK.shape[1]
    is_one_product = frames == 1 and points <= _points_at_a_time(channels, boundary)
    result_NPK = None if is_one_product else x_NCHW.new_empty(frames, points, outputs)
    for frame, part, around_PR in _neighbourhoods(x_NCHW, boundary):
        out_PK = None if result_NPK is None else result_NPK[frame, part]
        if bias is None:
            result_PK = torch.mm(around_PR, matrix_RK, out=out_PK)
        else:
            result_PK = torch.addmm(bias, around_PR, matrix_RK, out=out_PK)
    result_NPK = result_PK if result_NPK is None else result_NPK
    return result_NPK.view(frames, height, width, outputs).permute(0, 3, 1, 2)


@torch.no_grad()
def parameter_gradients(
    grad_NKHW: torch.Tensor, x_NCHW: torch.Tensor, boundary: BoundaryPadding
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of weight, channels last, and bias, given that of the results of `convolve`."""
    frames, channels = x_NCHW.shape[:2]
    outputs, side = grad_NKHW.shape[1], boundary.kernel_size
    grad_NPK = grad_NKHW.permute(0, 2, 3, 1).reshape(frames, -1, outputs)
    of_weight = x_NCHW.new_zeros(outputs, side * side * channels)
    for frame, points, around_PR in _neighbourhoods(x_NCHW, boundary):
        of_weight.addmm_(grad_NPK[frame, points].t(), around_PR)
    return of_weight.view(outputs, side, side, channels).permute(0, 3, 1, 2), grad_NPK.sum((0, 1))


def _points_at_a_time(channels: int, boundary: BoundaryPadding) -> int:
    """Return the number of grid points around which values are copied at a time."""
    return max(1, VALUES_AT_A_TIME // (boundary.kernel_size**2 * channels))


def _neighbourhoods(x_NCHW: torch.Tensor, boundary: BoundaryPadding) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Yield the values around grid points: the frame, which of its points they are, and the values (P, R)."""
    frames, channels, height, width = x_NCHW.shape
    points, at_once, neighbours_each = height * width, _points_at_a_time(channels, boundary), boundary.kernel_size**2
    indices = device.constant(neighbours, height, width, boundary, x_NCHW.device, like=x_NCHW)
    x_NPC = x_NCHW.permute(0, 2, 3, 1).reshape(frames, points, channels)
    if any(boundary.zeros):
        x_NPC = F.pad(x_NPC, (0, 0, 0, 1))  # the point that stands for all beyond a boundary with zeros
    for frame, x_PC in enumerate(x_NPC.unbind()):
        for first in range(0, points, at_once):
            part = slice(first, min(first + at_once, points))
            around = indices[part.start * neighbours_each : part.stop * neighbours_each]
            yield frame, part, x_PC.index_select(0, around).view(part.stop - part.start, -1)
