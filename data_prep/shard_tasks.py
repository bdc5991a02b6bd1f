"""Build shards and write their objects, in this process or as Ray tasks on one machine or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.plan import Shard, StorePlan
from data_prep.shard_records import Record
from data_prep.statistics import Statistics
from mcrnn.data.store_format import sha256
from mcrnn.errors import UserError
from mcrnn.storage.lease import Lease
from mcrnn.storage.location import Location

if TYPE_CHECKING:
    from data_prep.builder import Source
    from data_prep.machines import CheckedMachines

SECONDS_BETWEEN_CHECKS = 5.0
"""Longest time between two checks of the lease while workers compute."""


def uses_tasks(source: Source, shards: int, workers: int) -> bool:
    """Return whether some shards are built as Ray tasks, and not in this process."""
    return workers > 1 and shards > 1 and source.shards_at_once == 1


def build_shards(
    location: Location,
    plan: StorePlan,
    source: Source,
    missing: list[Shard],
    workers: int,
    lease: Lease,
    machines: CheckedMachines | None,
) -> Iterator[tuple[Shard, Record]]:
    """Build the missing shards, in this process or as Ray tasks, and yield each with its record when it is done.

    Args:
        location: folder of the store.
        plan: what the store is to hold.
        source: what computes or reads its values.
        missing: the shards.
        workers: number of Ray tasks at a time; 1 computes in this process, without Ray.
        lease: the lease of the store, which is held.
        machines: the machines of the cluster that are checked already; None where none need be.

    Raises:
        UserError: a shard cannot be built, or a machine that has joined the cluster meanwhile cannot build any.
    """
    at_once = source.shards_at_once
    groups = [missing[i : i + at_once] for i in range(0, len(missing), at_once)]
    if not uses_tasks(source, len(missing), workers):
        yield from _build_here(location, plan, source, groups, lease)
        return

    import ray

    from mcrnn.runners.ray_cluster import connected

    with connected():
        task = ray.remote(num_cpus=1, max_retries=2)(_build_group_in_task)
        shared = ray.put((location, plan, source, machines))
        waiting = iter(groups)
        running: dict[Any, list[Shard]] = {}
        try:
            while True:
                for group in waiting:
                    running[task.remote(shared, group)] = group
                    if len(running) >= workers:
                        break
                if not running:
                    return
                done, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_CHECKS)
                lease.check()
                for reference in done:
                    yield from zip(running.pop(reference), ray.get(reference), strict=True)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        finally:
            for reference in running:
                ray.cancel(reference)


def _build_here(
    location: Location, plan: StorePlan, source: Source, groups: list[list[Shard]], lease: Lease
) -> Iterator[tuple[Shard, Record]]:
    """Build the shards in this process, where a thread writes those of one group while the next one is computed."""
    with ThreadPoolExecutor(1) as writer:
        before: tuple[list[Shard], Future[list[Record]]] | None = None
        for group in groups:
            lease.check()
            try:
                computed = source.compute(group)
            finally:  # an error or Ctrl-C ends the build, but what is being written is kept
                if before is not None:
                    yield from zip(before[0], before[1].result(), strict=True)
            before = group, writer.submit(_write_group, location, plan, group, computed)
            del computed  # so that no more than two groups are in memory
        if before is not None:
            yield from zip(before[0], before[1].result(), strict=True)


def _build_group_in_task(
    shared: tuple[Location, StorePlan, Source, CheckedMachines | None], shards: list[Shard]
) -> list[Record]:
    # Ray replaces a reference by its object only where the reference is an argument itself, so what is shared is one.
    location, plan, source, machines = shared
    if machines is not None:
        machines.check_this_one()
    return _write_group(location, plan, shards, source.compute(shards))


def _write_group(
    location: Location, plan: StorePlan, shards: list[Shard], computed: list[dict[str, np.ndarray]]
) -> list[Record]:
    """Encode, write and read back the objects of some shards that were computed together.

    Returns:
        The record of each shard.

    Raises:
        UserError: values are not finite, or the storage does not return what was written to it.
    """
    records = []
    for shard, arrays in zip(shards, computed, strict=True):
        objects = {}
        for name, values in arrays.items():
            if not np.isfinite(values).all():
                raise UserError(f"{name} of {shard.split} {shard.start} to {shard.stop - 1} is not finite everywhere")
            key, content = plan.key(name, shard), plan.encode(name, shard, values)
            location.write(key, content)
            if location.read(key) != content:
                raise UserError(f"'{location.url}' did not return '{key}' as it was written: check the storage")
            objects[key] = {"size": len(content), "sha256": sha256(content)}
        statistics = Statistics.of(arrays["field"], plan.mask).to_json()
        records.append({"objects": objects, "split": shard.split, "statistics": statistics})
    return records
