"""The manifest: what it finds, in which order, and how much it holds in memory meanwhile."""

from __future__ import annotations

import threading
import time

import pytest

from mcrnn.data.manifest import READS_AT_ONCE, Manifest, map_ahead
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder


def test_verify_reports_the_size_of_every_object_once(store: FieldStore) -> None:
    counts: list[int] = []
    store.manifest.verify(counts.append)
    sizes = store.location.sizes()
    assert sorted(counts) == sorted(sizes[key] for key in store.manifest.objects)
    assert sum(counts) == store.manifest.total_bytes


def test_metadata_are_compared_without_reading_field_values(store: FieldStore) -> None:
    class Recorder(LocalFolder):
        def read(self, key: str) -> bytes:
            read.append(key)
            return super().read(key)

    read: list[str] = []
    assert isinstance(store.location, LocalFolder)
    manifest = Manifest.load(Recorder(store.location.path), store.digest)
    manifest.check_sizes()
    assert read == ["manifest.json"]
    manifest.check_metadata()
    assert "train/time/c/0" in read
    assert "train/field/zarr.json" in read
    assert not [key for key in read if "/field/c/" in key or "/initial_field/c/" in key]


def test_manifest_with_another_digest_is_refused(store: FieldStore) -> None:
    with pytest.raises(UserError, match=r"manifest\.json is missing or has changed"):
        Manifest.load(store.location, "0" * 64)


def test_results_come_in_the_order_of_the_keys() -> None:
    def work(key: str) -> str:
        time.sleep(0.02 if key == "0" else 0)
        return key

    keys = [str(i) for i in range(20)]
    assert list(map_ahead(work, keys)) == keys


def test_no_more_results_than_reads_at_once_are_held() -> None:
    started = 0
    mutex = threading.Lock()

    def work(key: str) -> str:
        nonlocal started
        with mutex:
            started += 1
        return key

    results = map_ahead(work, [str(i) for i in range(20)])
    for used in range(1, 4):
        next(results)
        time.sleep(0.05)
        assert started <= used + READS_AT_ONCE
    results.close()  # type: ignore[attr-defined]


def test_error_of_one_key_ends_the_iteration() -> None:
    def work(key: str) -> str:
        if key == "2":
            raise UserError("damaged")
        return key

    results = map_ahead(work, ["0", "1", "2", "3"])
    assert [next(results), next(results)] == ["0", "1"]
    with pytest.raises(UserError, match="damaged"):
        next(results)
