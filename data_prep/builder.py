"""Build a field store shard by shard, so that nothing is lost and nothing half-written is ever read.

The order of writes is what makes a build safe to kill at any moment: first the metadata with status
`building`; then, for each shard, the object itself and after it a marker with its size, SHA-256 and
statistics; then the manifest; the status `complete` last. The same command continues an unfinished build
with the shards that have no marker.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.core.array import ShardsConfigParam

from mcrnn.errors import UserError
from mcrnn.storage import write_atomically
from mcrnn.store_format import (
    BUILD_FOLDER,
    DIMENSIONS,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    attributes_digest,
    canonical_json,
    sha256,
)

Coordinate = tuple[tuple[str, ...], np.ndarray, dict[str, Any]]
"""dimensions, values, attributes"""


@dataclass(frozen=True)
class StorePlan:
    """Everything a store is to be, known before the first number is computed."""

    samples: dict[str, int]
    """split -> number of samples"""
    frames: int
    channels: list[str]
    height: int
    width: int
    samples_per_shard: int
    """a shard is computed as one batch and stored as one object"""
    coordinates: dict[str, Coordinate]
    attributes: dict[str, Any]
    """variable, units, boundary, time step: what a reader must know"""
    recipe: dict[str, Any]
    """what determines the numbers: command, parameters, seed"""
    extras: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """further float32 arrays a shard brings, by name, with their dimensions"""

    def size(self, dimension: str, split: str) -> int:
        """Length of a dimension in a split."""
        sizes = (self.samples[split], self.frames, len(self.channels), self.height, self.width)
        return dict(zip(DIMENSIONS, sizes, strict=True))[dimension]

    def shards(self) -> Iterator[tuple[str, int, int]]:
        """(split, first sample, last sample + 1) of every shard."""
        for split, count in self.samples.items():
            for start in range(0, count, self.samples_per_shard):
                yield split, start, min(start + self.samples_per_shard, count)


@dataclass(frozen=True)
class Statistics:
    """Count, mean, sum of squared deviations and extremes of some values, in float64, mergeable."""

    count: int
    mean: float
    squares: float
    min: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> Statistics:
        """Statistics of an array of any shape."""
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        squares = float(((wide - mean) ** 2).sum())
        return cls(wide.size, mean, squares, float(wide.min()), float(wide.max()))

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both sets of values (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Statistics(
            count,
            self.mean + delta * other.count / count,
            self.squares + other.squares + delta**2 * self.count * other.count / count,
            min(self.min, other.min),
            max(self.max, other.max),
        )

    def summary(self) -> dict[str, float]:
        """mean, std (of the population), min and max."""
        std = math.sqrt(self.squares / self.count)
        return {"mean": self.mean, "std": std, "min": self.min, "max": self.max}


def build(
    path: Path,
    plan: StorePlan,
    compute: Callable[[str, int, int], dict[str, np.ndarray]],
    *,
    overwrite: bool = False,
    on_shard: Callable[[int], None] = lambda samples: None,
) -> bool:
    """Build the store, or continue or recognise the one that is there.

    Args:
        path: folder of the store.
        plan: what it is to be.
        compute: (split, start, stop) -> arrays of those samples: `field` of shape (stop - start, frames,
            channels, height, width) and the plan's extras.
        overwrite: delete what is there and start anew.
        on_shard: told the number of samples of each shard that is done, those found done included.

    Returns:
        True where something was computed, False where the store was complete already.

    Raises:
        UserError: there is something else at `path`, or a store of another recipe.
    """
    if overwrite and path.exists():
        if not (path / "zarr.json").exists():
            raise UserError(f"'{path}' is not a store; refusing to overwrite it")
        shutil.rmtree(path)
    attributes = _read_attributes(path)
    if attributes is None:
        _create(path, plan)
    else:
        _check_same_recipe(path, plan, attributes)
        if attributes["status"] == "complete":
            return False
    for leftover in path.rglob("*.partial"):
        leftover.unlink()
    group = zarr.open_group(path, mode="r+")
    markers = []
    for split, start, stop in plan.shards():
        marker_path = path / BUILD_FOLDER / f"{split}-{start:08d}.json"
        if not marker_path.exists():
            marker = _write_shard(path, group, plan, split, start, compute(split, start, stop))
            write_atomically(marker_path, canonical_json(marker))
        markers.append(json.loads(marker_path.read_bytes()))
        on_shard(stop - start)
    _complete(path, plan, markers)
    return True


def _read_attributes(path: Path) -> dict[str, Any] | None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    try:
        attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
        if attributes["format"] == FORMAT:
            return attributes
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if (path / BUILD_FOLDER).exists():
        return None  # killed before the first attributes were written
    raise UserError(f"'{path}' exists and is not a store of this project; choose another name")


def _check_same_recipe(path: Path, plan: StorePlan, attributes: dict[str, Any]) -> None:
    old, new = attributes["recipe"], json.loads(canonical_json(plan.recipe))
    differences = [f"{k} is {old.get(k)}, not {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
    if differences:
        raise UserError(
            f"'{path}' was made with other parameters: {'; '.join(differences)}. "
            "Choose another name, or --overwrite to replace it"
        )


def _create(path: Path, plan: StorePlan) -> None:
    """Metadata and coordinates; the root's attributes, without which there is no store, come last."""
    (path / BUILD_FOLDER).mkdir(parents=True, exist_ok=True)
    root = zarr.open_group(path, mode="a", zarr_format=3)
    for split in plan.samples:
        group = root.create_group(split, overwrite=True)
        for name, (dims, values, attrs) in plan.coordinates.items():
            values = np.arange(plan.samples[split]) if name == "sample" else values
            group.create_array(name, data=values, dimension_names=dims, attributes=attrs)
        for name, dims in {"field": DIMENSIONS, **plan.extras}.items():
            shape = tuple(plan.size(d, split) for d in dims)
            group.create_array(
                name,
                shape=shape,
                dtype="float32",
                chunks=(1, *shape[1:]),
                shards=ShardsConfigParam(
                    shape=(plan.samples_per_shard, *shape[1:]), index_location=ShardingCodecIndexLocation.start
                ),
                compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()],
                fill_value=float("nan"),
                dimension_names=dims,
            )
    with warnings.catch_warnings():
        # not in the specification yet, which is fine: readers that do not know it read the nodes instead
        warnings.simplefilter("ignore")
        root = zarr.consolidate_metadata(root.store)
    root.attrs.put(
        {"format": FORMAT, "format_version": FORMAT_VERSION, "status": "building", "recipe": plan.recipe}
    )


