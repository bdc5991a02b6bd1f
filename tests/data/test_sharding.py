"""Our decoder of shards against Zarr, which writes them."""

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.core.array import ShardsConfigParam
from zarr.storage import MemoryStore

from mcrnn.data.sharding import decode

SHARD, CHUNK = (4, 6, 1, 8, 8), (1, 3, 1, 8, 8)


def written(values: np.ndarray, fill: float = np.nan) -> bytes:
    """The one object of an array that is at most a shard."""
    store = MemoryStore()
    array = zarr.create_array(
        store,
        shape=values.shape,
        dtype="float32",
        chunks=CHUNK,
        shards=ShardsConfigParam(shape=SHARD, index_location=ShardingCodecIndexLocation.start),
        compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=4), Crc32cCodec()],
        fill_value=fill,
    )
    array[...] = values
    return store._store_dict["c/0/0/0/0/0"].to_bytes()


def field(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [SHARD, (3, 6, 1, 8, 8), (4, 4, 1, 8, 8), (1, 1, 1, 8, 8)])
def test_decodes_what_zarr_writes(shape: tuple[int, ...]) -> None:
    values, out = field(*shape), np.zeros(shape, np.float32)
    decode(written(values), SHARD, CHUNK, out)
    np.testing.assert_array_equal(out, values)


def test_decodes_into_a_part_that_is_not_contiguous() -> None:
    values, whole = field(*SHARD), np.zeros((4, 20, 1, 8, 8), np.float32)
    decode(written(values), SHARD, CHUNK, whole[:, 5:11])
    np.testing.assert_array_equal(whole[:, 5:11], values)
    assert not whole[:, :5].any()
    assert not whole[:, 11:].any()


def test_a_chunk_that_was_not_written_is_an_error() -> None:
    values = field(*SHARD)
    values[1, :3] = np.nan  # Zarr leaves out chunks that are all fill value
    with pytest.raises(ValueError, match=r"chunk \(1, 0, 0, 0, 0\) is missing"):
        decode(written(values), SHARD, CHUNK, np.zeros(SHARD, np.float32))


def test_every_flipped_byte_is_an_error() -> None:
    content = written(field(*SHARD))
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="checksum"):
            decode(bytes(damaged), SHARD, CHUNK, np.zeros(SHARD, np.float32))


@pytest.mark.parametrize("length", [0, 10, 200, -1])
def test_truncated_content_is_an_error(length: int) -> None:
    with pytest.raises(ValueError, match=r"checksum|size"):
        decode(written(field(*SHARD))[:length], SHARD, CHUNK, np.zeros(SHARD, np.float32))
