"""Convolutions that keep the grid, padded as the field's boundary asks.

Two things make them fast on processors: convolutions and recurrences run in the channels-last layout, where any
width reaches the speed that the default layout has for multiples of 16 only; and the copy that changes the layout
is the one that pads. Norms over the grid stay in the default layout.

Axes: N frames, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

GRID_POINTS_AT_ONCE = 8192
"""of the frames that processors work on at a time: 32 of 16 x 16"""
Gradients = tuple[torch.Tensor, torch.Tensor | None]
"""of weight and bias"""
PADDINGS = ("circular", "cylinder", "zeros")


@dataclass(frozen=True)
class Wrap:
    """How many rows and columns a frame is continued by, and how far zeros go beyond that.

    `circular` wraps both axes, `cylinder` wraps the width (longitude) and has zeros beyond the height (latitude),
    `zeros` has zeros beyond both.
    """

    rows: int
    columns: int
    zeros: tuple[int, int]

    @classmethod
    def of(cls, padding: str, kernel_size: int) -> Wrap:
        """What a kernel of this size needs.

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

    def buffer(self, x_NCHW: torch.Tensor, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised memory for wrapped frames like these, channels last.

        Raises:
            ValueError: the grid is smaller than what is wrapped around it.
        """
        frames, _, height, width = x_NCHW.shape
        if height < self.rows or width < self.columns:
            reach = max(self.rows, self.columns)
            raise ValueError(f"a grid of {height} x {width} is too small for a kernel that reaches {reach} beyond it")
        shape = (frames, channels, height + 2 * self.rows, width + 2 * self.columns)
        return torch.empty(shape, dtype=dtype, device=x_NCHW.device, memory_format=torch.channels_last)

    def fill(self, wrapped_NCHW: torch.Tensor, x_NCHW: torch.Tensor) -> None:
        """Write frames and what lies beyond their edges."""
        height, width = x_NCHW.shape[2:]
        r, c = self.rows, self.columns
        middle = wrapped_NCHW[:, :, r : r + height]
        middle[..., c : c + width].copy_(x_NCHW)
        if c:
            middle[..., :c].copy_(x_NCHW[..., width - c :])
            middle[..., c + width :].copy_(x_NCHW[..., :c])
        if r:
            wrapped_NCHW[:, :, :r].copy_(middle[:, :, height - r :])
            wrapped_NCHW[:, :, r + height :].copy_(middle[:, :, :r])

    def fold_(self, grad_NCHW: torch.Tensor, out_NCHW: torch.Tensor) -> torch.Tensor:
        """The gradient of frames, of that of wrapped ones, which is overwritten.

        What lies beyond an edge is added to the other side, from where it came.
        """
        height, width = out_NCHW.shape[2:]
        r, c = self.rows, self.columns
        if r:
            grad_NCHW[:, :, r : 2 * r] += grad_NCHW[:, :, height + r :]
            grad_NCHW[:, :, height : height + r] += grad_NCHW[:, :, :r]
        middle = grad_NCHW[:, :, r : r + height]
        if c:
            middle[..., c : 2 * c] += middle[..., width + c :]
            middle[..., width : width + c] += middle[..., :c]
        return out_NCHW.copy_(middle[..., c : c + width])


class Kernel:
    """Weight and bias of a convolution, ready for use: in its dtype, channels last. Made once for many steps.

    Convolutions here have no graph; who calls them applies the gradients by hand.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, wrap: Wrap) -> None:
        device = weight.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        self.weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if bias is None else bias.to(dtype)
        self.wrap = wrap
        self._turned: torch.Tensor | None = None

    def convolve(self, wrapped_NCHW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The convolution of wrapped frames, (N, K, H, W), channels last, of this dtype."""
        weight, bias, zeros = self.weight, self.bias, self.wrap.zeros
        if _single_frame_on_cpu(wrapped_NCHW):
            result = torch.ops.aten.mkldnn_convolution(wrapped_NCHW, weight, bias, zeros, [1, 1], [1, 1], 1)
        else:
            result = F.conv2d(wrapped_NCHW, weight, bias, padding=zeros)
        return result.to(dtype, memory_format=torch.channels_last)

    def input_gradient(self, grad_NKHW: torch.Tensor, wrapped_NCHW: torch.Tensor) -> torch.Tensor:
        """The gradient of wrapped frames."""
        grad_NKHW = grad_NKHW.to(self.weight.dtype)
        if _single_frame_on_cpu(wrapped_NCHW):
            if self._turned is None:
                turned = self.weight.detach().flip(2, 3).transpose(0, 1)
                self._turned = turned.contiguous(memory_format=torch.channels_last)
            reach = [self.weight.shape[-1] - 1 - zeros for zeros in self.wrap.zeros]
            return torch.ops.aten.mkldnn_convolution(grad_NKHW, self._turned, None, reach, [1, 1], [1, 1], 1)
        return self._backward(grad_NKHW, wrapped_NCHW, [True, False, False])[0]

    def parameter_gradients(
        self, grad_NKHW: torch.Tensor, wrapped_NCHW: torch.Tensor, so_far: Gradients | None
    ) -> Gradients:
        """The gradients of weight and bias over some frames, added to those so far."""
        has_bias = self.bias is not None
        _, weight, bias = self._backward(grad_NKHW.to(self.weight.dtype), wrapped_NCHW, [False, True, has_bias])
        if so_far is None:
            return weight, bias if has_bias else None
        so_far[0].add_(weight)
        if so_far[1] is not None:
            so_far[1].add_(bias)
        return so_far

    def _backward(self, grad_NKHW: torch.Tensor, wrapped_NCHW: torch.Tensor, mask: list[bool]) -> list[torch.Tensor]:
        outputs, zeros = [self.weight.shape[0]], list(self.wrap.zeros)
        return torch.ops.aten.convolution_backward(
            grad_NKHW, wrapped_NCHW, self.weight, outputs, [1, 1], zeros, [1, 1], False, [0, 0], 1, mask
        )


def _single_frame_on_cpu(x_NCHW: torch.Tensor) -> bool:
    """Where torch would take a convolution of its own, at half the speed of oneDNN's."""
    on_cpu = x_NCHW.is_cpu and x_NCHW.dtype == torch.float32
    return on_cpu and len(x_NCHW) == 1 and torch.backends.mkldnn.is_available()


def frames_like(x_NCHW: torch.Tensor, frames: int, channels: int) -> torch.Tensor:
    """Uninitialised memory for frames on this grid, channels last."""
    shape = (frames, channels, *x_NCHW.shape[2:])
    return torch.empty(shape, dtype=x_NCHW.dtype, device=x_NCHW.device, memory_format=torch.channels_last)


def chunks_of_steps(x_NCHW: torch.Tensor, batch: int, grid_points: int = GRID_POINTS_AT_ONCE) -> list[slice]:
    """Whole steps of T x B frames, in parts small enough for the cache and large enough for a fast convolution."""
    frames, _, height, width = x_NCHW.shape
    at_once = max(1, grid_points // (height * width * batch)) * batch if x_NCHW.is_cpu else frames
    return [slice(start, min(start + at_once, frames)) for start in range(0, frames, at_once)]


class PaddedConv(nn.Conv2d):
    """Convolution with stride 1 that keeps the grid; see `Wrap` for the paddings."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, padding: str) -> None:
        wrap = Wrap.of(padding, kernel_size)
        super().__init__(channels_in, channels_out, kernel_size)
        self.wrap = wrap

    def kernel(self) -> Kernel:
        """Weight and bias, ready for use."""
        return Kernel(self.weight, self.bias, self.wrap)


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution as a product of matrices: a third of the time where few channels meet many."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        assert self.bias is not None
        weight = self.weight.flatten(1).expand(len(x_NCHW), -1, -1)
        y = torch.baddbmm(self.bias[None, :, None], weight, x_NCHW.flatten(2))
        return y.unflatten(2, x_NCHW.shape[2:])
