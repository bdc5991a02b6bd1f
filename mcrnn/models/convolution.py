"""Convolutions that keep the grid, padded as the field's boundary asks.

Two things make them fast on processors: convolutions and recurrences run in the channels-last layout, where any
width reaches the speed that the default layout has for multiples of 16 only; and the copy that changes the layout
is the one that pads. Norms over the grid stay in the default layout.

Axes: N frames, C channels, H height, W width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

GRID_POINTS_AT_ONCE = 8192
"""of the frames that processors work on at a time: 32 of 16 x 16"""
GRID_POINTS_TOGETHER = 2048
"""of the frames whose gradients are reckoned together: eight of 16 x 16"""
PADDINGS = ("circular", "cylinder", "zeros")


@dataclass(frozen=True)
class BoundaryPadding:
    """How many rows and columns a frame is continued by, and how far zeros go beyond that.

    `circular` wraps both axes, `cylinder` wraps the width (longitude) and has zeros beyond the height (latitude),
    `zeros` has zeros beyond both.
    """

    rows: int
    columns: int
    zeros: tuple[int, int]

    @classmethod
    def of(cls, padding: str, kernel_size: int) -> BoundaryPadding:
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

    def __call__(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Frames of any layout with what lies beyond their edges, channels last: one gather.

        Raises:
            ValueError: the grid is smaller than what is wrapped around it.
        """
        if not self.rows and not self.columns:
            return x_NCHW.contiguous(memory_format=torch.channels_last)
        frames, channels, height, width = x_NCHW.shape
        points = _points_with_wrap(height, width, self.rows, self.columns, x_NCHW.device)
        x_NPC = x_NCHW.permute(0, 2, 3, 1).reshape(frames, height * width, channels)
        padded_NPC = x_NPC.index_select(1, points)
        return padded_NPC.view(frames, height + 2 * self.rows, -1, channels).permute(0, 3, 1, 2)


@functools.cache
def _points_with_wrap(height: int, width: int, rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """For each point of a wrapped grid, the point of the grid that it repeats."""
    if height < rows or width < columns:
        raise ValueError(
            f"a grid of {height} x {width} is too small for a kernel that reaches {max(rows, columns)} beyond it"
        )
    row = torch.arange(-rows, height + rows) % height
    column = torch.arange(-columns, width + columns) % width
    return (row[:, None] * width + column).flatten().to(device)


class Kernel:
    """Weight and bias of a convolution, ready for use: in its dtype, channels last. Made once for many steps.

    Convolutions here leave no graph. Who runs them passes `weight` and `bias` to a function of its own, whose
    backward pass calls `input_gradient` and `collect`, and returns nothing for the two.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, wrap: BoundaryPadding) -> None:
        device = weight.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        ready = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self._gradients = _ParameterGradients(ready.detach(), wrap, bias is not None)
        self.weight, self.bias = _Collected.apply(ready, None if bias is None else bias.to(dtype), self._gradients)
        self.wrap = wrap
        self._turned: torch.Tensor | None = None

    def convolve(self, wrapped_NCHW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The convolution of wrapped frames, (N, K, H, W), channels last, of this dtype."""
        result = _convolution(wrapped_NCHW, self.weight, self.bias, self.wrap.zeros)
        return result.to(dtype, memory_format=torch.channels_last)

    def input_gradient(self, grad_NKHW: torch.Tensor, out_NCHW: torch.Tensor) -> None:
        """Write the gradient of frames: that of the results, wrapped likewise, convolved with the kernel turned."""
        if self._turned is None:
            turned = self.weight.detach().flip(2, 3).transpose(0, 1)
            self._turned = turned.contiguous(memory_format=torch.channels_last)
        for part in chunks_of_steps(grad_NKHW, 1, GRID_POINTS_TOGETHER):
            wrapped_NKHW = self.wrap(grad_NKHW[part].to(self.weight.dtype))
            out_NCHW[part] = _convolution(wrapped_NKHW, self._turned, None, self.wrap.zeros)

    def collect(self, grad_NKHW: torch.Tensor, wrapped_NCHW: torch.Tensor) -> None:
        """Take the gradient of some results, for those of weight and bias."""
        self._gradients.add(grad_NKHW, wrapped_NCHW)


class _ParameterGradients:
    """The gradients of weight and bias, added up over all uses of a kernel in one backward pass.

    Single frames, as closed loops have them, wait for others, because a convolution of several is far faster.
    What another backward pass left behind, which stopped before it came to the parameters, is forgotten.
    """

    def __init__(self, weight: torch.Tensor, wrap: BoundaryPadding, has_bias: bool) -> None:
        self._weight, self._wrap, self._has_bias = weight, wrap, has_bias
        self._start(-1)

    def _start(self, backward_pass: int) -> None:
        self._pass = backward_pass
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, grad_NKHW: torch.Tensor, wrapped_NCHW: torch.Tensor) -> None:
        backward_pass = torch._C._current_graph_task_id()
        if backward_pass != self._pass:
            self._start(backward_pass)
        points = grad_NKHW.shape[2:].numel()
        if len(grad_NKHW) * points >= GRID_POINTS_TOGETHER:
            self._flush()  # what is enough by itself is not copied together with others
        self._waiting.append((grad_NKHW.to(self._weight.dtype), wrapped_NCHW))
        if sum(len(grad) for grad, _ in self._waiting) * points >= GRID_POINTS_TOGETHER:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        several = len(self._waiting) > 1
        grad, wrapped = (torch.cat(parts) if several else parts[0] for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        mask = [False, True, self._has_bias]
        _, *parts = _convolution_backward(grad, wrapped, self._weight, self._wrap, mask)
        for name, part in zip(("weight", "bias")[: 1 + self._has_bias], parts, strict=False):
            self._sums[name] = self._sums[name].add_(part) if name in self._sums else part

    def take(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The sums of this backward pass."""
        if torch._C._current_graph_task_id() != self._pass:
            self._start(-1)
        self._flush()
        sums = self._sums
        self._start(-1)
        return sums.get("weight"), sums.get("bias")


class _Collected(torch.autograd.Function):
    """Weight and bias as they are; their gradient is what has been collected when all uses have been gone through."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, bias: torch.Tensor | None, gradients: _ParameterGradients
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.gradients = gradients
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        return *ctx.gradients.take(), None


def _convolution_backward(
    grad_NKHW: torch.Tensor, wrapped_NCHW: torch.Tensor, weight: torch.Tensor, wrap: BoundaryPadding, mask: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    outputs, zeros = [weight.shape[0]], list(wrap.zeros)
    return torch.ops.aten.convolution_backward(
        grad_NKHW, wrapped_NCHW, weight, outputs, [1, 1], zeros, [1, 1], False, [0, 0], 1, mask
    )


def _convolution(
    wrapped_NCHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, zeros: tuple[int, int]
) -> torch.Tensor:
    on_cpu = wrapped_NCHW.is_cpu and wrapped_NCHW.dtype == torch.float32
    if on_cpu and len(wrapped_NCHW) == 1 and torch.backends.mkldnn.is_available():
        # torch would take a convolution of its own for a single frame, at half the speed of oneDNN's
        return torch.ops.aten.mkldnn_convolution(wrapped_NCHW, weight, bias, zeros, [1, 1], [1, 1], 1)
    return F.conv2d(wrapped_NCHW, weight, bias, padding=zeros)


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
        wrap = BoundaryPadding.of(padding, kernel_size)
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
