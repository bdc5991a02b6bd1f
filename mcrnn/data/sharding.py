"""One object of a field, decoded straight into the memory where it is to be.

A shard is what Zarr v3's sharding codec writes (https://zarr-specs.readthedocs.io, codec `sharding_indexed`): an
index of offset and length of each chunk with its crc32c, then the chunks, each blosc with its crc32c behind it.
Zarr reads it too, but through memory of its own and an event loop, at more than twice the time: for a full load
from object storage that is the larger half.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import google_crc32c
import numpy as np
from numcodecs import blosc

ABSENT = 2**64 - 1
CHECKSUM = 4
"""bytes of a crc32c"""


def decode(content: bytes, shard: Sequence[int], chunk: Sequence[int], out: np.ndarray) -> None:
    """Decode a shard, every checksum checked.

    Args:
        content: the whole object.
        shard: shape of the shard.
        chunk: shape of its chunks, which divides it.
        out: float32, of the shape of the shard or of its first part along any axis, at the edge of an array.

    Raises:
        ValueError: the content is not such a shard, a checksum is wrong or a chunk is missing.
    """
    counts = [whole // part for whole, part in zip(shard, chunk, strict=True)]
    head = math.prod(counts) * 16
    content_view = memoryview(content)
    index = np.frombuffer(_checked(content_view[: head + CHECKSUM]), "<u8").reshape(*counts, 2)
    for place in itertools.product(*map(range, counts)):
        where = tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, chunk, strict=True))
        part = out[where]
        offset, length = index[place].tolist()
        if part.size == 0:
            continue
        if offset == ABSENT:
            raise ValueError(f"chunk {place} is missing")
        packed = _checked(content_view[offset : offset + length])
        direct = part.shape == tuple(chunk) and part.flags.c_contiguous
        values = part if direct else np.empty(chunk, np.float32)
        if int.from_bytes(packed[4:8], "little") != values.nbytes:  # the size that blosc's header states
            raise ValueError(f"chunk {place} has another size")
        blosc.decompress(packed, values)
        if not direct:
            part[...] = values[tuple(slice(size) for size in part.shape)]


def _checked(data: memoryview) -> memoryview:
    """Bytes without the checksum at their end, which they must match."""
    payload = data[:-CHECKSUM]
    if google_crc32c.value(bytes(payload)) != int.from_bytes(data[-CHECKSUM:], "little"):
        raise ValueError("wrong checksum")
    return payload
