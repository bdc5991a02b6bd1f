"""Counts what PyTorch asks a device to do, by looking at every call of its dispatcher: no GPU is needed for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WITHOUT_WORK = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"),
    *("lift_fresh", "scalar_tensor", "promote_types", "_record_function_enter_new", "_record_function_exit"),
}
"""Operators that touch no values."""


def is_view(func: Any) -> bool:
    """Return whether an operator returns another view of its argument, and changes nothing."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


class DeviceOperations(TorchDispatchMode):
    """Counts the operators that run within its context; views and uninitialised memory are none."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        """Number of calls of each operator."""
        self.from_lists = 0
        """Tensors made from Python numbers: on a GPU each is a copy from the host, and a wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.from_lists += name == "lift_fresh"
        if not is_view(func) and name not in WITHOUT_WORK:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))
