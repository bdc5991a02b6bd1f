"""The precision that a network computes in, the same in training, validation, evaluation and forecasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def running_in(precision: str, device: torch.device) -> Iterator[None]:
    """Run convolutions in a precision, within the context; recurrences, norms and the loss stay in float32.

    Args:
        precision: float32; tf32, which is float32 with ten bits of mantissa in products, and on processors is
            float32; bf16; or float64, which leaves the choice to the dtype of the model.
        device: the device of the model.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    # cuDNN uses tf32 by default
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        # a graph of a step must not hold weights that were cast, and kept, in an earlier one
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
