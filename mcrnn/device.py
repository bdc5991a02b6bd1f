"""The device that a command or a training computes on."""

from __future__ import annotations

import torch

from mcrnn.config.sections import TrainConfig
from mcrnn.errors import UserError


def check_device(name: str | None) -> None:
    """Refuse a device that PyTorch cannot use here.

    Raises:
        UserError: it cannot; says what can.
    """
    if name in (None, "cpu"):
        return
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name} cannot be used on this machine; leave it out, or give cpu") from None


def device_for(train: TrainConfig) -> torch.device:
    """The device that a configuration asks for, on this machine.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device is cuda, but PyTorch finds no GPU here; leave it out, or set it to cpu")
    return torch.device("cpu" if train.device == "cpu" or not torch.cuda.is_available() else "cuda")
