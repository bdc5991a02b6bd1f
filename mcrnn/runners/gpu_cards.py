"""The GPUs of this machine as the driver knows them (NVML), without taking memory of any of them."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mcrnn.runners import mps

SECONDS_BETWEEN_SAMPLES = 0.1
"""The driver renews what it says of how busy a GPU is every sixth of a second to every second."""


@dataclass(frozen=True)
class Card:
    """One GPU."""

    name: str
    memory: float
    """Bytes of its memory."""
    used: float
    """Bytes of them that are in use."""
    exclusive: bool = False
    """Whether it takes one process only."""


@dataclass(frozen=True)
class MachineGpus:
    """The GPUs of a machine."""

    cards: tuple[Card, ...]
    """Empty where the driver cannot be asked."""
    no_service: str
    """Why NVIDIA's multi-process service cannot be used; empty where it can."""


def gpus_of_machine() -> MachineGpus:
    """Ask this machine for its GPUs, and try whether the multi-process service can be used."""
    return MachineGpus(tuple(_cards()), mps.check())


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _cards() -> list[Card]:
    cards = []
    with contextlib.suppress(Exception), _nvml() as nvml:  # a machine without a driver has no cards
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            exclusive = nvml.nvmlDeviceGetComputeMode(handle) == nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
            cards.append(Card(nvml.nvmlDeviceGetName(handle), memory.total, memory.used, exclusive))
    return cards


def memory_in_use() -> float:
    """Return the bytes that all processes take of this process's GPU; 0 where the driver does not say it.

    PyTorch would make a context of CUDA to answer this, which takes memory itself.
    """
    with contextlib.suppress(Exception), _nvml() as nvml:
        return float(nvml.nvmlDeviceGetMemoryInfo(_own_card(nvml)).used)
    return 0.0


def _own_card(nvml: Any) -> Any:
    """Return NVML's handle of the first GPU that this process sees."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return nvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else nvml.nvmlDeviceGetHandleByUUID(first)


class BusySampler(threading.Thread):
    """Samples, inside a `with` block, the share of the time in which this process's GPU computes anything."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="GPU utilisation")
        self.samples: list[float] = []
        self._ended = threading.Event()

    def run(self) -> None:
        with contextlib.suppress(Exception), _nvml() as nvml:  # a part of a GPU (MIG) has no such figure
            card = _own_card(nvml)
            while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
                self.samples.append(nvml.nvmlDeviceGetUtilizationRates(card).gpu / 100)

    def __enter__(self) -> BusySampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    @property
    def busy(self) -> float | None:
        """The mean of the samples; None without any."""
        return statistics.fmean(self.samples) if self.samples else None
