"""Append to a store, so that it may be killed at any moment: the store is as it was, or the command goes on.

The order of writes makes this safe:

1. a marker that says what is being appended, below `.build/`;
2. the objects that have new frames or samples only, with a record of each as in a build. No reader knows of them yet;
3. below `.build/staged/` all objects that change: the last object of the split where the new ones begin within it, the
   times of the split or the numbers of its samples, its shape, the manifest and the root;
4. the root with the status `appending`: until here, readers see the store as it was;
5. the staged objects at their places, the root, with the status `complete`, last.

Step 5 only copies some small objects. The command, run again, does it where it was interrupted.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from data_prep.append_plan import AppendPlan
from data_prep.plan import Shard
from data_prep.shard_records import ShardRecords, record_keys
from data_prep.shard_tasks import build_shards, uses_tasks
from data_prep.statistics import Statistics
from mcrnn.data.manifest import map_ahead
from mcrnn.data.root_document import read_root
from mcrnn.data.segments import WHOLE
from mcrnn.data.store import FieldStore
from mcrnn.data.store_format import (
    APPENDING,
    BUILD_FOLDER,
    FORMAT_VERSION_WITH_MORE,
    MANIFEST,
    SPLITS,
    canonical_json,
    root_digest,
    sha256,
)
from mcrnn.errors import UserError
from mcrnn.storage.lease import Lease
from mcrnn.storage.location import Location

MARKER = f"{BUILD_FOLDER}/append"
"""Key of the object that says what is being appended."""
STAGED = f"{BUILD_FOLDER}/staged/"
"""Begin of the keys of objects that become part of the store together."""


def append(
    plan: AppendPlan,
    lease: Lease,
    *,
    new_statistics: bool = False,
    workers: int = 1,
    on_done: Callable[[int], None] = lambda count: None,
) -> None:
    """Append what is planned, or go on with it.

    Args:
        plan: what is appended.
        lease: the lease of the store, which is held.
        new_statistics: add what is new to the statistics of the training split.
        workers: number of Ray tasks at a time; 1 reads in this process, without Ray.
        on_done: called with the number of frames or samples that are done.

    Raises:
        UserError: a source cannot be read or has missing values, or statistics would not change, or a machine of the
            cluster cannot read the sources or write the store.
    """
    if new_statistics and plan.split != "train":
        raise UserError(
            f"statistics are those of the training split, and {plan.split} is appended to: leave out --new-statistics"
        )
    location = plan.store.location
    machines = None
    if uses_tasks(plan.source, len(plan.whole), workers):
        from data_prep.machines import check_machines
        from mcrnn.runners.ray_cluster import check_reach

        check_reach(location, tracked=False)
        machines = check_machines(location, plan.source.sources)
    records = _records(plan, new_statistics)
    missing = [shard for shard in plan.whole if shard.name not in records.records]
    on_done(sum(shard.stop - shard.start for shard in plan.whole if shard not in missing))
    try:
        for shard, record in build_shards(location, plan.plan, plan.source, missing, workers, lease, machines):
            records.add(shard.name, record)
            on_done(shard.stop - shard.start)
    finally:
        if not lease.lost:
            records.write()
    done = [records.records[shard.name] for shard in plan.whole]
    parts = [Statistics.from_json(record["statistics"]) for record in done]
    changed: dict[str, bytes] = {}
    if plan.mixed is not None:
        key, changed[key], part = _continue_object(plan, plan.mixed)
        parts.insert(0, part)
        on_done(plan.mixed.stop - plan.before)
    root = read_root(location)
    changed |= _metadata(plan, root)
    objects = dict(plan.store.manifest.objects)
    for record in done:
        objects |= record["objects"]
    objects |= {key: {"size": len(content), "sha256": sha256(content)} for key, content in changed.items()}
    changed[MANIFEST] = canonical_json({"objects": objects})
    statistics = _statistics(plan, parts) if new_statistics else plan.store.attributes["statistics"]
    changed["zarr.json"] = _root(plan, root, sha256(changed[MANIFEST]), statistics)
    lease.confirm()  # what follows would mix the frames of two commands
    for key, content in changed.items():
        location.write(STAGED + key, content)
    before = json.loads(location.read("zarr.json"))
    before["attributes"] |= {"status": APPENDING, "staged": list(changed)}
    location.write("zarr.json", _json(before))
    finish(location)


def finish(location: Location) -> None:
    """Put the staged objects at their places, if the store waits for that."""
    attributes = read_root(location)["attributes"]
    if attributes.get("status") != APPENDING:
        return
    staged = [key for key in attributes["staged"] if key != "zarr.json"]
    for key in [*staged, "zarr.json"]:
        location.write(key, location.read(STAGED + key))
    clear(location)


def clear(location: Location) -> None:
    """Delete what appending has kept below `.build/`, but for the lease."""
    keys = location.sizes()
    kept = (*record_keys(keys), *(key for key in keys if key == MARKER or key.startswith(STAGED)))
    for _ in map_ahead(location.delete, kept):
        pass


def _records(plan: AppendPlan, new_statistics: bool) -> ShardRecords:
    """Return the records of the objects that are done, after those of something else have been deleted."""
    location = plan.store.location
    marker = canonical_json(
        {"digest": plan.store.digest, "split": plan.split, "sources": plan.sources, "new_statistics": new_statistics}
    )
    keys = location.sizes()
    if MARKER in keys and location.read(MARKER) == marker:
        return ShardRecords(location, keys)
    of_others = {key for record in ShardRecords(location, keys).records.values() for key in record["objects"]}
    clear(location)
    for _ in map_ahead(location.delete, of_others - plan.store.manifest.objects.keys()):
        pass
    location.write(MARKER, marker)
    return ShardRecords(location, {})


def _continue_object(plan: AppendPlan, shard: Shard) -> tuple[str, bytes, Statistics]:
    """Return key and content of the object in which new frames or samples begin, and the statistics of these."""
    axis = plan.store.growing_axis
    kept = (slice(None),) * axis + (slice(shard.start, plan.before),)
    old = np.asarray(plan.store.array(plan.split)[kept], dtype=np.float32)
    new = plan.source.compute([Shard(plan.split, plan.before, shard.stop)])[0]["field"]
    if not np.isfinite(new).all():
        raise UserError(f"field of {plan.split} {plan.before} to {shard.stop - 1} is not finite everywhere")
    content = plan.plan.encode("field", shard, np.concatenate([old, new], axis=axis))
    return plan.plan.key("field", shard), content, Statistics.of(new, plan.plan.mask)


def _metadata(plan: AppendPlan, root: dict[str, Any]) -> dict[str, bytes]:
    """Return shape and coordinate of the longer split by key, and change their copies in the root document."""
    store, location, split = plan.store, plan.store.location, plan.split
    name, before = ("time", store.times(split)) if store.is_series else ("sample", store.sample_numbers(split))
    attributes = json.loads(location.read(f"{split}/{name}/zarr.json"))["attributes"]
    objects: dict[str, Buffer] = {}
    values = np.concatenate([before, plan.added])
    zarr.create_array(
        MemoryStore(objects),
        name=name,
        data=values,
        chunks=values.shape,
        dimension_names=(name,),
        attributes=attributes,
    )
    field = json.loads(location.read(f"{split}/field/zarr.json"))
    field["shape"][store.growing_axis] = len(values)
    found = {f"{split}/{key}": value.to_bytes() for key, value in objects.items() if key.startswith(f"{name}/")}
    found[f"{split}/field/zarr.json"] = _json(field)
    copies = root["consolidated_metadata"]["metadata"]
    copies[f"{split}/field"]["shape"][store.growing_axis] = len(values)
    for key in ("shape", "chunk_grid"):
        copies[f"{split}/{name}"][key] = json.loads(found[f"{split}/{name}/zarr.json"])[key]
    return found


def _statistics(plan: AppendPlan, parts: list[Statistics]) -> dict[str, list[float]]:
    """Return the statistics of the training split with what is new."""
    mask_CHW = plan.plan.mask
    points = plan.plan.height * plan.plan.width
    counts = [points] * len(plan.plan.channels) if mask_CHW is None else mask_CHW.sum((1, 2)).tolist()
    frames = math.prod(plan.store.array(plan.split).shape[:2])
    found = Statistics.from_summary(plan.store.attributes["statistics"], [frames * count for count in counts])
    for part in parts:
        found = found.merge(part)
    return found.summary()


def _root(plan: AppendPlan, root: dict[str, Any], digest: str, statistics: dict[str, list[float]]) -> bytes:
    """Return the root document of the longer store."""
    store = plan.store
    unit = "frames" if store.is_series else "samples"
    first = {
        "digest": store.digest,
        unit: store.lengths,
        "sources": store.attributes["recipe"].get("sources"),
        "statistics": store.attributes["statistics"],
    }
    state = {
        "digest": digest,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "split": plan.split,
        "sources": plan.sources,
        unit: store.lengths | {plan.split: plan.before + len(plan.added)},
        "statistics": statistics,
    }
    attributes = {key: value for key, value in root["attributes"].items() if key not in ("sha256", "staged")}
    attributes |= {
        "status": "complete",
        "statistics": statistics,
        "history": [*(store.history or [first]), state],
        "manifest_sha256": digest,
    }
    segments = {split: store.segments(split) for split in SPLITS} | {plan.split: plan.segments}
    if any(of_split != WHOLE for of_split in segments.values()):
        attributes |= {"segments": segments, "format_version": FORMAT_VERSION_WITH_MORE}
    document = json.loads(_json({**root, "attributes": attributes}))
    document["attributes"]["sha256"] = root_digest(document)
    return _json(document)


def open_store(location: Location) -> FieldStore:
    """Finish what was interrupted, and open the store."""
    finish(location)
    return FieldStore.open(location)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
