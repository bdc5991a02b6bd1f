"""The device that a command or a training computes on."""

from __future__ import annotations

import torch

from mcrnn.errors import UserError, first_line


def choose_device(name: str | None, option: str) -> torch.device:
    """Return the device to compute on.

    Args:
        name: A device as PyTorch names it, such as `cpu`, `cuda` or `cuda:1`. `auto` or None stands for a GPU if
            PyTorch finds one, and for the CPU otherwise.
        option: What the user has set, such as `--device` or `train.device`; for the message.

    Raises:
        UserError: PyTorch cannot use the device on this machine.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # a device that exists in name only fails here
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(
            f"{option} {name} cannot be used on this machine ({reason}); leave it out, or give cpu"
        ) from None
    return device
