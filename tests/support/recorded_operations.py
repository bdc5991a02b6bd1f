"""A stand-in on processors for the graphs of a GPU: records the operations of a function and repeats them.

As a graph of a GPU it repeats operations on the same memory and with the same numbers of the host, so that a number
which the host would have to change, or a value that it reads, shows in the results. What it cannot show is whether CUDA
records an operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.device_operations import WITHOUT_WORK, is_view

READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"}
"""Operators whose result the host waits for."""


class HostReadsError(RuntimeError):
    """The host would wait for a value, or copy one to the device."""


class _Recorder(TorchDispatchMode):
    """Keeps every call that changes memory, with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in READS or name == "lift_fresh":
            raise HostReadsError(f"{name} cannot be recorded")
        result = func(*args, **kwargs)
        if not is_view(func) and (name not in WITHOUT_WORK or name == "scalar_tensor"):
            self.calls.append((func, args, kwargs, result))
        return result


class RecordedOperations:
    """Records what a function does on the processor.

    In a recording the function does run, so what it changes is set back after it.

    Args:
        state: returns the tensors that outlive a step.
    """

    def __init__(self, state: Callable[[], list[torch.Tensor]]) -> None:
        self.state = state
        self.recordings = self.replays = 0

    def run(self, work: Callable[[], None]) -> None:
        work()

    def clear(self) -> None:
        pass

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        state = self.state()
        before = [tensor.detach().clone() for tensor in state]
        recorder = _Recorder()
        generator = torch.get_rng_state()
        with recorder:
            work()
        torch.set_rng_state(generator)
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        self.recordings += 1

        @torch.no_grad()
        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, recorded in recorder.calls:
                result = func(*args, **kwargs)
                for old, new in zip(_tensors(recorded), _tensors(result), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for each in result for tensor in _tensors(each)] if isinstance(result, list | tuple) else []
