"""How many trials share a GPU, as a function of what was measured of some of them and of what the cluster has."""

from __future__ import annotations

import math
from dataclasses import dataclass

USED_SHARE = 0.9
"""Share of the memory of a GPU, and of a machine, that trials may take together. The rest is for what grows after the
first steps, and for what fragments cannot be used for."""
MOST_TRIALS = 48
"""Trials on a GPU at most: the clients that NVIDIA's multi-process service takes
(https://docs.nvidia.com/deploy/mps/)."""
RAY_PARTS = 10_000
"""Smallest parts of a GPU that Ray tells apart."""


@dataclass(frozen=True)
class TrialMeasurement:
    """What one trial takes, measured while it has a GPU of its own."""

    device_memory: float
    """Bytes that its process takes on the GPU at its peak, with the context of CUDA."""
    busy: float | None
    """Share of the time in which the GPU computes anything, from 0 to 1; None where the driver does not say it."""
    host_memory: float
    """Bytes of the machine that only its process uses."""
    cores: float
    """Cores that its process keeps busy."""


@dataclass(frozen=True)
class CardLimits:
    """What there is for the trials of one GPU: on a cluster of different machines the least of each."""

    memory: float
    """Bytes of the GPU that nothing else takes."""
    cores: float
    """CPUs of a machine for each of its GPUs."""
    host_memory: float
    """Bytes of a machine for each of its GPUs, infinity where they are not known."""
    exclusive: bool = False
    """Whether the GPU takes one process only (compute mode EXCLUSIVE_PROCESS)."""


@dataclass(frozen=True)
class Packing:
    """How many trials share a GPU, and what each of them asks Ray for."""

    trials: int
    """Trials on a GPU at a time."""
    limit: str
    """What allows no more of them."""
    needs: TrialMeasurement | None = None
    """What a trial takes; None where that was not measured."""
    card_memory: float = math.nan
    """Bytes of the GPU that trials were counted against."""

    @property
    def gpus(self) -> float:
        """The part of a GPU of each trial, rounded down to what Ray tells apart, so that all of them fit."""
        return RAY_PARTS // self.trials / RAY_PARTS

    @property
    def cpus(self) -> int:
        """CPUs of each trial, and threads of PyTorch in it: the cores that it keeps busy."""
        return 1 if self.needs is None else cores_of(self.needs)

    def describe(self, service: str) -> str:
        """Return a line that says what was decided, and why.

        Args:
            service: how processes share the GPU, such as "time-sliced".
        """
        if self.needs is None:
            return f"search.gpus auto: 1 trial on a GPU: {self.limit}"
        needs, count = self.needs, f"{self.trials} trial{'s' if self.trials > 1 else ''}"
        busy = "an unknown share" if needs.busy is None else f"{needs.busy:.0%}"
        each = "CPU" if self.cpus == 1 else "CPUs"
        return (
            f"search.gpus auto: {count} on a GPU ({self.gpus:g} GPU and {self.cpus} {each} each"
            f"{f', {service}' if self.trials > 1 else ''}): {self.limit}. Measured: a trial takes "
            f"{needs.device_memory / 1e9:.2g} of {self.card_memory / 1e9:.3g} GB, keeps the GPU busy for {busy} of the "
            f"time and {needs.cores:.2g} cores of the machine, and takes {needs.host_memory / 1e9:.2g} GB of its memory"
        )


@dataclass(frozen=True)
class TrialShare:
    """What each trial of a search is given of a machine."""

    gpus: float
    """GPUs for each worker; a fraction shares one."""
    threads: int = 1
    """CPUs, and threads of PyTorch."""
    uses_service: bool = False
    """Whether trials compute by way of NVIDIA's multi-process service, where a machine has it."""
    memory: int = 0
    """Bytes of the machine that are reserved; 0 for none."""

    @property
    def resources(self) -> dict[str, float]:
        """What a trial with one worker asks Ray for."""
        wanted = {"CPU": float(self.threads), "GPU": self.gpus, "memory": float(self.memory)}
        return {name: amount for name, amount in wanted.items() if amount}


def cores_of(needs: TrialMeasurement) -> int:
    """Return the whole cores that a trial is given. A core that is busy for less than a quarter is not one more."""
    return max(1, math.ceil(needs.cores - 0.25))


def combined(measurements: list[TrialMeasurement]) -> TrialMeasurement:
    """Return what a trial is taken to need: the most memory and cores of all, because any of them may meet another of
    its kind, and the mean of how busy they keep the GPU, because those that share it are of all kinds.

    Args:
        measurements: those of some trials, at least one.
    """
    busy = [each.busy for each in measurements if each.busy is not None]
    return TrialMeasurement(
        device_memory=max(each.device_memory for each in measurements),
        busy=sum(busy) / len(busy) if busy else None,
        host_memory=max(each.host_memory for each in measurements),
        cores=max(each.cores for each in measurements),
    )


def pack(measurements: list[TrialMeasurement], card: CardLimits, *, wanted: int, shared: bool) -> Packing:
    """Decide how many trials share a GPU: as many as its memory, its time and the machine have room for.

    Args:
        measurements: what some trials take, at least one.
        card: what there is for the trials of one GPU.
        wanted: trials on a GPU if all that may run at a time were spread evenly. More of them would leave other GPUs
            without any.
        shared: whether NVIDIA's multi-process service runs, by which a GPU that takes one process only is shared, too.
    """
    needs = combined(measurements)
    memory, host = USED_SHARE * card.memory / needs.device_memory, USED_SHARE * card.host_memory / needs.host_memory
    limits = {
        "the time of the GPU has room for no more": _rounded_trials(needs.busy),
        f"its memory has room for no more, with {1 - USED_SHARE:.0%} left free": _whole(memory),
        "the CPUs of its machine are enough for no more": _whole(card.cores / cores_of(needs)),
        f"the memory of its machine has room for no more, with {1 - USED_SHARE:.0%} left free": _whole(host),
        "no more trials run at a time": wanted,
        "no more processes can share it": MOST_TRIALS,
    }
    if needs.busy is None:
        limits["the driver does not say how busy it is"] = 1
    if card.exclusive and not shared:
        limits["it takes one process only (compute mode EXCLUSIVE_PROCESS)"] = 1
    reason, trials = min(limits.items(), key=lambda each: each[1])
    return Packing(max(1, trials), reason, needs, card.memory)


def _rounded_trials(busy: float | None) -> int:
    """Return how many trials come nearest to keeping a GPU busy all the time."""
    return MOST_TRIALS if busy is None else min(MOST_TRIALS, round(1 / max(busy, 1 / MOST_TRIALS)))


def _whole(room: float) -> int:
    return int(min(room, MOST_TRIALS))
