"""A convolution that is used at many steps, and the gradients of its parameters, collected over all of them.

Two things make it fast on processors: convolutions and recurrences run in the channels-last layout, where any
width reaches the speed that the default layout has for multiples of 16 only; and the copy that changes the layout
is the one that pads. Norms over the grid stay in the default layout.

A recurrent cell uses the same weight at every step. Autograd would compute a gradient of the weight for each use,
from the few frames of one step, and add them up; a convolution over the frames of several steps is far faster. So
the recurrences, which are autograd functions with gradients by hand, return no gradient for weight and bias, and
hand the frames to a `_ParameterGradients` instead. So do the 1 x 1 convolutions around them:

    forward    nn.Parameter --> PreparedConv: cast, channels last --> _DeliverGradients --> steps 1, 2, .., T

    backward   steps T, .., 2, 1 -- collect(gradient, frames) --> _ParameterGradients: several steps at a time
                     |                                                     |
                     | None, for weight and bias                           | take(): the sums over all steps
                     v                                                     v
               _DeliverGradients, which autograd runs once all steps have been run  --> nn.Parameter.grad

Axes: N frames, C channels, H height, W width; P grid points (H x W), K output channels of a convolution.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mcrnn import device
from mcrnn.models import matrix_convolution
from mcrnn.models.boundary import BoundaryPadding

CACHED_GRID_POINTS = 8192
"""Grid points of the frames that a processor works on at a time, so that they stay in its cache: 32 of 16 x 16."""
BACKWARD_GRID_POINTS = 2048
"""Grid points of the frames whose gradients are computed at a time: eight of 16 x 16."""
GPU_BACKWARD_GRID_POINTS = 65536
"""On a GPU: the steps of a closed loop, of 256 frames of 16 x 16 in all, wait for one another."""


class PreparedConv:
    """The weight and bias of a convolution, cast and laid out once for the many steps that use them.

    Its convolutions record nothing for autograd. Whoever runs them is an autograd function that has `weight` and
    `bias` among its inputs; its backward pass calls `input_gradient` and `collect`, and returns None for the two
    (the diagram above).

    Args:
        weight: (K, C, k, k). Under autocast it is cast to autocast's dtype.
        bias: (K,), or None.
        boundary: the padding of the frames that are convolved.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, boundary: BoundaryPadding) -> None:
        kind = weight.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else weight.dtype
        ready = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self._gradients = _ParameterGradients(ready.detach(), boundary, bias is not None)
        self.weight, self.bias = _DeliverGradients.apply(
            ready, None if bias is None else bias.to(dtype), self._gradients
        )
        self.boundary = boundary

    def convolve(self, x_NCHW: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolve frames.

        Args:
            x_NCHW: the frames, of the weight's dtype.
            dtype: of the result.

        Returns:
            The result (N, K, H, W), channels last, and the frames as `collect` takes them.
        """
        if not matrix_convolution.is_faster(x_NCHW):
            padded_NCHW = self.boundary(x_NCHW)
            return self.convolve_padded(padded_NCHW, dtype), padded_NCHW
        x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
        result = matrix_convolution.convolve(x_NCHW, self._matrix, self.bias, self.boundary)
        return result.to(dtype, memory_format=torch.channels_last), x_NCHW

    def convolve_padded(self, padded_NCHW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Convolve padded frames to (N, K, H, W), channels last, of this dtype."""
        result = F.conv2d(padded_NCHW, self.weight, self.bias, padding=self.boundary.zeros)
        return result.to(dtype, memory_format=torch.channels_last)

    def input_gradient(self, grad_NKHW: torch.Tensor, out_NCHW: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gradient of the unpadded frames: in `out_NCHW` where that is given, else channels last.

        It is the gradient of the results, padded as the frames were, convolved with the flipped kernel: the padding
        is symmetric, so the transpose of a padded convolution is again one.
        """
        parts = cache_sized_slices(grad_NKHW, 1, BACKWARD_GRID_POINTS)
        if out_NCHW is None and len(parts) > 1:
            out_NCHW = empty_frames_like(grad_NKHW, len(grad_NKHW), self.weight.shape[1])
        for part in parts:
            result_NCHW = self._input_gradient(grad_NKHW[part].to(self.weight.dtype))
            if out_NCHW is None:
                return result_NCHW.to(grad_NKHW.dtype).contiguous(memory_format=torch.channels_last)
            out_NCHW[part] = result_NCHW
        assert out_NCHW is not None
        return out_NCHW

    def _input_gradient(self, grad_NKHW: torch.Tensor) -> torch.Tensor:
        if not matrix_convolution.is_faster(grad_NKHW):
            return self.input_gradient_of_padded(self.boundary(grad_NKHW))
        grad_NKHW = grad_NKHW.contiguous(memory_format=torch.channels_last)
        return matrix_convolution.convolve(grad_NKHW, self._flipped_matrix, None, self.boundary)

    def input_gradient_of_padded(self, padded_NKHW: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the unpadded frames, given that of the results, padded as the frames were."""
        if not device.on_processor(padded_NKHW):  # the transposed convolution needs no copy of the kernel
            reach = self.weight.shape[2] - 1
            rows, columns = self.boundary.zeros
            padding = (reach - rows, reach - columns)
            return F.conv_transpose2d(padded_NKHW, self.weight.detach(), padding=padding)
        return F.conv2d(padded_NKHW, self._flipped, padding=self.boundary.zeros)

    @cached_property
    def _matrix(self) -> torch.Tensor:
        return matrix_convolution.matrix_of(self.weight)

    @cached_property
    def _flipped(self) -> torch.Tensor:
        """The kernel of the transposed convolution."""
        flipped = self.weight.detach().flip(2, 3).transpose(0, 1)
        return flipped.contiguous(memory_format=torch.channels_last)

    @cached_property
    def _flipped_matrix(self) -> torch.Tensor:
        return matrix_convolution.matrix_of(self._flipped)

    def collect(self, grad_NKHW: torch.Tensor, convolved_NCHW: torch.Tensor) -> None:
        """Add the gradients of weight and bias.

        Args:
            grad_NKHW: gradient of some results.
            convolved_NCHW: the frames they came from, as `convolve` has returned them.
        """
        if self.weight.requires_grad:  # else both are frozen
            self._gradients.add(grad_NKHW, convolved_NCHW)


def _points_worth_a_convolution(convolved_NCHW: torch.Tensor) -> int:
    """Return the number of grid points for which the gradient of the weight is computed at once."""
    if not device.on_processor(convolved_NCHW):
        return GPU_BACKWARD_GRID_POINTS
    frame_by_frame = len(convolved_NCHW) > 1 and matrix_convolution.is_faster(convolved_NCHW)
    return 1 if frame_by_frame else BACKWARD_GRID_POINTS


class _Pass:
    """What one backward pass has collected so far."""

    def __init__(self) -> None:
        self.waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Gradients of results, and the frames that the results came from: all padded, or none."""
        self.sums: dict[str, torch.Tensor] = {}


class _ParameterGradients:
    """The gradients of weight and bias, added up over all uses of a convolution in one backward pass.

    Frames wait until there are enough for a fast convolution: closed loops hand them in one step at a time.

    A graph that is retained can be run backward several times; a pass can end before it reaches the parameters
    (`torch.autograd.grad` with respect to inputs); and another can run within it (reentrant checkpointing), which
    delivers what it has collected by itself. So sums belong to one pass, and are dropped when it ends. What tells
    passes apart is the id of autograd's graph task, for which PyTorch has no public function.
    """

    def __init__(self, weight: torch.Tensor, boundary: BoundaryPadding, has_bias: bool) -> None:
        self._weight, self._boundary, self._has_bias = weight, boundary, has_bias
        self._passes: dict[int, _Pass] = {}

    def add(self, grad_NKHW: torch.Tensor, convolved_NCHW: torch.Tensor) -> None:
        """Take the gradient of some results and the frames they came from, padded or not."""
        number = torch._C._current_graph_task_id()
        collected = self._passes.get(number)
        if collected is None:
            collected = self._passes[number] = _Pass()
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._drop(number))
        points = grad_NKHW.shape[2:].numel()
        enough = _points_worth_a_convolution(convolved_NCHW)
        are_enough = len(grad_NKHW) * points >= enough  # by themselves; they are not copied to stand beside others
        if are_enough or any(each.shape[2:] != convolved_NCHW.shape[2:] for _, each in collected.waiting[:1]):
            self._flush(collected)
        collected.waiting.append((grad_NKHW.to(self._weight.dtype), convolved_NCHW))
        if sum(len(grad) for grad, _ in collected.waiting) * points >= enough:
            self._flush(collected)

    def _drop(self, number: int) -> None:
        self._passes.pop(number, None)

    def _flush(self, collected: _Pass) -> None:
        if not collected.waiting:
            return
        several = len(collected.waiting) > 1
        grad, frames = (torch.cat(parts) if several else parts[0] for parts in zip(*collected.waiting, strict=True))
        collected.waiting = []
        parts = _parameter_gradients(grad, frames, self._weight, self._boundary, self._has_bias)
        sums = collected.sums
        for name, part in zip(("weight", "bias")[: 1 + self._has_bias], parts, strict=False):
            assert part is not None
            sums[name] = sums[name].add_(part) if name in sums else part

    def take(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the gradients of weight and bias in this backward pass, None where nothing was collected."""
        collected = self._passes.pop(torch._C._current_graph_task_id(), None)
        if collected is None:
            return None, None
        self._flush(collected)
        return collected.sums.get("weight"), collected.sums.get("bias")


class _DeliverGradients(torch.autograd.Function):
    """Pass weight and bias on unchanged; in the backward pass, give them the gradients that were collected.

    Autograd runs the backward pass of a function after those of all functions that use its outputs, also where
    these return None, so by then every step has handed in its frames.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, bias: torch.Tensor | None, gradients: _ParameterGradients
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)  # none reach it but those that were collected
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        return *ctx.gradients.take(), None


def _parameter_gradients(
    grad_NKHW: torch.Tensor,
    convolved_NCHW: torch.Tensor,
    weight: torch.Tensor,
    boundary: BoundaryPadding,
    has_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients of weight and bias."""
    if weight.shape[2:] == (1, 1):
        of_weight = torch.bmm(grad_NKHW.flatten(2), convolved_NCHW.flatten(2).transpose(1, 2)).sum(0)
        return of_weight[:, :, None, None], grad_NKHW.sum((0, 2, 3)) if has_bias else None
    if convolved_NCHW.shape[2:] == grad_NKHW.shape[2:]:  # not padded, unless PyTorch's convolution adds all zeros
        if matrix_convolution.is_faster(convolved_NCHW):
            return matrix_convolution.parameter_gradients(grad_NKHW, convolved_NCHW, boundary)
        convolved_NCHW = boundary(convolved_NCHW)
    outputs, zeros, mask = [weight.shape[0]], list(boundary.zeros), [False, True, has_bias]
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        grad_NKHW, convolved_NCHW, weight, outputs, [1, 1], zeros, [1, 1], False, [0, 0], 1, mask
    )
    return of_weight, of_bias


def empty_frames_like(x_NCHW: torch.Tensor, frames: int, channels: int) -> torch.Tensor:
    """Return uninitialised memory for so many frames on the grid of `x_NCHW`, channels last."""
    shape = (frames, channels, *x_NCHW.shape[2:])
    return torch.empty(shape, dtype=x_NCHW.dtype, device=x_NCHW.device, memory_format=torch.channels_last)


def cache_sized_slices(x_NCHW: torch.Tensor, batch: int, grid_points: int = CACHED_GRID_POINTS) -> list[slice]:
    """Split T x B frames into slices of whole steps, small enough for the cache and large enough for fast convolution.

    Args:
        x_NCHW: the frames, time first. Those on a GPU stay together.
        batch: frames of a step.
        grid_points: largest number of grid points of a slice, but at least one step.
    """
    frames, _, height, width = x_NCHW.shape
    at_once = max(1, grid_points // (height * width * batch)) * batch if device.on_processor(x_NCHW) else frames
    return [slice(start, min(start + at_once, frames)) for start in range(0, frames, at_once)]
