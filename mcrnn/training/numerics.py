"""Memory of the process, on Linux."""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Iterator

import torch

from mcrnn.config.sections import Configuration, TrainConfig
from mcrnn.data.splits import FieldData
from mcrnn.models import model_cost

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MALLOC_RETAINED_BYTES = 1 << 30
"""bytes"""


def keep_freed_memory() -> None:
    """Have the C library keep up to a gigabyte of what is freed, where it would give it back to the kernel.

    On processors each step of a training frees its activations and asks for as much again. Given back in between,
    every page of it is a fault of its own, which in a virtual machine costs more than to reckon with it. A process
    grows no larger by this than it was at its largest. Does nothing where the C library is not glibc.
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
def running_in(precision: str, device: torch.device) -> Iterator[None]:
    """Convolve in float32, tf32 or bf16 (float64 is up to the model); recurrences, norms and the loss stay in float32.

    tf32 is float32 with ten bits of mantissa in products; there is none on processors, where it is float32.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    # cuDNN takes tf32 unless told otherwise
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def _settings(train: TrainConfig, device: torch.device) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(train.deterministic or before)
    try:
        with running_in(train.precision, device):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _too_large(config: Configuration, data: FieldData, workers: int, device: torch.device) -> str:
    train, steps = config.train, config.data.sequence_length
    part = math.ceil(train.batch_size / workers)
    windows = min(part, train.micro_batch or part)
    costs = model_cost(config.model, data.field.frame_shape)
    total = windows * steps * costs.activation_bytes
    channels, height, width = data.field.frame_shape
    smaller = f"--set train.micro_batch={windows // 2}" if windows > 1 else "a smaller data.sequence_length"
    return (
        f"out of memory on {device}: a step takes {windows} windows of {steps} steps of "
        f"{channels} x {height} x {width} through {costs.parameters:,} parameters, about {total / 1e9:.2g} GB of "
        f"activations. Try {smaller}, or a smaller model"
    )
