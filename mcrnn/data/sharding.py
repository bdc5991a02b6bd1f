"""Decode a shard of a field directly into the memory where its values are wanted.

A shard is one object that holds several compressed chunks. Zarr's sharding codec writes it
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html), in the form that
`data_prep.plan.StorePlan` chooses:

    index      for each chunk, in C order: offset and length in bytes, two little-endian uint64
    checksum   crc32c of the index, 4 bytes
    chunks     each compressed by Blosc and followed by the crc32c of the compressed bytes, in any order

Zarr decodes shards as well, but passes every chunk through an event loop and copies it from a buffer of its own.
Reading a whole split takes it 1.5 to 2 times as long, so full loads, which precede every training, use this decoder.
Reads of single windows use Zarr's, which fetches only the chunks that it needs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import google_crc32c
import numpy as np
from numcodecs import blosc

ABSENT = 2**64 - 1
"""Offset in the index of a chunk that was not written because it holds nothing but the fill value."""

CHECKSUM_BYTES = 4
"""Size of a crc32c."""

INDEX_ENTRY_BYTES = 16
"""Size of the offset and the length of a chunk in the index."""


def decode(content: bytes, shard: Sequence[int], chunk: Sequence[int], out: np.ndarray) -> None:
    """Decode a shard and check every checksum.

    Args:
        content: the whole object.
        shard: shape of the shard.
        chunk: shape of its chunks, which divides the shape of the shard.
        out: float32 array that receives the values. It has the shape of the shard, or is shorter along some axes where
            the shard reaches beyond the end of its array.

    Raises:
        ValueError: the content is no such shard, a checksum is wrong, or a chunk is missing.
    """
    chunks_along_axes = [whole // part for whole, part in zip(shard, chunk, strict=True)]
    content_view = memoryview(content)  # slices of a view are no copies
    index_end = math.prod(chunks_along_axes) * INDEX_ENTRY_BYTES + CHECKSUM_BYTES
    index = np.frombuffer(_without_checksum(content_view[:index_end]), "<u8").reshape(*chunks_along_axes, 2)
    for position in itertools.product(*map(range, chunks_along_axes)):
        region = tuple(slice(i * size, (i + 1) * size) for i, size in zip(position, chunk, strict=True))
        target = out[region]
        if target.size == 0:
            continue  # the chunk lies beyond the end of the array
        offset, length = index[position].tolist()
        if offset == ABSENT:
            raise ValueError(f"chunk {position} is missing")
        compressed = _without_checksum(content_view[offset : offset + length])
        # Blosc writes whole chunks into contiguous memory; where the target is not like that, a copy follows.
        is_direct = target.shape == tuple(chunk) and target.flags.c_contiguous
        values = target if is_direct else np.empty(chunk, np.float32)
        # Bytes 4 to 8 of Blosc's header are the size after decompression, which must not exceed the memory given.
        if int.from_bytes(compressed[4:8], "little") != values.nbytes:
            raise ValueError(f"chunk {position} has another size")
        blosc.decompress(compressed, values)
        if not is_direct:
            target[...] = values[tuple(slice(size) for size in target.shape)]


def _without_checksum(data: memoryview) -> memoryview:
    """Compare the crc32c at the end of some bytes and return the bytes before it.

    Raises:
        ValueError: the checksum is wrong.
    """
    payload = data[:-CHECKSUM_BYTES]
    if google_crc32c.value(bytes(payload)) != int.from_bytes(data[-CHECKSUM_BYTES:], "little"):
        raise ValueError("wrong checksum")
    return payload
