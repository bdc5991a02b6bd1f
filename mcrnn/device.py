"""The device that a command or a training computes on, and the constants that are kept there."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from mcrnn.errors import UserError, first_line


def on_processor(x: torch.Tensor) -> bool:
    """Return whether a tensor lies in the host's memory, where operations on what is in the cache are the fastest.

    On a GPU few operations are, each on as much as there is.
    """
    return x.is_cpu


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory was not enough, that of a device or of the host."""
    # The processor says "can't allocate memory", CUDA outside of PyTorch's allocator "out of memory".
    said = any(words in str(error) for words in ("allocate memory", "out of memory"))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and said)


_CONSTANTS: dict[Hashable, torch.Tensor] = {}


def constant(make: Callable[..., torch.Tensor], *arguments: Hashable, like: torch.Tensor) -> torch.Tensor:
    """Return `make(*arguments)`, made once and then kept: to make it anew would be a copy to the GPU and a wait for it.

    Args:
        make: a function whose result follows from its arguments, among them the device.
        arguments: its arguments.
        like: a tensor that is used together with the constant. Where it stands for the tensors of a later run, as in a
            compiler, the constant does so too, and is not kept.
    """
    if torch.compiler.is_compiling() or type(like) not in (torch.Tensor, torch.nn.Parameter):
        return make(*arguments)
    key = (make, *arguments)
    kept = _CONSTANTS.get(key)
    if kept is None:
        with torch.inference_mode(False):  # else no later operation with gradients could take it
            kept = make(*arguments)
        if type(kept) is torch.Tensor:
            _CONSTANTS[key] = kept
    return kept


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
