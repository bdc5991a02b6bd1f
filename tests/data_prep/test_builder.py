from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_prep import shard_records
from data_prep.builder import build
from data_prep.plan import Shard, SplitPlan, StorePlan, text_array
from data_prep.shard_records import LEASE, record_keys
from data_prep.statistics import Statistics
from mcrnn.data.store import FieldStore
from mcrnn.data.store_format import BUILD_FOLDER
from mcrnn.errors import UserError
from mcrnn.storage import lease
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import CHECK_PREFIX, Location
from mcrnn.storage.s3 import S3Prefix
from tests.support.s3_server import S3Server, error

SAMPLES = {"train": 5, "val": 1, "test": 2}
FRAMES, CHANNELS, HEIGHT, WIDTH = 3, 2, 4, 6


def samples(count: int) -> SplitPlan:
    coordinates = {
        "sample": (("sample",), np.arange(count), {}),
        "time": (("time",), np.arange(float(FRAMES)), {}),
        "channel": (("channel",), text_array(["a", "b"]), {}),
    }
    return SplitPlan(count, FRAMES, coordinates)


def plan(**changes: Any) -> StorePlan:
    arguments: dict[str, Any] = {
        "splits": {name: samples(count) for name, count in SAMPLES.items()},
        "channels": ["a", "b"],
        "height": HEIGHT,
        "width": WIDTH,
        "layout": "samples",
        "chunk": 1,
        "shard": 2,
        "attributes": {"variable": "a, b", "units": "m", "boundary": "zeros", "time_step": "1"},
        "recipe": {"seed": 0},
    }
    return StorePlan(**arguments | changes)


def values(split: str, start: int, stop: int) -> np.ndarray:
    seed = list(SAMPLES).index(split)
    rows = [
        np.random.default_rng((seed, i)).normal(3, 2, (FRAMES, CHANNELS, HEIGHT, WIDTH)) for i in range(start, stop)
    ]
    return np.stack(rows).astype(np.float32)


@dataclass
class Numbers:
    """A source that can be told to fail, and remembers what it computed."""

    fail_after: int | None = None
    poison: bool = False
    shards_at_once: int = 1
    sources: tuple[()] = ()
    computed: list[Shard] = field(default_factory=list)

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        arrays = []
        for shard in shards:
            if len(self.computed) == self.fail_after:
                raise KeyboardInterrupt
            self.computed.append(shard)
            arrays.append({"field": values(shard.split, shard.start, shard.stop)})
            if self.poison:
                arrays[-1]["field"][0, 0, 0, 0, 0] = np.nan
        return arrays


def contents(place: Location) -> dict[str, bytes]:
    return {key: place.read(key) for key in place.sizes()}


