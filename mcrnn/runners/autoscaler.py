"""What the autoscaler of a Ray cluster may start.

Open-source Ray keeps the limits of its autoscaler nowhere but in the configuration that the autoscaler reads: a file
that its process is given (`~/ray_bootstrap_config.yaml` on a head that `ray up` has started), or on Kubernetes the
RayCluster.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_TO_ASK_HEAD = 60.0
"""Time that a task on the head gets to read the autoscaler's configuration."""
AUTOSCALING_CONFIG = "--autoscaling-config="
"""Option of the autoscaler's process that names its configuration file."""
ROUNDING = 1e-9


@dataclass(frozen=True)
class Machines:
    """Machines of one kind."""

    count: int
    cpus: float | None
    """CPUs of each; None where they are not known, but are enough for all workers that use its GPUs."""
    gpus: float
    """GPUs of each."""

    def room(self, gpus: float, cpus: int = 1) -> int:
        """Return how many workers fit on one of them.

        Args:
            gpus: GPUs of each worker. Below 1, workers share a GPU.
            cpus: CPUs of each worker.
        """
        by_cpus = math.inf if self.cpus is None else self.cpus // cpus
        if not gpus:
            return int(self.gpus if self.cpus is None else by_cpus)
        shared = int(self.gpus) * int(1 / gpus + ROUNDING) if gpus < 1 else int(self.gpus / gpus + ROUNDING)
        return int(min(by_cpus, shared))


@dataclass(frozen=True)
class AutoscalerLimits:
    """The machines that an autoscaler may start."""

    kinds: tuple[Machines, ...] = ()
    """The kinds of workers, with as many of each as there may be."""
    max_workers: int = 0
    """Largest number of workers of all kinds together."""

    @classmethod
    def of_configuration(cls, configuration: dict[str, Any]) -> AutoscalerLimits:
        """Read them from the configuration of an autoscaler, as `ray up` and KubeRay give it.

        Args:
            configuration: its content, such as that of `~/ray_bootstrap_config.yaml`.
        """
        types = configuration.get("available_node_types") or {}
        head = configuration.get("head_node_type")
        most = configuration.get("max_workers")
        kinds = []
        for name, content in types.items():
            count = content.get("max_workers")
            if count is None:
                count = 0 if name == head else most or 0
            resources = content.get("resources") or {}
            kinds.append(Machines(int(count), float(resources.get("CPU", 0)), float(resources.get("GPU", 0))))
        several = tuple(each for each in kinds if each.count > 0)
        return cls(several, sum(each.count for each in several) if most is None else int(most))

    @property
    def grows(self) -> bool:
        """Whether there may be any workers."""
        return bool(self.kinds) and self.max_workers > 0

    @property
    def are_known(self) -> bool:
        """Whether it is known what the machines have. Of machines of one's own, `ray up` does not know it."""
        return any(each.cpus is None or each.cpus or each.gpus for each in self.kinds)

    def most(self, of_each: Callable[[Machines], float]) -> float:
        """Return the largest sum of something over as many machines as there may be.

        Args:
            of_each: returns what a machine has of it.
        """
        left, total = self.max_workers, 0.0
        for kind in sorted(self.kinds, key=of_each, reverse=True):
            total += min(left, kind.count) * of_each(kind)
            left -= min(left, kind.count)
        return total


def autoscaler_configuration(head: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the cluster's autoscaler, which is on the head; empty where there is none.

    Args:
        head: what `ray.nodes` says of the head.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    # RAY_ADDRESS may name the head otherwise than the head itself does, such as by its host name
    port = context.gcs_address.rpartition(":")[2]
    addresses = context.gcs_address, f"{head['NodeManagerAddress']}:{port}"
    if context.get_node_id() == head["NodeID"]:
        return read_configuration(*addresses)
    there = NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=there)(read_configuration)  # type: ignore[call-overload]
    return ray.get(task.remote(*addresses), timeout=SECONDS_TO_ASK_HEAD)


def read_configuration(*addresses: str) -> dict[str, Any]:
    """Read on the head what the autoscaler of a cluster is configured to start.

    Args:
        addresses: the address of the cluster, in all forms that may be known.

    Returns:
        `head_node_type`, `max_workers` and, without what is of no use here, `available_node_types` as `ray up` takes
        them; empty where there is no autoscaler.
    """
    import yaml

    monitor = _monitor_of(addresses)
    if monitor is None:
        configuration = _kuberay_configuration()
    else:
        given = [word.removeprefix(AUTOSCALING_CONFIG) for word in monitor if word.startswith(AUTOSCALING_CONFIG)]
        file = next(filter(None, given), None)
        configuration = {} if file is None else yaml.safe_load(Path(file).expanduser().read_text())
    return {
        **{key: configuration.get(key) for key in ("head_node_type", "max_workers")},
        "available_node_types": {
            name: {key: content.get(key) for key in ("resources", "max_workers")}
            for name, content in (configuration.get("available_node_types") or {}).items()
        },
    }


def _monitor_of(addresses: Iterable[str]) -> list[str] | None:
    """Return the command line of a cluster's monitor, which autoscales if it was given a configuration.

    Returns:
        The words; None where no monitor runs, as on Kubernetes where an autoscaler runs in a container beside the head.
    """
    import psutil

    options = {f"--gcs-address={address}" for address in addresses}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if not options.isdisjoint(words) and any(Path(word).name == "monitor.py" for word in words):
            return words
    return None


def _kuberay_configuration() -> dict[str, Any]:
    """Return what KubeRay's autoscaler derives from the RayCluster of this pod; empty where this is no such pod.

    The autoscaler runs in a container of its own beside the head's, with the same rights.
    """
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    name, token = os.environ.get("RAY_CLUSTER_NAME"), Path(node_provider.IN_CLUSTER_TOKEN_PATH)
    if not name or not token.exists():
        return {}
    namespace = token.with_name("namespace").read_text().strip()
    cluster = node_provider.KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return {}
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
