"""The time of a convolution by the layout of its tensors, its width and its precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.steps import PRECISIONS, Scale, seconds_of
from mcrnn.models.precision import running_in


def layouts(scale: Scale, device: torch.device) -> None:
    """Print the time of a convolution with its gradients, by layout, width and precision."""
    print("a 3 x 3 convolution of all teacher-forced frames of batch 8 to three blocks, with its gradients, in ms")
    frames = 8 * scale.forced
    for width in (24, 25, 28, 32, 40, 48, 49):
        works: dict[str, Callable[[], Any]] = {}
        for precision in PRECISIONS:
            for name, layout in (("default", torch.contiguous_format), ("channels last", torch.channels_last)):
                x = torch.randn(frames, width, scale.grid, scale.grid, device=device)
                weight = torch.randn(3 * width, width, 3, 3, device=device)
                x, weight = (t.to(memory_format=layout).requires_grad_() for t in (x, weight))

                def work(precision: str = precision, x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
                    with running_in(precision, device):
                        torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), [x, weight])

                works[f"{precision} {name}"] = work
        seconds = seconds_of(works, scale, device)
        cells = "   ".join(f"{name} {value * 1e3:.3f}" for name, value in seconds.items())
        print(f"  width {width}: {cells}", flush=True)
