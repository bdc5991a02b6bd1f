"""What a Ray cluster has now, and what it may become once its autoscaler has started all machines that it may.

A search asks for machines by the trials that wait for them, so it has to know how many trials may run at a time before
the first machine has come.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mcrnn.config.sections import TrainConfig
from mcrnn.errors import UserError, first_line
from mcrnn.runners.autoscaler import AutoscalerLimits, Machines, autoscaler_configuration

MAX_GPUS = "MCRNN_MAX_GPUS"
"""Environment variable: the GPUs that the cluster may have. It counts where the autoscaler's configuration cannot be
read, or does not say what its machines have."""
COORDINATOR_MEMORY = 1e9
"""Bytes that are reserved on the head for each trial with several workers. Its own process and those by which Ray Train
controls the workers were measured to take 0.9 GB together."""


NO_MACHINE = Machines(0, 0.0, 0.0)


@dataclass(frozen=True)
class Cluster:
    """What a cluster has, and may have once its autoscaler has started all machines that it may."""

    machines: tuple[Machines, ...]
    """The machines that there are now."""
    head: Machines = NO_MACHINE
    """The head among them, which the autoscaler neither starts nor ends."""
    limits: AutoscalerLimits = field(default_factory=AutoscalerLimits)
    head_memory: float = math.inf
    """Bytes of the head that Ray may reserve."""
    source: str = ""
    """Where the limits are from, if not from the autoscaler."""
    problem: str = ""
    """Why the limits of the autoscaler are not known; empty where they are, or there is none."""

    def _most(self, of_each: Callable[[Machines], float]) -> float:
        now = sum(each.count * of_each(each) for each in self.machines)
        return max(now, self.head.count * of_each(self.head) + self.limits.most(of_each))

    @property
    def may_get_machines(self) -> bool:
        """Whether it has an autoscaler that may start machines, as far as is known."""
        return self.limits.grows or bool(self.problem)

    @property
    def cpus(self) -> int:
        """CPUs at most, but at least 1."""
        return max(1, self.room(0))

    @property
    def gpus(self) -> float:
        """GPUs at most."""
        return self._most(lambda each: each.gpus)

    def room(self, gpus: float, cpus: int = 1) -> int:
        """Return how many workers may run at a time, once all machines are there.

        Args:
            gpus: GPUs of each worker.
            cpus: CPUs of each worker.
        """
        return int(self._most(lambda each: each.room(gpus, cpus)))

    @property
    def coordinators(self) -> int:
        """How many trials with several workers the head has memory for; at least 1."""
        return max(1, int(min(self.head_memory, 1e15) // COORDINATOR_MEMORY))

    @property
    def coordinator_resources(self) -> dict[str, float]:
        """What is reserved on the head for a trial with several workers.

        The trial's own process takes no CPU: otherwise trials could take all CPUs, and wait for ever for some to become
        free for their workers. It sits on the head, for elsewhere it would end with a machine that the trial's workers
        do not need, or would keep such a machine from being given back.
        """
        memory = min(COORDINATOR_MEMORY, self.head_memory)
        return {"node:__internal_head__": 0.001, **({"memory": int(memory)} if memory >= 1 else {})}

    def trials(self, workers: int, gpus: float, cpus: int = 1) -> int:
        """Return how many trials may run at a time; at least 1.

        Args:
            workers: workers of each trial.
            gpus: GPUs of each worker.
            cpus: CPUs of each worker.
        """
        room = self.room(gpus, cpus) // workers
        return max(1, room if workers == 1 else min(room, self.coordinators))

    def describe(self, workers: int, gpus: float, trials: int) -> str:
        """Return a line that says what the cluster has and may get, and what a search uses of it.

        Args:
            workers: workers of each trial.
            gpus: GPUs of each worker.
            trials: trials at a time.
        """
        if gpus:
            unit, now, later = "GPU", sum(each.count * each.gpus for each in self.machines), self.gpus
            each = counted(gpus, "GPU")
        else:
            unit, now, later = "CPU", sum(each.count * each.room(0) for each in self.machines), self.room(0)
            each = "1 CPU"
        size = counted(now, unit)
        if later > now:
            size += f" now, may grow to {later:g}{f' ({self.source})' if self.source else ''}"
        elif not gpus:
            size += " and no GPU" if not self.gpus else ""
        if self.problem:
            size += f", and its autoscaler may start more, {self.problem}: set {MAX_GPUS} to the GPUs that it may get"
        of_each = f"{each} per trial" if workers == 1 else f"{workers} workers of {each} per trial"
        memory = workers > 1 and trials == self.coordinators < self.room(gpus) // workers
        why = ", for which the head has memory" if memory else ""
        return f"cluster: {size}; {of_each}, up to {counted(trials, 'trial')} at a time{why}"


def counted(number: float, unit: str) -> str:
    """Return a number with its unit, such as "1 GPU" and "2 GPUs"."""
    return f"{number:g} {unit}{'' if 0 < number <= 1 else 's'}"


def cluster_size() -> Cluster:
    """Return the size of the cluster that this process is connected to.

    Only the cluster that RAY_ADDRESS names may grow: a Ray that a command starts on this machine does not.

    Raises:
        UserError: MCRNN_MAX_GPUS is not a number.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    machines = tuple(_machine(node["Resources"]) for node in nodes)
    head = next((node for node in nodes if "node:__internal_head__" in node["Resources"]), None)
    if head is None:
        return Cluster(machines)
    head_memory = float(head["Resources"].get("memory", 0.0))
    if not os.environ.get("RAY_ADDRESS"):
        return Cluster(machines, head_memory=head_memory)
    max_gpus = _max_gpus()
    source = ""
    limits, problem = _limits(head)
    if limits.grows and not limits.are_known and len(nodes) <= limits.max_workers:
        problem = "but its configuration does not say what its machines have"
    if not limits.are_known and max_gpus is not None:
        problem = ""
        if max_gpus > sum(each.count * each.gpus for each in machines):
            limits, source = AutoscalerLimits((Machines(1, None, max_gpus),), 1), MAX_GPUS
    known_head = NO_MACHINE if source else _machine(head["Resources"])
    return Cluster(machines, known_head, limits, head_memory, source, problem)