def test_xarray_reads_names_and_values(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    build(LocalFolder(tmp_path / "s.zarr"), plan(), Numbers())
    dataset = xr.open_zarr(tmp_path / "s.zarr", group="train")
    assert not [w for w in recwarn if w.category is RuntimeWarning]
    assert dataset.field.dims == ("sample", "time", "channel", "height", "width")
    assert dataset.channel.values.tolist() == ["a", "b"]
    assert np.array_equal(dataset.field.values, values("train", 0, 5))


def test_xarray_reads_from_object_storage(s3: S3Server) -> None:
    build(S3Prefix("lab/s.zarr"), plan(), Numbers())
    dataset = xr.open_zarr("s3://lab/s.zarr", group="test")
    assert np.array_equal(dataset.field.values, values("test", 0, 2))


def test_statistics_are_of_each_channel_of_the_training_split_in_float64(place: Location) -> None:
    build(place, plan(), Numbers())
    expected = values("train", 0, 5).astype(np.float64)
    store = FieldStore.open(place)
    for name, wanted in (("mean", expected.mean((0, 1, 3, 4))), ("std", expected.std((0, 1, 3, 4)))):
        assert store.statistic(name) == pytest.approx(wanted.tolist(), rel=1e-12)
    assert store.statistic("min", ["b"]) == [expected[:, :, 1].min()]
    assert store.statistic("max", ["b", "a"]) == [expected[:, :, 1].max(), expected[:, :, 0].max()]


def test_merged_statistics_do_not_suffer_from_a_large_mean() -> None:
    parts = [np.random.default_rng(i).normal(54_000, 3_000, (10, 10, 1, 10, 10)).astype(np.float32) for i in range(5)]
    merged = Statistics.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Statistics.of(part))
    truth = np.concatenate(parts).astype(np.float64)
    assert merged.summary()["mean"][0] == pytest.approx(truth.mean(), rel=1e-13)
    assert merged.summary()["std"][0] == pytest.approx(truth.std(), rel=1e-12)
    assert Statistics.from_json(merged.to_json()) == merged
    of_before = merged.to_json() | {"count": merged.count[0]}  # one count for all channels
    assert Statistics.from_json(of_before) == merged


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4])
def test_interrupted_build_continues_with_the_missing_shards_only(place: Location, stop_after: int) -> None:
    build(place.child("whole"), plan(), Numbers())
    broken, rest = Numbers(fail_after=stop_after), Numbers()
    with pytest.raises(KeyboardInterrupt):
        build(place.child("s"), plan(), broken)
    with pytest.raises(UserError, match="unfinished"):
        FieldStore.open(place.child("s"))
    done: list[tuple[int, bool]] = []
    assert build(place.child("s"), plan(), rest, on_done=lambda count, now: done.append((count, now)))
    assert sorted(s.name for s in broken.computed + rest.computed) == sorted(s.name for s in plan().shards())
    assert sum(count for count, _ in done) == sum(SAMPLES.values())
    assert sum(not now for _, now in done) == stop_after
    assert contents(place.child("s")) == contents(place.child("whole"))


def test_order_and_grouping_of_the_work_do_not_change_a_byte(place: Location) -> None:
    build(place.child("one"), plan(), Numbers())
    build(place.child("many"), plan(), Numbers(shards_at_once=3))
    assert contents(place.child("one")) == contents(place.child("many"))


