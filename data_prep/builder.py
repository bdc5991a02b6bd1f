"""Build a field store shard by shard, so that nothing is lost and nothing half-written is ever read.

The order of writes is what makes a build safe to kill at any moment: first the root with status `building`, then
metadata and coordinates; for each shard the object, read back, and after it a marker with its size, SHA-256
and statistics; then the manifest; the root with status `complete` last. The same command continues an
unfinished build with the shards that have no marker.

Shards are Ray tasks, one process with one thread a core. What a shard holds depends on its place alone, so the
result is the same for any number of workers, in any order, in one go or in several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from data_prep.plan import Shard, StorePlan, root_document
from data_prep.statistics import Statistics
from mcrnn.data.store_format import BUILD_FOLDER, FORMAT, FORMAT_VERSION, MANIFEST, canonical_json, root_digest, sha256
from mcrnn.errors import UserError
from mcrnn.storage.lease import Lease
from mcrnn.storage.location import Location

Marker = dict[str, Any]

LEASE = f"{BUILD_FOLDER}/lock.json"


class Source(Protocol):
    """Where the numbers come from. It is sent to workers, so it must pickle."""

    @property
    def shards_at_once(self) -> int:
        """Shards that are best computed together: 1, or more where a GPU is to be filled."""

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Arrays of each shard: `field`, (sample, time, channel, height, width), and the plan's extras."""


def build(
    location: Location,
    plan: StorePlan,
    source: Source,
    *,
    workers: int = 1,
    overwrite: bool = False,
    on_done: Callable[[int, bool], None] = lambda count, fresh: None,
) -> bool:
    """Build the store, or continue or recognise the one that is there.

    Args:
        location: folder of the store.
        plan: what it is to be.
        source: what computes it.
        workers: Ray tasks at a time; 1 computes in this process, without Ray.
        overwrite: delete what is there and start anew.
        on_done: told the samples or times of each shard that is done, and whether it was done now.

    Returns:
        True where something was built, False where the store was complete already.

    Raises:
        UserError: there is something else at `location`, or a store of another recipe, or another build is
            writing it.
    """
    if _is_complete(location, plan, overwrite):
        return False
    if workers > 1:
        from mcrnn.runners.ray_cluster import check_reach

        check_reach(location, tracked=False)
    lease = Lease(location, LEASE, "build")
    lease.acquire()
    try:
        # looked at again, for another build may have ended just before
        if _is_complete(location, plan, overwrite):
            return False
        keys = location.sizes()
        root = _read_root(location, keys)
        if overwrite and root is not None:
            for key in sorted(keys, key="zarr.json".__eq__):  # last, for without it this is no store to go on with
                if key != LEASE:
                    location.delete(key)
            keys, root = {}, None
        metadata = plan.metadata()
        if root is None:
            location.write("zarr.json", _json(root_document(metadata, _unfinished(plan))))
        for key, content in metadata.items():
            if key != "zarr.json" and keys.get(key) != len(content):
                location.write(key, content)
        markers = _sweep(location, plan, keys)
        for shard in plan.shards():
            if shard.name in markers:
                on_done(shard.stop - shard.start, False)
        missing = [shard for shard in plan.shards() if shard.name not in markers]
        for shard, marker in _make(location, plan, source, missing, workers, lease):
            markers[shard.name] = marker
            on_done(shard.stop - shard.start, True)
        _complete(location, plan, metadata, [markers[shard.name] for shard in plan.shards()])
    finally:
        lease.release()
    return True


def _read_root(location: Location, keys: dict[str, int]) -> dict[str, Any] | None:
    """The root's document, None where there is nothing yet or a build was killed before it wrote it."""
    if all(key.startswith(BUILD_FOLDER) or key.endswith(".partial") for key in keys):
        return None
    content = location.read("zarr.json") if "zarr.json" in keys else b""
    try:
        document = json.loads(content)
        if document["attributes"]["format"] == FORMAT:
            return document
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"'{location.url}' exists and is not a store of this project; choose another name")


def _is_complete(location: Location, plan: StorePlan, overwrite: bool) -> bool:
    """Whether the store of this plan is there already.

    Raises:
        UserError: there is something else, or a store of another recipe that is not to be overwritten.
    """
    root = _read_root(location, location.sizes())
    if root is None or overwrite:
        return False
    _check_same_recipe(location, plan, root["attributes"])
    return root["attributes"]["status"] == "complete"


def _check_same_recipe(location: Location, plan: StorePlan, attributes: dict[str, Any]) -> None:
    old, new = attributes["recipe"], json.loads(canonical_json(plan.recipe))
    different = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if different:
        named = "; ".join(f"{k} is {old.get(k, 'not set')}, not {new.get(k, 'not set')}" for k in different)
        raise UserError(
            f"'{location.url}' was made with other parameters: {named}. "
            "Choose another name, or --overwrite to replace it"
        )