_known_limits: dict[str, tuple[AutoscalerLimits, str]] = {}
"""What `_limits` has found, by the address of the cluster."""


def _limits(head: dict[str, Any]) -> tuple[AutoscalerLimits, str]:
    """Return the limits of the autoscaler, and why they are not known, empty where they are.

    A process looks once: where the configuration cannot be reached, a look may take minutes.
    """
    import ray

    cluster = ray.get_runtime_context().gcs_address
    if cluster not in _known_limits:
        try:
            _known_limits[cluster] = AutoscalerLimits.of_configuration(autoscaler_configuration(head)), ""
        except Exception as error:  # whatever reading another program's configuration may raise
            problem = f"but its limits cannot be read ({first_line(error)[:200]})"
            _known_limits[cluster] = AutoscalerLimits(), problem
    return _known_limits[cluster]


def _machine(resources: dict[str, float]) -> Machines:
    return Machines(1, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _max_gpus() -> float | None:
    text = os.environ.get(MAX_GPUS)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"{MAX_GPUS} is to be the number of GPUs that the cluster may have, such as 8, not '{text}'")
    return number


def gpus_for(train: TrainConfig, cluster: Cluster, each: float | None = None) -> float:
    """Return the GPUs for each worker of a training.

    Args:
        train: section `train` of the configuration.
        cluster: where it runs.
        each: GPUs asked for each worker (`search.gpus`), a fraction to share one; by default one if there are enough
            for all workers, or may be, else none.

    Raises:
        UserError: GPUs are asked for, by `each` or by `train.device`, and there are too few.
    """
    if train.device == "cpu":
        return 0.0
    wanted = 1.0 if each is None else each
    if cluster.room(wanted) >= train.workers:
        return wanted
    if each or train.device == "cuda":
        has = "may have at most" if cluster.limits.grows else "has"
        needed = f"{wanted * train.workers:g} GPUs"
        if cluster.gpus >= wanted * train.workers:
            needed += f" on machines with room for {wanted:g} each"
        raise UserError(f"{train.workers} workers need {needed}, the cluster {has} {cluster.gpus:g}")
    return 0.0