def test_build_killed_before_its_root_was_written_starts_again(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLING", 0.1)
    place.write(f"{BUILD_FOLDER}/lock.json", b"{")
    assert build(place, plan(), Numbers())
    FieldStore.open(place)


def test_object_of_a_check_of_access_is_no_reason_to_refuse_a_folder(place: Location) -> None:
    """Another build may be checking its access while this one looks, or was killed while it did."""
    place.write(f"{CHECK_PREFIX}{'0' * 32}", b"mcrnn")
    assert build(place, plan(), Numbers())
    FieldStore.open(place).verify()


def test_shard_that_vanished_is_made_again(place: Location) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(place, plan(), Numbers(fail_after=4))
    place.delete(plan().key("field", list(plan().shards())[1]))
    rest = Numbers()
    build(place, plan(), rest)
    assert len(rest.computed) == len(list(plan().shards())) - 4 + 1
    FieldStore.open(place).verify()


@pytest.mark.parametrize("torn", [b'{"train-0000000000":', b"[]", b'{"train-0000000000": 1}'])
def test_shards_whose_records_are_torn_are_made_again(place: Location, torn: bytes) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(place, plan(), Numbers(fail_after=4))
    (records,) = record_keys(place.sizes())
    place.write(records, torn)
    rest = Numbers()
    build(place, plan(), rest)
    assert len(rest.computed) == len(list(plan().shards()))
    FieldStore.open(place).verify()


def test_build_that_was_killed_while_it_wrote_records_goes_on(place: Location) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(place, plan(), Numbers(fail_after=4))
    (records,) = record_keys(place.sizes())
    place.write(f"{records}.{'0' * 16}.partial", b"{")
    assert build(place, plan(), Numbers())
    FieldStore.open(place).verify()


def test_build_that_was_taken_over_does_not_complete_the_store(place: Location) -> None:
    class TakenOver(Numbers):
        def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
            if len(self.computed) == len(list(plan().shards())) - 1:
                place.write(LEASE, json.dumps({"token": "of another process"}).encode())
            return super().compute(shards)

    with pytest.raises(UserError, match="another build has taken over"):
        build(place, plan(), TakenOver())
    with pytest.raises(UserError, match="unfinished"):
        FieldStore.open(place)


def test_build_that_version_0_1_0_has_begun_goes_on(place: Location) -> None:
    """It kept an object for each shard that was done."""
    with pytest.raises(KeyboardInterrupt):
        build(place, plan(), Numbers(fail_after=4))
    (key,) = record_keys(place.sizes())
    for name, record in json.loads(place.read(key)).items():
        place.write(f"{BUILD_FOLDER}/{name}.json", json.dumps(record).encode())
    place.delete(key)
    rest = Numbers()
    build(place, plan(), rest)
    assert len(rest.computed) == len(list(plan().shards())) - 4
    assert not [key for key in place.sizes() if key.startswith(BUILD_FOLDER)]


def test_records_are_written_every_two_seconds_and_not_for_each_shard(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = type(place).write
    monkeypatch.setattr(type(place), "write", lambda self, key, data: (written.append(key), write(self, key, data)))
    monkeypatch.setattr(shard_records, "SECONDS_BETWEEN_WRITES", 3600.0)
    build(place, plan(), Numbers())
    assert len([key for key in written if key.startswith(f"{BUILD_FOLDER}/shards-")]) == 2, "the first and the others"


def test_records_are_shared_out_among_objects(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_records, "RECORDS_OF_AN_OBJECT", 2)
    monkeypatch.setattr(shard_records, "SECONDS_BETWEEN_WRITES", 0.0)
    for fail_after in (3, 1):
        with pytest.raises(KeyboardInterrupt):
            build(place, plan(), Numbers(fail_after=fail_after))
    assert len(record_keys(place.sizes())) == 3
    rest = Numbers()
    build(place, plan(), rest)
    assert len(rest.computed) == len(list(plan().shards())) - 4
    assert not [key for key in place.sizes() if key.startswith(BUILD_FOLDER)]


def test_complete_store_is_left_alone(place: Location) -> None:
    build(place, plan(), Numbers())
    before = contents(place)
    again = Numbers()
    assert not build(place, plan(), again)
    assert again.computed == []
    assert contents(place) == before


def test_other_recipe_is_refused_by_name_unless_overwritten(place: Location) -> None:
    build(place, plan(), Numbers())
    with pytest.raises(UserError, match="seed is 0, not 7"):
        build(place, plan(recipe={"seed": 7}), Numbers())
    assert build(place, plan(recipe={"seed": 7}), Numbers(), overwrite=True)
    assert FieldStore.open(place).attributes["recipe"] == {"seed": 7}


def test_build_that_failed_at_once_is_replaced_by_one_with_other_parameters(place: Location) -> None:
    with pytest.raises(UserError, match="not finite"):
        build(place, plan(recipe={"seed": 7}), Numbers(poison=True))
    assert build(place, plan(), Numbers())
    build(place.child("whole"), plan(), Numbers())
    assert contents(place.child("whole")).items() <= contents(place).items()
    other = place.child("other")
    with pytest.raises(KeyboardInterrupt):
        build(other, plan(recipe={"seed": 7}), Numbers(fail_after=1))
    with pytest.raises(UserError, match="seed is 7, not 0"):
        build(other, plan(), Numbers())


def test_build_is_not_continued_with_objects_of_another_size(place: Location) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(place, plan(), Numbers(fail_after=2))
    for change in ({"shard": 3}, {"shard": 4}):
        with pytest.raises(UserError, match="cuts arrays into objects of another size"):
            build(place, plan(**change), Numbers())
    assert build(place, plan(), Numbers())
    assert not build(place, plan(shard=4), Numbers())  # a complete store is read by its own sizes


def test_interrupted_overwrite_goes_on_with_the_same_command(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place, plan(), Numbers())
    delete, deleted = type(place).delete, []

    def dies_after_three(self: Location, key: str) -> None:
        if len(deleted) == 3 and key != LEASE:
            raise KeyboardInterrupt
        deleted.append(key)
        delete(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(type(place), "delete", dies_after_three)
        with pytest.raises(KeyboardInterrupt):
            build(place, plan(recipe={"seed": 7}), Numbers(), overwrite=True)
    assert build(place, plan(recipe={"seed": 7}), Numbers(), overwrite=True)
    assert FieldStore.open(place).attributes["recipe"] == {"seed": 7}


def test_what_is_not_a_store_is_never_overwritten(place: Location) -> None:
    place.write("thesis/chapter1.tex", b"words")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not a store"):
            build(place, plan(), Numbers(), overwrite=overwrite)
    assert contents(place) == {"thesis/chapter1.tex": b"words"}


def test_values_that_are_not_finite_are_refused(place: Location) -> None:
    with pytest.raises(UserError, match="field of train 0 to 1 is not finite"):
        build(place, plan(), Numbers(poison=True))


def test_manifest_lists_every_object(place: Location) -> None:
    build(place, plan(), Numbers())
    listed = set(json.loads(place.read("manifest.json"))["objects"])
    assert listed == set(place.sizes()) - {"zarr.json", "manifest.json"}
    assert len([key for key in listed if "/field/c/" in key]) == 3 + 1 + 1


def test_second_build_of_a_store_is_refused_while_the_first_runs(place: Location) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(Numbers):
        def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
            started.set()
            assert go_on.wait(60)
            return super().compute(shards)

    first = threading.Thread(target=build, args=(place, plan(), Slow()))
    first.start()
    assert started.wait(60)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=rf"another build \(process {os.getpid()} on .*is writing"):
            build(place, plan(), Numbers(), overwrite=overwrite)
    go_on.set()
    first.join()
    FieldStore.open(place).verify()


def test_one_failed_request_in_ten_does_not_matter(s3: S3Server) -> None:
    def fault(environ: dict[str, Any]) -> Any:
        if s3.requests % 10 == 5:
            return error("503 Slow Down", "SlowDown")
        return error("500 Internal Server Error", "InternalError") if s3.requests % 10 == 0 else None

    s3.fault = fault
    place = S3Prefix("lab/s.zarr")
    build(place, plan(), Numbers())
    assert np.array_equal(FieldStore.open(place).load("train"), values("train", 0, 5))
    FieldStore.open(place).verify()


def test_build_that_goes_on_asks_for_what_is_missing_only(s3: S3Server) -> None:
    place, total, missing = S3Prefix("lab/s.zarr"), 40, 3
    of_a_shard = plan(shard=1, splits=plan().splits | {"train": samples(total)})
    with pytest.raises(KeyboardInterrupt):
        build(place, of_a_shard, Numbers(fail_after=total - missing))
    before = s3.requests
    build(place, of_a_shard, Numbers())
    to_build = missing + SAMPLES["val"] + SAMPLES["test"]
    assert s3.requests - before <= 2 * to_build + 20


def test_series_is_cut_along_time(place: Location) -> None:
    frames = {"train": 11, "val": 3, "test": 4}
    series = np.random.default_rng(0).normal(size=(1, 18, 2, 4, 6)).astype(np.float32)
    starts = {"train": 0, "val": 11, "test": 14}

    class Series(Numbers):
        def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
            return [{"field": series[:, starts[s.split] + s.start : starts[s.split] + s.stop]} for s in shards]

    splits = {n: SplitPlan(1, count, {"time": (("time",), np.arange(count), {})}) for n, count in frames.items()}
    build(place, plan(splits=splits, layout="series", chunk=2, shard=4), Series())
    store = FieldStore.open(place)
    assert store.is_series
    assert np.array_equal(store.load("train"), series[:, :11])
    assert np.array_equal(store.load("test", variables=["b"]), series[:, 14:, 1:])
    assert len([key for key in place.sizes() if "/field/c/" in key]) == 3 + 1 + 1
