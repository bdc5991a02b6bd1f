"""Convolutional layers that keep the grid.

Axes: N frames, C channels, H height, W width; P grid points (H x W), K output channels of a convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from mcrnn.models.boundary import BoundaryPadding
from mcrnn.models.prepared_convolution import PreparedConv


class PaddedConv(nn.Conv2d):
    """A convolution with stride 1 that keeps the grid; see `BoundaryPadding` for the paddings."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, padding: str) -> None:
        boundary = BoundaryPadding.of(padding, kernel_size)
        super().__init__(channels_in, channels_out, kernel_size)
        self.boundary = boundary

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Convolve frames, recorded by autograd as any other operation: for cells without gradients by hand."""
        return F.conv2d(self.boundary(x_NCHW), self.weight, self.bias, padding=self.boundary.zeros)

    def prepare(self) -> PreparedConv:
        """Cast and lay out weight and bias for a sequence of steps."""
        return PreparedConv(self.weight, self.bias, self.boundary)


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution as a product of matrices: a third of the time where few channels meet many."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=1)

    def prepare(self) -> PreparedConv:
        """Cast weight and bias for a sequence of steps."""
        return PreparedConv(self.weight, self.bias, BoundaryPadding.of("zeros", kernel_size=1))

    def forward(self, x_NCHW: torch.Tensor, conv: PreparedConv | None = None) -> torch.Tensor:
        """Convolve frames.

        Args:
            x_NCHW: the frames.
            conv: what `prepare` has returned, from whoever convolves several times in a row.
        """
        conv = self.prepare() if conv is None else conv
        return _PointwiseConvolution.apply(x_NCHW, conv.weight, conv.bias, conv)


class _PointwiseConvolution(torch.autograd.Function):
    """A 1 x 1 convolution as one product of matrices for each frame.

    Inputs: x_NCHW, weight (K, C, 1, 1), bias (K,), and the two prepared.
    Outputs: y_NKHW, of the weight's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NCHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, conv: PreparedConv
    ) -> torch.Tensor:
        ctx.conv, ctx.dtype = conv, x_NCHW.dtype
        x_NCHW = x_NCHW.to(weight.dtype)
        ctx.save_for_backward(x_NCHW, weight)
        y_NKP = torch.baddbmm(bias[None, :, None], _for_each(x_NCHW, weight.flatten(1)), x_NCHW.flatten(2))
        return y_NKP.unflatten(2, x_NCHW.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NKHW: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NCHW, weight = ctx.saved_tensors
        ctx.conv.collect(grad_NKHW, x_NCHW)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        grad_x_NCP = torch.bmm(_for_each(x_NCHW, weight.flatten(1).t()), grad_NKHW.flatten(2))
        return grad_x_NCP.unflatten(2, x_NCHW.shape[2:]).to(ctx.dtype), None, None, None


def _for_each(frames: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix as a batch of it, once for each frame; no copy."""
    return matrix.expand(len(frames), -1, -1)
