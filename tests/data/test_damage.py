"""Damage to a store: it ends in correct data or in a clear error, never in wrong numbers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from data_prep.builder import build
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from tests.data_prep.test_builder import SAMPLES, Numbers, plan, values
from tests.storage.test_location import small_disk
from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.s3_server import S3Server

__all__ = ["small_disk"]


def read_all(place: Location) -> dict[str, np.ndarray]:
    store = FieldStore.open(place)
    assert store.channels == ["a", "b"]
    assert store.padding == "zeros"
    return {split: store.load(split) for split in SAMPLES}


def is_right(arrays: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(arrays[split], values(split, 0, count)) for split, count in SAMPLES.items())


@pytest.fixture
def built(place: Location) -> Location:
    build(place, plan(), Numbers())
    assert is_right(read_all(place))
    return place


def test_flipped_byte_anywhere_is_refused_or_harmless(tmp_path: Any) -> None:
    place = LocalFolder(tmp_path / "s.zarr")
    build(place, plan(), Numbers())
    reference = FieldStore.open(place)
    refused = harmless = 0
    generator = np.random.default_rng(0)
    for key in sorted(place.sizes()):
        content = place.read(key)
        positions = {0, len(content) - 1, *generator.integers(0, len(content), 6).tolist()}
        for position in positions:
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(generator.integers(0, 8))
            place.write(key, bytes(damaged))
            try:
                assert is_right(read_all(place)), f"byte {position} of {key}"
                assert FieldStore.open(place).attributes == reference.attributes
                harmless += 1
            except UserError:
                refused += 1
        place.write(key, content)
    assert is_right(read_all(place))
    assert refused > 150
    assert harmless <= 5  # white space of the root's JSON


def test_every_deleted_object_is_refused_by_name(tmp_path: Any) -> None:
    place = LocalFolder(tmp_path / "s.zarr")
    build(place, plan(), Numbers())
    for key in place.sizes():
        content = place.read(key)
        place.delete(key)
        with pytest.raises(UserError, match=r"there is no store" if key == "zarr.json" else key):
            read_all(place)
        place.write(key, content)
    assert is_right(read_all(place))


def test_every_truncated_object_is_refused(tmp_path: Any) -> None:
    place = LocalFolder(tmp_path / "s.zarr")
    build(place, plan(), Numbers())
    for key in place.sizes():
        content = place.read(key)
        place.write(key, content[: len(content) // 2])
        with pytest.raises(UserError, match="damaged"):
            read_all(place)
        place.write(key, content)
    assert is_right(read_all(place))


def test_verify_names_the_object_that_changed(built: Location) -> None:
    key = "val/field/c/0/0/0/0/0"
    content = bytearray(built.read(key))
    content[-1] ^= 1
    built.write(key, bytes(content))
    store = FieldStore.open(built)
    with pytest.raises(UserError, match=f"damaged: {key} has changed"):
        store.verify()


def test_object_deleted_after_opening_is_refused(built: Location) -> None:
    store = FieldStore.open(built)
    built.delete("train/field/c/1/0/0/0/0")
    with pytest.raises(UserError, match="train/field/c/1/0/0/0/0 is missing"):
        store.load("train")


def test_valid_object_in_the_place_of_another_is_refused_by_verify(built: Location) -> None:
    # its own checksums are right, and its size may be: only the manifest knows
    built.write("train/field/c/0/0/0/0/0", built.read("train/field/c/1/0/0/0/0"))
    with pytest.raises(UserError, match="damaged"):
        FieldStore.open(built).verify()


def test_full_disk_stops_a_build_which_continues_when_there_is_room(small_disk: Any) -> None:
    place = LocalFolder(small_disk / "s.zarr")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 2_030_000)
    with pytest.raises(UserError, match=r"No space left on device.*the same command continues"):
        build(place, plan(), Numbers())
    ballast.unlink()
    build(place, plan(), Numbers())
    assert is_right(read_all(place))
    FieldStore.open(place).verify()


def test_two_builds_at_once_from_two_processes(s3: S3Server, tmp_path: Any) -> None:
    store = "s3://lab/two.zarr"
    command = ["-m", "data_prep.navier_stokes", store, "--train", "64", "--val", "16", "--test", "16"]
    command += ["--frames", "20", "--resolution", "32", "--workers", "1", "--storage", str(tmp_path)]

    def build_it() -> ForkedProcess:
        return ForkedProcess(shared.command_server(), command, tmp_path, os.environ | s3.environment)

    both = [build_it(), build_it()]
    outputs = [process.communicate(timeout=120) for process in both]
    codes = sorted(process.returncode for process in both)
    refused = [err for (_, err), process in zip(outputs, both, strict=True) if process.returncode == 2]
    assert codes in ([0, 2], [0, 0]), outputs
    assert all("another build" in err and len(err.strip().splitlines()) == 1 for err in refused), refused
    again = build_it()
    _, err = again.communicate(timeout=120)
    assert (again.returncode, err) == (0, "")
    FieldStore.open(S3Prefix("lab/two.zarr")).verify()
