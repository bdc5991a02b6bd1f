"""What a store is to be, known before its first number is computed; and one shard of it as bytes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.core.array import ShardsConfigParam
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from mcrnn.data.store_format import DIMENSIONS

Coordinate = tuple[tuple[str, ...], np.ndarray, dict[str, Any]]
"""dimensions, values, attributes"""


@dataclass(frozen=True)
class SplitPlan:
    """One split: how many samples of how many frames."""

    samples: int
    frames: int
    coordinates: dict[str, Coordinate]


@dataclass(frozen=True)
class Shard:
    """A run of samples or of times of one split: computed by one task, stored as one object an array."""

    split: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of its marker; sorts in the order of the data."""
        return f"{self.split}-{self.start:010d}"


@dataclass(frozen=True)
class StorePlan:
    """A store: its splits, its grid, how it is cut into shards, and what its attributes say."""

    splits: dict[str, SplitPlan]
    channels: list[str]
    height: int
    width: int
    layout: Literal["samples", "series"]
    """whether shards are runs of samples or, for a series of one sample, of times"""
    chunk: int
    """samples or times that are compressed, and can be read, as one"""
    shard: int
    """samples or times that are one object; a multiple of `chunk`"""
    attributes: dict[str, Any]
    """variable, units, boundary, time step: what a reader must know"""
    recipe: dict[str, Any]
    """what determines the numbers: command, parameters, seed"""
    extras: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """further float32 arrays that a shard brings, by name, with their dimensions"""

    @property
    def arrays(self) -> dict[str, tuple[str, ...]]:
        """Dimensions of the field and of the extras."""
        return {"field": DIMENSIONS, **self.extras}

    @property
    def axis(self) -> str:
        """The dimension along which the store is cut."""
        return "sample" if self.layout == "samples" else "time"

    def shape(self, array: str, split: str) -> tuple[int, ...]:
        """Shape of an array of a split."""
        plan = self.splits[split]
        sizes = (plan.samples, plan.frames, len(self.channels), self.height, self.width)
        known = dict(zip(DIMENSIONS, sizes, strict=True))
        return tuple(known[dimension] for dimension in self.arrays[array])

    def length(self, split: str) -> int:
        """Samples or times of a split, along the axis that is cut."""
        plan = self.splits[split]
        return plan.samples if self.layout == "samples" else plan.frames

    def shards(self) -> Iterator[Shard]:
        """All shards, in the order of the data."""
        for split in self.splits:
            length = self.length(split)
            for start in range(0, length, self.shard):
                yield Shard(split, start, min(start + self.shard, length))

    def key(self, array: str, shard: Shard) -> str:
        """Where a shard of an array is stored."""
        dims = self.arrays[array]
        place = "/".join(str(shard.start // self.shard) if d == self.axis else "0" for d in dims)
        return f"{shard.split}/{array}/c/{place}"

    def metadata(self) -> dict[str, bytes]:
        """Every object of the store but the shards and the manifest, by key; the root has no attributes yet."""
        objects: dict[str, Buffer] = {}
        store = MemoryStore(objects)
        root = zarr.create_group(store, zarr_format=3)
        for split, plan in self.splits.items():
            group = root.create_group(split)
            for name, (dims, values, attributes) in plan.coordinates.items():
                group.create_array(name, data=values, chunks=values.shape, dimension_names=dims, attributes=attributes)
            beside = [n for n, (dims, _, _) in plan.coordinates.items() if n not in dims]
            for name in self.arrays:
                array = self._create(group.store_path.store, f"{split}/{name}", name, split, self.length(split))
                if beside and name == "field":
                    array.attrs["coordinates"] = " ".join(beside)
        with warnings.catch_warnings():
            # not in the specification yet, which is fine: readers that do not know it read the nodes instead
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(store)
        return {key: value.to_bytes() for key, value in objects.items()}

    def encode(self, array: str, shard: Shard, values: np.ndarray) -> bytes:
        """A shard as the bytes of its object: the same as a write into the whole array would leave.

        Raises:
            RuntimeError: the bytes do not decode to the values.
        """
        objects: dict[str, Buffer] = {}
        part = self._create(MemoryStore(objects), "", array, shard.split, shard.stop - shard.start)
        part[...] = values
        if not np.array_equal(np.asarray(part[...]), values):
            raise RuntimeError(f"{shard.name} of {array} does not decode to what was encoded")
        (key,) = [key for key in objects if key != "zarr.json"]
        return objects[key].to_bytes()

    def _create(self, store: Store, path: str, array: str, split: str, length: int) -> zarr.Array:
        """An array of a split, or a part of it of `length` along the axis that is cut."""
        dims = self.arrays[array]
        whole = self.shape(array, split)
        shape, chunk, shard = (
            tuple(size if d == self.axis else n for d, n in zip(dims, whole, strict=True))
            for size in (length, self.chunk, self.shard)
        )
        return zarr.create_array(
            store,
            name=path or None,
            shape=shape,
            dtype="float32",
            chunks=chunk,
            shards=ShardsConfigParam(shape=shard, index_location=ShardingCodecIndexLocation.start),
            compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()],
            fill_value=float("nan"),
            dimension_names=dims,
        )


def text_array(values: list[str]) -> np.ndarray:
    """Names as a coordinate."""
    return np.array(values, dtype=np.dtypes.StringDType())


def root_document(metadata: dict[str, bytes], attributes: dict[str, Any]) -> dict[str, Any]:
    """The root's `zarr.json` with these attributes."""
    return {**json.loads(metadata["zarr.json"]), "attributes": attributes}