def _unfinished(plan: StorePlan) -> dict[str, Any]:
    """The root's attributes while the store is being built."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "status": "building",
        "shards": len(list(plan.shards())),
        "recipe": plan.recipe,
    }


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def _marker_key(name: str) -> str:
    return f"{BUILD_FOLDER}/{name}.json"


def _sweep(location: Location, plan: StorePlan, keys: dict[str, int]) -> dict[str, Marker]:
    """Markers of the shards that are done and still there; what a killed writer left behind is removed."""
    for key in keys:
        if key.endswith(".partial"):
            location.delete(key)
    markers = {}
    for shard in plan.shards():
        if _marker_key(shard.name) not in keys:
            continue
        content = location.read(_marker_key(shard.name))
        try:
            marker = json.loads(content)
            if all(keys.get(key) == entry["size"] for key, entry in marker["objects"].items()):
                markers[shard.name] = marker
        except (ValueError, KeyError, TypeError):
            continue  # not a whole marker: the shard is made again
    return markers


def _make(
    location: Location, plan: StorePlan, source: Source, missing: list[Shard], workers: int, lease: Lease
) -> Iterator[tuple[Shard, Marker]]:
    """Make the missing shards, here or as Ray tasks, and hand out each with its marker when it is done."""
    at_once = source.shards_at_once
    groups = [missing[i : i + at_once] for i in range(0, len(missing), at_once)]
    if workers == 1 or len(groups) < 2 or at_once > 1:
        for group in groups:
            lease.renew()
            yield from zip(group, _make_shards(location, plan, source, group), strict=True)
        return

    import ray

    from mcrnn.runners.ray_cluster import connected

    with connected():
        call = ray.remote(num_cpus=1, max_retries=2)(_make_shards_of)
        shared = ray.put((location, plan, source))
        waiting = iter(groups)
        running: dict[Any, list[Shard]] = {}
        try:
            while True:
                for group in waiting:
                    running[call.remote(shared, group)] = group
                    if len(running) >= workers:
                        break
                if not running:
                    return
                done, _ = ray.wait(list(running), timeout=5.0)
                lease.renew()
                for reference in done:
                    yield from zip(running.pop(reference), ray.get(reference), strict=True)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        finally:
            for reference in running:
                ray.cancel(reference)


def _make_shards_of(shared: tuple[Location, StorePlan, Source], shards: list[Shard]) -> list[Marker]:
    return _make_shards(*shared, shards)


def _make_shards(location: Location, plan: StorePlan, source: Source, shards: list[Shard]) -> list[Marker]:
    """Compute, encode, write, read back, and mark as done."""
    markers = []
    for shard, arrays in zip(shards, source.compute(shards), strict=True):
        objects = {}
        for name, values in arrays.items():
            if not np.isfinite(values).all():
                raise UserError(f"{name} of {shard.split} {shard.start} to {shard.stop - 1} is not finite everywhere")
            key, content = plan.key(name, shard), plan.encode(name, shard, values)
            location.write(key, content)
            if location.read(key) != content:
                raise UserError(f"'{location.url}' did not return '{key}' as it was written: check the storage")
            objects[key] = {"size": len(content), "sha256": sha256(content)}
        statistics = Statistics.of(arrays["field"]).to_json()
        marker = {"objects": objects, "split": shard.split, "statistics": statistics}
        location.write(_marker_key(shard.name), canonical_json(marker))
        markers.append(marker)
    return markers


def _complete(location: Location, plan: StorePlan, metadata: dict[str, bytes], markers: list[Marker]) -> None:
    statistics: Statistics | None = None
    objects = {k: {"size": len(v), "sha256": sha256(v)} for k, v in metadata.items() if k != "zarr.json"}
    for marker in markers:
        objects.update(marker["objects"])
        if marker["split"] == "train":
            shard = Statistics(**marker["statistics"])
            statistics = statistics.merge(shard) if statistics else shard
    assert statistics is not None
    manifest = canonical_json({"objects": objects})
    location.write(MANIFEST, manifest)
    attributes = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "status": "complete",
        "layout": plan.layout,
        "channels": plan.channels,
        **plan.attributes,
        "statistics": statistics.summary(),
        "recipe": plan.recipe,
        "versions": {p: version(p) for p in ("mcrnn", "numpy", "torch", "zarr")},
        "manifest_sha256": sha256(manifest),
    }
    # through JSON and back, so that the digest is of what a reader will see
    document = json.loads(_json(root_document(metadata, attributes)))
    document["attributes"]["sha256"] = root_digest(document)
    location.write("zarr.json", _json(document))
    for done in plan.shards():
        location.delete(_marker_key(done.name))
