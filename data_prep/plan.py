"""The plan of a store, known before its first value is computed: its metadata, its shards, and a shard as bytes."""

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

from mcrnn.data.sharding import decode
from mcrnn.data.store_format import DIMENSIONS, FORMAT_VERSION, FORMAT_VERSION_WITH_MORE, MASK

Coordinate = tuple[tuple[str, ...], np.ndarray, dict[str, Any]]
"""Dimensions, values and attributes of a coordinate array."""


@dataclass(frozen=True)
class SplitPlan:
    """The plan of one split.

    Attributes:
        samples: number of samples.
        frames: number of frames of each sample.
        coordinates: coordinate arrays by name.
    """

    samples: int
    frames: int
    coordinates: dict[str, Coordinate]


@dataclass(frozen=True)
class Shard:
    """Consecutive samples or times of one split, which are computed by one task. Each array of them is one object.

    Attributes:
        split: train, val or test.
        start: first sample or time.
        stop: sample or time after the last.
    """

    split: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the shard's record. Names sort in the order of the data."""
        return f"{self.split}-{self.start:010d}"


@dataclass(frozen=True)
class StorePlan:
    """The plan of a store: its splits, its grid, how it is cut into shards, and its attributes.

    Attributes:
        splits: plan of each split, by name.
        channels: names of the channels, in order.
        height: rows of the grid.
        width: columns of the grid.
        layout: `samples` if shards are cut along the samples, `series` if they are cut along the times of one sample.
        chunk: number of samples or times that are compressed together, and are the least that can be read.
        shard: number of samples or times of one object; a multiple of `chunk`.
        attributes: root attributes that readers need: variable, units, boundary, time_step.
        recipe: all that determines the values: command, parameters, seed.
        extras: dimensions of further float32 arrays that a source computes with the field, by name.
        mask: points (channel, height, width) that have values, None where all have.
    """

    splits: dict[str, SplitPlan]
    channels: list[str]
    height: int
    width: int
    layout: Literal["samples", "series"]
    chunk: int
    shard: int
    attributes: dict[str, Any]
    recipe: dict[str, Any]
    extras: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mask: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, tuple[str, ...]]:
        """Dimensions of the field and of the extras, by name."""
        return {"field": DIMENSIONS, **self.extras}

    @property
    def format_version(self) -> int:
        """The oldest version of the format whose readers understand the store."""
        is_plain = not self.attributes.keys() & {"segments", "inputs"} and self.mask is None
        return FORMAT_VERSION if is_plain else FORMAT_VERSION_WITH_MORE

    @property
    def axis(self) -> str:
        """The dimension along which the store is cut into shards: sample or time."""
        return "sample" if self.layout == "samples" else "time"

    def shape(self, array: str, split: str) -> tuple[int, ...]:
        """Return the shape of an array of a split."""
        plan = self.splits[split]
        sizes = (plan.samples, plan.frames, len(self.channels), self.height, self.width)
        known = dict(zip(DIMENSIONS, sizes, strict=True))
        return tuple(known[dimension] for dimension in self.arrays[array])

    def length(self, split: str) -> int:
        """Return the number of samples (or of times, for a series) of a split."""
        plan = self.splits[split]
        return plan.samples if self.layout == "samples" else plan.frames

    def shards(self) -> Iterator[Shard]:
        """Yield all shards in the order of the data."""
        for split in self.splits:
            length = self.length(split)
            for start in range(0, length, self.shard):
                yield Shard(split, start, min(start + self.shard, length))

    def key(self, array: str, shard: Shard) -> str:
        """Return the key of the object of a shard of an array, as Zarr names it: `train/field/c/3/0/0/0/0`."""
        dims = self.arrays[array]
        position = "/".join(str(shard.start // self.shard) if d == self.axis else "0" for d in dims)
        return f"{shard.split}/{array}/c/{position}"

    def metadata(self) -> dict[str, bytes]:
        """Return the objects of the store by key, without the shards and the manifest.

        The root, `zarr.json`, has no attributes yet; `root_document` adds them.
        """
        objects: dict[str, Buffer] = {}
        store = MemoryStore(objects)
        root = zarr.create_group(store, zarr_format=3)
        if self.mask is not None:
            words: dict[str, Any] = {"long_name": "whether the channel has values at the point"}
            root.create_array(
                MASK, data=self.mask, chunks=self.mask.shape, dimension_names=DIMENSIONS[2:], attributes=words
            )
        for split, plan in self.splits.items():
            group = root.create_group(split)
            for name, (dims, values, attributes) in plan.coordinates.items():
                group.create_array(name, data=values, chunks=values.shape, dimension_names=dims, attributes=attributes)
            # xarray finds by this attribute the coordinates that have another name than their dimension.
            further = [name for name, (dims, _, _) in plan.coordinates.items() if name not in dims]
            for name in self.arrays:
                array = self._create(group.store_path.store, f"{split}/{name}", name, split, self.length(split))
                if further and name == "field":
                    array.attrs["coordinates"] = " ".join(further)
        with warnings.catch_warnings():
            # Zarr warns that consolidated metadata are not in the specification of version 3 yet. Readers that do not
            # know them read the metadata of each node instead.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(store)
        return {key: value.to_bytes() for key, value in objects.items()}

    def encode(self, array: str, shard: Shard, values: np.ndarray) -> bytes:
        """Encode a shard to the bytes of its object, which are those that Zarr would write into the whole array.

        They are made by Zarr itself: it writes the values into an array in memory that consists of this one shard. In
        this way there is no encoder of our own that could differ from Zarr's, and the bytes are known before they are
        stored, so that the builder can hash them, write them atomically and compare them with what it reads back. Zarr
        does not offer its codecs as functions from values to bytes.

        Raises:
            RuntimeError: the bytes do not decode to the values.
        """
        objects: dict[str, Buffer] = {}
        part = self._create(MemoryStore(objects), "", array, shard.split, shard.stop - shard.start)
        part[...] = values
        (key,) = [key for key in objects if key != "zarr.json"]
        content = objects[key].to_bytes()
        assert part.shards is not None, "arrays are always written in shards"
        decoded = np.empty(values.shape, np.float32)
        decode(content, part.shards, part.chunks, decoded)  # as readers do, and faster than Zarr
        if not np.array_equal(decoded, values):
            raise RuntimeError(f"{shard.name} of {array} does not decode to what was encoded")
        return content

    def _create(self, store: Store, path: str, array: str, split: str, length: int) -> zarr.Array:
        """Create an array of a split, or a part of it that has `length` samples or times.

        Args:
            store: where the array is created.
            path: path of the array in the store, empty for the root.
            array: name of the array in the plan.
            split: train, val or test.
            length: samples or times of the array that is created.
        """
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
    """Return some names as the values of a coordinate."""
    return np.array(values, dtype=np.dtypes.StringDType())


def root_document(metadata: dict[str, bytes], attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the root document, `zarr.json`, with some attributes.

    Args:
        metadata: the metadata that `StorePlan.metadata` returns.
        attributes: the root attributes.
    """
    return {**json.loads(metadata["zarr.json"]), "attributes": attributes}
