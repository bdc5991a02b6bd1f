"""How a training computes: precision, determinism, and the memory of the process."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mcrnn.config.sections import Configuration, TrainConfig
from mcrnn.models import model_cost
from mcrnn.models.precision import running_in
from mcrnn.models.sizing import FrameShape

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
BYTES_OF_PARAMETER = 16
"""A weight, its gradient and two moments of Adam, in float32."""
MALLOC_RETAINED_BYTES = 1 << 30
"""Freed memory that the C library keeps rather than return it to the kernel: 1 GiB."""


def keep_freed_memory() -> None:
    """Make the C library keep up to 1 GiB of freed memory, where it would return it to the kernel.

    On processors each step of a training frees its activations and then allocates as much again. If the memory is
    returned in between, touching it again costs one page fault per page, slower in a virtual machine than the
    computation itself. The process becomes no larger than it was at its peak. Does nothing where the C library is not
    glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, MALLOC_RETAINED_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, MALLOC_RETAINED_BYTES)
    except (OSError, AttributeError):
        return


@contextlib.contextmanager
def numeric_settings(train: TrainConfig, device: torch.device) -> Iterator[None]:
    """Compute with the precision and the determinism of a configuration, within the context."""
    before = torch.are_deterministic_algorithms_enabled()
    if train.deterministic and device.type == "cuda":
        # without a workspace of its own for each stream cuBLAS is not deterministic, and PyTorch raises an error
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(train.deterministic or before)
    try:
        with running_in(train.precision, device):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


@dataclass(frozen=True)
class DeviceUse:
    """What the memory of a GPU is used for, in bytes."""

    total: float
    own: float
    """The largest use by the tensors of this process."""
    elsewhere: float
    """The use by the contexts of CUDA, and by other processes."""

    @classmethod
    def of(cls, device: torch.device) -> DeviceUse | None:
        """Return the use of a device; None where it is no GPU, or can no longer be asked."""
        if device.type != "cuda":
            return None
        with contextlib.suppress(RuntimeError):
            free, total = torch.cuda.mem_get_info(device)
            elsewhere = total - free - torch.cuda.memory_reserved(device)
            return cls(total, torch.cuda.max_memory_allocated(device), max(0, elsewhere))
        return None

    def __str__(self) -> str:
        return (
            f"of its {self.total / 1e9:.3g} GB this process used up to {self.own / 1e9:.2g} GB, and CUDA and other "
            f"processes {self.elsewhere / 1e9:.2g} GB"
        )


def out_of_memory_message(
    config: Configuration,
    frame_shape: FrameShape,
    workers: int,
    device: torch.device,
    use: DeviceUse | None = None,
) -> str:
    """Say what a training step asked for when memory ran out, and what to try.

    Args:
        config: the configuration of the training.
        frame_shape: channels, height, width of the field as the network sees it.
        workers: number of data-parallel workers.
        device: the device whose memory was not enough.
        use: what its memory was used for, where that is known.
    """
    train, steps = config.train, config.data.sequence_length
    part = math.ceil(train.batch_size / workers)
    windows = min(part, train.micro_batch or part)
    costs = model_cost(config.model, frame_shape)
    total = windows * steps * costs.activation_bytes
    channels, height, width = frame_shape
    smaller = f"--set train.micro_batch={windows // 2}" if windows > 1 else "a smaller data.sequence_length"
    return (
        f"out of memory on {device}: a step takes {windows} windows of {steps} steps of "
        f"{channels} x {height} x {width} through {costs.parameters:,} parameters, about {total / 1e9:.2g} GB of "
        f"activations and {costs.parameters * BYTES_OF_PARAMETER / 1e9:.2g} GB of weights, gradients and moments"
        f"{f'; {use}' if use else ''}. Try {smaller}, or a smaller model"
    )
