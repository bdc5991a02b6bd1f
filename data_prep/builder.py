"""Build a field store shard by shard, so that a build may be killed at any moment and continued.

The order of writes makes this safe:

1. the root with the status `building`;
2. metadata and coordinates;
3. for each shard its objects, each of which is read back, and then a record with their sizes, their SHA-256 and the
   statistics of the values;
4. the manifest;
5. the root with the status `complete`, without which no reader opens the store.

The same command continues an unfinished build with the shards that have no record.

Shards are Ray tasks, each in a process with one thread. The content of a shard depends on its position alone, so the
store is the same for any number of workers, in any order, in one go or in several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from data_prep.existing_store import existing_root, is_complete, is_same_recipe, sizes_of_objects
from data_prep.plan import Shard, StorePlan, root_document
from data_prep.shard_records import LEASE, Record, ShardRecords
from data_prep.statistics import Statistics
from mcrnn.data.manifest import map_ahead
from mcrnn.data.store_format import (
    FORMAT,
    MANIFEST,
    canonical_json,
    root_digest,
    sha256,
)
from mcrnn.errors import UserError
from mcrnn.storage.lease import Lease
from mcrnn.storage.location import Location

SECONDS_BETWEEN_CHECKS = 5.0
"""Longest time between two checks of the lease while workers compute."""


class Source(Protocol):
    """Where the values of a store come from. A source is sent to workers, so it must pickle."""

    @property
    def shards_at_once(self) -> int:
        """Number of shards that are best computed together: 1 on a CPU, more where a GPU is to be filled."""

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Compute or read some shards.

        The result may depend on the positions of the shards and on the source's own parameters only.

        Returns:
            For each shard its arrays by name: `field` (sample, time, channel, height, width) and the plan's extras, all
            float32.
        """


def build(
    location: Location,
    plan: StorePlan,
    source: Source,
    *,
    workers: int = 1,
    overwrite: bool = False,
    on_done: Callable[[int, bool], None] = lambda count, fresh: None,
) -> bool:
    """Build a store, continue an unfinished one, or leave a complete one alone.

    Args:
        location: folder of the store.
        plan: what the store is to hold.
        source: what computes or reads its values.
        workers: number of Ray tasks at a time; 1 computes in this process, without Ray.
        overwrite: delete a store that is there and start anew.
        on_done: called for each shard that is done, with its number of samples or times and with whether it was
            computed now (True) or by an earlier build (False).

    Returns:
        Whether something was built; False if the store was complete already.

    Raises:
        UserError: there is something else at `location`, or a store of another recipe, or another build is
            writing it.
    """
    if is_complete(location, plan, overwrite):
        return False
    if workers > 1:
        from mcrnn.runners.ray_cluster import check_reach

        check_reach(location, tracked=False)
    lease = Lease(location, LEASE, "build")
    lease.acquire()
    try:
        # Another build may have ended between the first look and the lease.
        if is_complete(location, plan, overwrite):
            return False
        root = existing_root(location)
        keys = location.sizes()
        if root is not None and (overwrite or not is_same_recipe(root, plan)):
            _delete_store(location, keys)
            keys, root = {}, None
        metadata = plan.metadata()
        if root is None:
            location.write("zarr.json", _json(root_document(metadata, _unfinished(plan))))
        for key, content in metadata.items():
            if key != "zarr.json" and keys.get(key) != len(content):
                location.write(key, content)
        _delete_partial_files(location, keys)
        done = ShardRecords(location, keys)
        missing = []
        for shard in plan.shards():
            if shard.name in done.records:
                on_done(shard.stop - shard.start, False)
            else:
                missing.append(shard)
        try:
            for shard, record in build_shards(location, plan, source, missing, workers, lease):
                done.add(shard.name, record)
                on_done(shard.stop - shard.start, True)
        finally:
            if not lease.lost:
                done.write()
        lease.confirm()  # what follows would make a store of another build one that is complete and wrong
        _complete(location, plan, metadata, [done.records[shard.name] for shard in plan.shards()])
        done.delete()
    finally:
        lease.release()
    return True


def _delete_store(location: Location, keys: dict[str, int]) -> None:
    """Delete all objects of a store but the lease, which this build holds.

    The root goes last: as long as it is there, a deletion that was interrupted leaves what is still recognised as a
    store of this project, and the same command may go on deleting it.
    """
    for _ in map_ahead(location.delete, (key for key in keys if key not in ("zarr.json", LEASE))):
        pass
    location.delete("zarr.json")


def _unfinished(plan: StorePlan) -> dict[str, Any]:
    """Return the root attributes of a store that is being built."""
    return {
        "format": FORMAT,
        "format_version": plan.format_version,
        "status": "building",
        **sizes_of_objects(plan),
        "recipe": plan.recipe,
    }


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def _delete_partial_files(location: Location, keys: dict[str, int]) -> None:
    """Delete the temporary files of writers that were killed, see `mcrnn.storage.local.write_atomically`."""
    for key in keys:
        if key.endswith(".partial"):
            location.delete(key)


def build_shards(
    location: Location, plan: StorePlan, source: Source, missing: list[Shard], workers: int, lease: Lease
) -> Iterator[tuple[Shard, Record]]:
    """Build the missing shards, in this process or as Ray tasks, and yield each with its record when it is done."""
    at_once = source.shards_at_once
    groups = [missing[i : i + at_once] for i in range(0, len(missing), at_once)]
    if workers == 1 or len(groups) < 2 or at_once > 1:
        yield from _build_here(location, plan, source, groups, lease)
        return

    import ray

    from mcrnn.runners.ray_cluster import connected

    with connected():
        task = ray.remote(num_cpus=1, max_retries=2)(_build_group_in_task)
        shared = ray.put((location, plan, source))
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


def _build_group_in_task(shared: tuple[Location, StorePlan, Source], shards: list[Shard]) -> list[Record]:
    # Ray replaces a reference by its object only where the reference is an argument itself, so what is shared is one.
    location, plan, source = shared
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


def _complete(location: Location, plan: StorePlan, metadata: dict[str, bytes], records: list[Record]) -> None:
    """Write the manifest and the root with the status `complete`."""
    statistics: Statistics | None = None
    objects = {k: {"size": len(v), "sha256": sha256(v)} for k, v in metadata.items() if k != "zarr.json"}
    for record in records:
        objects.update(record["objects"])
        if record["split"] == "train":
            of_shard = Statistics.from_json(record["statistics"])
            statistics = statistics.merge(of_shard) if statistics else of_shard
    assert statistics is not None
    manifest = canonical_json({"objects": objects})
    location.write(MANIFEST, manifest)
    attributes = {
        "format": FORMAT,
        "format_version": plan.format_version,
        "status": "complete",
        "layout": plan.layout,
        "channels": plan.channels,
        **plan.attributes,
        "statistics": statistics.summary(),
        "recipe": plan.recipe,
        "versions": {p: version(p) for p in ("mcrnn", "numpy", "torch", "zarr")},
        "manifest_sha256": sha256(manifest),
    }
    # Through JSON and back, so that the digest is taken of the values that a reader will see.
    document = json.loads(_json(root_document(metadata, attributes)))
    document["attributes"]["sha256"] = root_digest(document)
    location.write("zarr.json", _json(document))
