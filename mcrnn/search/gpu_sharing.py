"""`search.gpus: auto`: measure some trials on a GPU of their own, and decide how many share one.

What was measured is kept in the folder of the search. A search that goes on decides from it again, and so the same
where the cluster is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ray

from mcrnn.errors import first_line
from mcrnn.runners.cluster_size import Cluster, counted
from mcrnn.runners.gpu_cards import Card, MachineGpus, gpus_of_machine
from mcrnn.runners.ray_cluster import ask_machines, wait_for_tasks
from mcrnn.search.budgets import useful_concurrency
from mcrnn.search.packing import MOST_TRIALS, CardLimits, Packing, TrialMeasurement, TrialShare, pack
from mcrnn.search.search_run import SearchRun
from mcrnn.search.trial_measurement import Measure, Measured, configurations_to_measure


def share_gpus(
    search_run: SearchRun, cluster: Cluster, data: Any, measure: Measure, check: Callable[[], None]
) -> tuple[TrialShare, str]:
    """Decide how many trials share a GPU.

    Args:
        search_run: the search.
        cluster: where it runs; it has GPUs, or may get some.
        data: reference to the `FieldData` in Ray's object store.
        measure: measures trials.
        check: called several times a second while machines are asked and trials are measured; an exception of it ends
            that.

    Returns:
        What a trial is given, and a line for the user that says what was decided and why.
    """
    workers = search_run.first_configuration.train.workers
    if workers > 1:  # NCCL takes no two workers of a training on one GPU
        return _one_each(f"a trial has {workers} workers, each of which needs a GPU of its own")
    cards = max(1, int(cluster.gpus))
    at_a_time = useful_concurrency(search_run.search.search, cards * MOST_TRIALS)
    wanted = math.ceil(at_a_time / cards)
    if wanted == 1:
        return _one_each(f"no more than {at_a_time} run at a time, and there may be {counted(cards, 'GPU')}")
    machines: list[MachineGpus] = [
        each.result for each in ask_machines(gpus_of_machine, check=check) if each.result is not None
    ]
    seen = [card for machine in machines for card in machine.cards]
    measured = _remembered(search_run, seen)
    if measured is None:
        configs = configurations_to_measure(search_run.search, search_run.field)
        task: Any = ray.remote(num_cpus=1, num_gpus=1, max_calls=1, max_retries=1)(measure)
        try:
            reference = task.remote(configs, data)
            wait_for_tasks([reference], check)
            measured = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            return _one_each(f"nothing could be measured ({first_line(cause)})")
        if not measured.trials:
            return _one_each("the memory of a GPU was not enough for those that were measured")
        search_run.folder.write_packing(dataclasses.asdict(measured) | {"cuda_graph": _has_graphs(search_run)})
    problems = [machine.no_service for machine in machines if machine.cards] or [each.no_service for each in machines]
    uses_service = "" in problems
    limits = _limits(cluster, measured.card, seen)
    packing = pack(list(measured.trials), limits, wanted=wanted, shared=uses_service)
    needed = max(each.host_memory for each in measured.trials)
    # an autoscaler starts no machine for a trial that reserves memory if its configuration names none
    reserves = not cluster.may_get_machines and needed <= limits.host_memory < math.inf
    share = TrialShare(
        packing.gpus,
        packing.cpus,
        uses_service=uses_service and packing.trials > 1,
        memory=int(needed) if reserves else 0,
    )
    return share, packing.describe(_described_service(problems))


def _one_each(reason: str) -> tuple[TrialShare, str]:
    packing = Packing(1, reason)
    return TrialShare(packing.gpus, packing.cpus), packing.describe("")


def _described_service(problems: list[str]) -> str:
    """Return how processes share GPUs, from what each machine says about the multi-process service."""
    using, why = problems.count(""), next(filter(None, problems), "no machine could be asked")
    if using and using == len(problems):
        return "under NVIDIA's multi-process service"
    if using:
        return f"under NVIDIA's multi-process service on {using} of {len(problems)} machines, else time-sliced: {why}"
    return f"time-sliced, because {why}"


def _remembered(search_run: SearchRun, seen: list[Card]) -> Measured | None:
    """Return what the search has measured earlier; None where it has not, or what trials take may have changed since.

    Args:
        search_run: the search.
        seen: the GPUs that there are; empty where none can be asked for.
    """
    content = search_run.folder.read_packing()
    if content is None or content["cuda_graph"] != _has_graphs(search_run):
        return None
    card = Card(**content["card"])
    if seen and card.name not in {each.name for each in seen}:
        return None
    return Measured(card, tuple(TrialMeasurement(**each) for each in content["trials"]))


def _has_graphs(search_run: SearchRun) -> bool:
    """Return whether trials take their steps as CUDA graphs, which changes what they take of a GPU."""
    return search_run.first_configuration.train.cuda_graph


def _limits(cluster: Cluster, measured: Card, seen: list[Card]) -> CardLimits:
    """Return what there is for the trials of one GPU, on the machine that has least.

    What others than Ray use of a GPU is only known of the one that was measured: the others may have trials on them.

    Args:
        cluster: the cluster.
        measured: the GPU on which trials were measured.
        seen: the GPUs that there are, as far as they can be asked for.
    """
    cores = [
        each.cpus / each.gpus for each in (*cluster.machines, *cluster.limits.kinds) if each.gpus >= 1 and each.cpus
    ]
    memory = [
        node["Resources"]["memory"] / node["Resources"]["GPU"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= 1 and "memory" in node["Resources"]
    ]
    return CardLimits(
        memory=min(each.memory for each in (measured, *seen)) - measured.used,
        cores=min(cores, default=math.inf),
        host_memory=min(memory, default=math.inf),
        exclusive=any(each.exclusive for each in (measured, *seen)),
    )
