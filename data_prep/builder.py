"""Build a field store shard by shard, so that a build may be killed at any moment and continued.

The order of writes makes this safe:

1. the root with the status `building`;
2. metadata and coordinates;
3. for each shard its objects, each of which is read back, and then a record with their sizes, their SHA-256 and the
   statistics of the values;
4. the manifest;
5. the root with the status `complete`, without which no reader opens the store.

The same command continues an unfinished build with the shards that have no record.

Shards are Ray tasks, each in a process with one thread, see `data_prep.shard_tasks`. The content of a shard depends on
its position alone, so the store is the same for any number of workers, in any order, in one go or in several. Machines
of a cluster are checked before anything is written, see `data_prep.machines`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_prep.existing_store import existing_root, is_complete, is_same_recipe, sizes_of_objects
from data_prep.plan import Shard, StorePlan, root_document
from data_prep.shard_records import LEASE, Record, ShardRecords
from data_prep.shard_tasks import build_shards, uses_tasks
from data_prep.statistics import Statistics
from mcrnn.data.manifest import map_ahead
from mcrnn.data.store_format import (
    FORMAT,
    MANIFEST,
    canonical_json,
    root_digest,
    sha256,
)
from mcrnn.storage.lease import Lease
from mcrnn.storage.location import Location

if TYPE_CHECKING:
    from data_prep.source_identity import SourceIdentity


class Source(Protocol):
    """Where the values of a store come from. A source is sent to workers, so it must pickle."""

    @property
    def sources(self) -> Sequence[SourceIdentity]:
        """What the values are read from; nothing where they are computed."""

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
            writing it, or a machine of the cluster cannot read the source or write the store.
    """
    if is_complete(location, plan, overwrite):
        return False
    machines = None
    if workers > 1:
        from mcrnn.runners.ray_cluster import check_reach

        check_reach(location, tracked=False)
        if uses_tasks(source, len(list(plan.shards())), workers):
            from data_prep.machines import check_machines

            machines = check_machines(location, source.sources)
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
            for shard, record in build_shards(location, plan, source, missing, workers, lease, machines):
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