def _write_shard(
    path: Path, group: zarr.Group, plan: StorePlan, split: str, start: int, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Write one shard of every array and return its marker: the objects as they are on disk, the statistics."""
    objects = {}
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise UserError(f"sample {start} or one of the {len(values) - 1} after it is not finite")
        array = group[f"{split}/{name}"]
        assert isinstance(array, zarr.Array)
        array[start : start + len(values)] = values
        key = f"{split}/{name}/c/{start // plan.samples_per_shard}" + "/0" * (array.ndim - 1)
        content = (path / key).read_bytes()
        if not np.array_equal(np.asarray(array[start : start + len(values)]), values):
            raise OSError(f"'{path / key}' does not read back as it was written")
        objects[key] = {"size": len(content), "sha256": sha256(content)}
    return {"objects": objects, "split": split, "statistics": asdict(Statistics.of(arrays["field"]))}


def _complete(path: Path, plan: StorePlan, markers: list[dict[str, Any]]) -> None:
    statistics: Statistics | None = None
    objects: dict[str, dict[str, Any]] = {}
    for marker in markers:
        objects.update(marker["objects"])
        if marker["split"] == "train":
            shard = Statistics(**marker["statistics"])
            statistics = statistics.merge(shard) if statistics else shard
    assert statistics is not None
    for file in sorted(path.rglob("*")):
        key = file.relative_to(path).as_posix()
        if file.is_file() and key not in objects and key not in ("zarr.json", MANIFEST) and key[0] != ".":
            content = file.read_bytes()
            objects[key] = {"size": len(content), "sha256": sha256(content)}
    manifest = canonical_json({"objects": objects})
    write_atomically(path / MANIFEST, manifest)
    attributes = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "status": "complete",
        "channels": plan.channels,
        **plan.attributes,
        "statistics": statistics.summary(),
        "recipe": plan.recipe,
        "versions": {p: version(p) for p in ("mcrnn", "numpy", "torch", "zarr")},
        "manifest_sha256": sha256(manifest),
    }
    attributes["attributes_sha256"] = attributes_digest(json.loads(canonical_json(attributes)))
    zarr.open_group(path, mode="r+").attrs.put(attributes)
    shutil.rmtree(path / BUILD_FOLDER)
