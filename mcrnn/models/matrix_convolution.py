"""Convolutions on processors as products of matrices: the values around each grid point, times the weight.

Frames lie in memory with the channels last, so that the values around a point are one run for each row of the kernel.
They are copied for some rows of the grid at a time, which stay in the cache. With AVX2 this reaches up to 1.6 times the
speed of PyTorch's convolutions for the few channels of these networks. With AVX-512 PyTorch's are as fast for several
frames, and slower for a single one. `python -m benchmarks.models` measures the whole step.

Axes: N frames, C channels, H height, W width; P grid points (H x W), K output channels, k side of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from mcrnn import device

VALUES_AT_A_TIME = 1 << 18
"""Values around grid points that are copied at a time, 1 MiB: they stay in the cache of one core."""

LARGEST_SINGLE_FRAME = 1 << 16
"""Values of a frame, 200 channels of 18 x 18, up to which the product is used with AVX-512."""


def is_faster(padded_NCHW: torch.Tensor) -> bool:
    """Return whether the functions below are at least as fast as PyTorch's for these frames."""
    if type(padded_NCHW) is not torch.Tensor or padded_NCHW.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if not device.on_processor(padded_NCHW):
        return False
    vectors = torch.backends.cpu.get_cpu_capability()
    is_small = len(padded_NCHW) == 1 and padded_NCHW.numel() <= LARGEST_SINGLE_FRAME
    return vectors == "AVX2" or (vectors == "AVX512" and is_small)


@torch.no_grad()
def convolve(
    padded_NCHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, zeros: tuple[int, int]
) -> torch.Tensor:
    """Convolve frames; nothing is recorded for autograd.

    Args:
        padded_NCHW: the frames.
        weight: (K, C, k, k).
        bias: (K,), or None.
        zeros: rows and columns of zeros to add at either end.

    Returns:
        (N, K, H, W), channels last.
    """
    outputs, kernel_size = weight.shape[0], weight.shape[2]
    padded_NHWC = _with_zeros(padded_NCHW, zeros)
    frames, height, width = len(padded_NHWC), *(size - kernel_size + 1 for size in padded_NHWC.shape[1:3])
    matrix = weight.permute(0, 2, 3, 1).reshape(outputs, -1).t()
    result_NPK = padded_NHWC.new_empty(frames, height * width, outputs)
    for frame, points, around in _neighbourhoods(padded_NHWC, kernel_size):
        if bias is None:
            torch.mm(around, matrix, out=result_NPK[frame, points])
        else:
            torch.addmm(bias, around, matrix, out=result_NPK[frame, points])
    return result_NPK.view(frames, height, width, outputs).permute(0, 3, 1, 2)


@torch.no_grad()
def parameter_gradients(
    grad_NKHW: torch.Tensor, padded_NCHW: torch.Tensor, kernel_size: int, zeros: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of weight, channels last, and bias, given that of the results of `convolve`."""
    padded_NHWC = _with_zeros(padded_NCHW, zeros)
    frames, outputs = grad_NKHW.shape[:2]
    grad_NPK = grad_NKHW.permute(0, 2, 3, 1).reshape(frames, -1, outputs)
    channels = padded_NHWC.shape[3]
    of_weight = padded_NHWC.new_zeros(outputs, kernel_size * kernel_size * channels)
    for frame, points, around in _neighbourhoods(padded_NHWC, kernel_size):
        of_weight.addmm_(grad_NPK[frame, points].t(), around)
    return of_weight.view(outputs, kernel_size, kernel_size, channels).permute(0, 3, 1, 2), grad_NPK.sum((0, 1))


def _with_zeros(padded_NCHW: torch.Tensor, zeros: tuple[int, int]) -> torch.Tensor:
    """Return the frames with the channels last and the zeros around them, (N, H, W, C)."""
    rows, columns = zeros
    frames_NHWC = padded_NCHW.permute(0, 2, 3, 1)
    if rows or columns:
        frames_NHWC = F.pad(frames_NHWC, (0, 0, columns, columns, rows, rows))
    return frames_NHWC.contiguous()


def _neighbourhoods(padded_NHWC: torch.Tensor, kernel_size: int) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Yield the values around grid points: the frame, which of its points they are, and the values (P, k k C)."""
    frames, rows, columns, channels = padded_NHWC.shape
    height, width = rows - kernel_size + 1, columns - kernel_size + 1
    run = kernel_size * channels
    at_once = max(1, VALUES_AT_A_TIME // (width * kernel_size * run))
    for frame in range(frames):
        for first in range(0, height, at_once):
            size = (min(at_once, height - first), width, kernel_size, run)
            around = padded_NHWC[frame, first:].as_strided(size, (columns * channels, channels, columns * channels, 1))
            points = slice(first * width, (first + size[0]) * width)
            yield frame, points, around.reshape(-1, kernel_size * run)
