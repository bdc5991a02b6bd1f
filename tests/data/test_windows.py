from __future__ import annotations

import dataclasses
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from botocore.exceptions import EndpointConnectionError

from mcrnn.config.sections import Configuration, DataConfig
from mcrnn.data.checks import check_store_serves
from mcrnn.data.description import Scaling
from mcrnn.data.splits import DeviceSplit, FieldData, MemorySplit, StoredSplit, open_split
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import TrainingWindows, evaluation_windows
from mcrnn.errors import UserError
from mcrnn.storage.retry import retries_enabled
from mcrnn.storage.s3 import S3Prefix
from tests.support.s3_server import S3Server, error


def numbered(samples: int = 7, frames: int = 9) -> torch.Tensor:
    """A field whose value says where it is from: 100 * sample + frame."""
    values = 100.0 * torch.arange(samples)[:, None] + torch.arange(frames)
    return values[:, :, None, None, None].expand(-1, -1, 1, 2, 2).contiguous()


def windows_of(field: torch.Tensor, *, series: bool = False, seed: int = 0, **data: Any) -> TrainingWindows:
    config = DataConfig.model_validate({"store": "x", "sequence_length": 4} | data)
    return TrainingWindows(MemorySplit(field.numpy()), config, series, batch_size=3, seed=seed)


def collect(windows: TrainingWindows, epoch: int, ranks: int = 1) -> list[list[int]]:
    """First frame of every window of an epoch, batch by batch, all ranks together."""
    batches: list[list[int]] = []
    for parts in zip(*(windows.epoch(epoch, rank, ranks) for rank in range(ranks)), strict=True):
        batches.append([int(w[0, 0, 0, 0]) for part in parts if part.weight > 0 for w in part.windows_BTCHW])
    return batches


def test_a_window_has_one_frame_more_than_its_steps_and_they_are_consecutive() -> None:
    for batch in windows_of(numbered()).epoch(1):
        frames = batch.windows_BTCHW[:, :, 0, 0, 0]
        assert frames.shape[1] == 5
        assert torch.equal(frames[:, 1:] - frames[:, :-1], torch.ones(len(frames), 4))


def test_an_epoch_has_one_window_of_each_sample_anywhere_in_it() -> None:
    windows = windows_of(numbered())
    starts = set()
    for epoch in range(60):
        firsts = [first for batch in collect(windows, epoch) for first in batch]
        assert sorted(first // 100 for first in firsts) == list(range(7))
        starts |= {first % 100 for first in firsts}
    assert starts == {0, 1, 2, 3, 4}  # 9 frames hold windows of 5 at 5 places


def test_windows_follow_from_seed_and_epoch() -> None:
    windows = windows_of(numbered())
    assert collect(windows, 1) == collect(windows, 1)
    assert collect(windows, 1) != collect(windows, 2)
    assert collect(windows, 1) != collect(windows_of(numbered(), seed=1), 1)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_each_global_batch_and_their_weights_add_up(ranks: int) -> None:
    windows = windows_of(numbered())
    alone = collect(windows, 1)
    assert [sorted(batch) for batch in collect(windows, 1, ranks)] == [sorted(batch) for batch in alone]
    for parts in zip(*(windows.epoch(1, rank, ranks) for rank in range(ranks)), strict=True):
        assert sum(part.weight for part in parts) == pytest.approx(ranks)
        assert all(len(part.positions) > 0 for part in parts)


def test_window_longer_than_the_samples_is_refused() -> None:
    windows_of(numbered(frames=9), sequence_length=8)
    with pytest.raises(UserError, match=r"needs samples of 10 frames, the store has 9"):
        windows_of(numbered(frames=9), sequence_length=9)


def firsts(windows: TrainingWindows, epoch: int) -> list[int]:
    return [first for batch in collect(windows, epoch) for first in batch]


def test_windows_of_a_series_follow_each_other_from_a_common_offset() -> None:
    windows = windows_of(numbered(samples=1, frames=50), series=True)
    assert windows.windows_per_epoch == 9  # of 5 frames each, at any offset from 0 to 4
    offsets = set()
    for epoch in range(60):
        starts = sorted(firsts(windows, epoch))
        assert np.diff(starts).tolist() == [5] * 8
        assert starts[-1] + 5 <= 50
        offsets.add(starts[0])
    assert offsets == {0, 1, 2, 3, 4}
    assert firsts(windows, 1) != sorted(firsts(windows, 1))


def test_fixed_windows_of_a_series_never_move() -> None:
    windows = windows_of(numbered(samples=1, frames=50), series=True, fixed_windows=True)
    for epoch in range(5):
        assert sorted(firsts(windows, epoch)) == list(range(0, 50, 5))


@pytest.mark.parametrize("frames", [5, 6, 9, 10, 11])
def test_short_series_still_has_a_window(frames: int) -> None:
    for epoch in range(20):
        for start in firsts(windows_of(numbered(samples=1, frames=frames), series=True), epoch):
            assert 0 <= start <= frames - 5


@pytest.mark.parametrize("series", [False, True])
@pytest.mark.parametrize("count", [2, 7, 23])
def test_windows_per_epoch_fixes_the_count(series: bool, count: int) -> None:
    field = numbered(samples=1, frames=60) if series else numbered()
    windows = windows_of(field, series=series, windows_per_epoch=count)
    assert len(firsts(windows, 1)) == count
    assert len(windows) == -(-count // 3)


def test_evaluation_windows_start_at_each_samples_first_frame() -> None:
    samples, starts = evaluation_windows((5, 20, 1, 2, 2), False, 10)
    assert samples.tolist() == [0, 1, 2, 3, 4]
    assert starts.tolist() == [0] * 5


def test_evaluation_windows_of_a_series_cover_it_without_overlap() -> None:
    samples, starts = evaluation_windows((1, 35, 1, 2, 2), True, 10)
    assert samples.tolist() == [0, 0, 0]
    assert starts.tolist() == [0, 11, 22]
    assert evaluation_windows((1, 1000, 1, 2, 2), True, 9, most=3)[1].tolist() == [0, 500, 990]


SEGMENTS = (0, 12, 16, 30)
"""Segments of 12, 4, 14 and 20 frames of a series of 50 frames."""


@pytest.mark.parametrize("fixed", [False, True])
def test_no_window_of_a_series_crosses_a_gap(fixed: bool) -> None:
    config = DataConfig.model_validate({"store": "x", "sequence_length": 4, "fixed_windows": fixed})
    split = MemorySplit(numbered(samples=1, frames=50).numpy())
    windows = TrainingWindows(split, config, True, batch_size=3, seed=0, segments=SEGMENTS)
    counts = [12 // 5, 0, 14 // 5, 20 // 5] if fixed else [1, 0, 2, 3]
    assert windows.windows_per_epoch == sum(counts)
    seen = set()
    for epoch in range(60):
        starts = np.array(sorted(firsts(windows, epoch)))
        inside = [starts[(starts >= a) & (starts + 5 <= b)] for a, b in itertools.pairwise((*SEGMENTS, 50))]
        assert [len(each) for each in inside] == counts
        assert all((np.diff(each) == 5).all() for each in inside)
        seen |= {int(each[0] - a) for each, a in zip(inside, SEGMENTS, strict=True) if len(each)}
    assert seen == ({0} if fixed else {0, 1, 2, 3, 4})


def test_evaluation_windows_start_anew_after_each_gap() -> None:
    assert evaluation_windows((1, 50, 1, 2, 2), True, 4, segments=SEGMENTS)[1].tolist() == [
        0, 5, 16, 21, 30, 35, 40, 45
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"needs 21 frames without a gap in time, .* of the 4 segments .* has 20"):
        evaluation_windows((1, 50, 1, 2, 2), True, 20, segments=SEGMENTS)
    config, split = DataConfig(store="x", sequence_length=20), MemorySplit(numbered(1, 50).numpy())
    with pytest.raises(UserError, match=r"data\.sequence_length 20 needs 21 frames without a gap in time"):
        TrainingWindows(split, config, True, batch_size=3, seed=0, segments=SEGMENTS)


def test_evaluation_windows_longer_than_the_samples_are_refused() -> None:
    with pytest.raises(UserError, match="needs samples of 21 frames, the store has 20"):
        evaluation_windows((5, 20, 1, 2, 2), False, 20)


def test_split_larger_than_its_memory_is_read_from_the_store(
    store: FieldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(store="x", coarsen=2)
    in_memory = open_split(store, "train", data)
    assert isinstance(in_memory, MemorySplit)
    monkeypatch.setenv("MCRNN_MEMORY", "0.000001")
    stored = open_split(store, "train", data)
    assert isinstance(stored, StoredSplit)
    assert stored.shape == in_memory.shape
    samples, starts = torch.tensor([5, 0, 3, 3]), torch.tensor([1, 9, 0, 4])
    expected = in_memory.windows(samples, starts, 5)
    assert torch.equal(stored.windows(samples, starts, 5), expected)
    # as it comes out on a worker
    for split in (stored, in_memory):
        assert torch.equal(pickle.loads(pickle.dumps(split)).windows(samples, starts, 5), expected)


def test_split_larger_than_the_memory_of_a_gpu_stays_in_that_of_the_machine(
    store: FieldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, device = open_split(store, "train", DataConfig(store="x")), torch.device("meta")
    assert isinstance(split, MemorySplit)
    size = split.field_NTCHW.nbytes
    for free, kind in ((size - 1, MemorySplit), (size, DeviceSplit)):
        monkeypatch.setattr("mcrnn.data.splits.device_memory_budget", lambda _, free=free: free)
        assert isinstance(split.on(device), kind)


def test_stored_split_refuses_damage(store: FieldStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCRNN_MEMORY", "0.000001")
    split = open_split(store, "train", DataConfig(store="x"))
    key = "train/field/c/0/0/0/0/0"
    content = bytearray(store.location.read(key))
    content[len(content) // 2] ^= 1
    store.location.write(key, bytes(content))
    with pytest.raises(UserError, match="damaged"):
        split.windows(torch.arange(6), torch.zeros(6, dtype=torch.int64), 14)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("data", {"coarsen": 3}, r"data\.coarsen 3 does not divide the grid"),
        ("data", {"variables": ["vortcity"]}, "no variable 'vortcity'; did you mean 'vorticity'"),
        ("data", {"sequence_length": 14}, "needs samples of 15 frames, the store has 14"),
        ("validation", {"horizon": 20}, "validation with warm_up 10 and horizon 20 needs samples of 31 frames"),
        ("validation", {"channel_weights": {"vorticty": 2}}, "'vorticty' is no predicted variable; did you mean 'vort"),
    ],
)
def test_configuration_that_the_store_cannot_serve_is_refused(
    store: FieldStore, section: str, value: dict[str, Any], message: str
) -> None:
    raw: dict[str, Any] = {
        "name": "test",
        "data": {"store": "x", "sequence_length": 10},
        "model": {"architecture": "convgru"},
        "validation": {"warm_up": 10, "horizon": 3},
    }
    check_store_serves(store, Configuration.model_validate(raw))
    raw[section] = raw[section] | value
    with pytest.raises(UserError, match=message):
        check_store_serves(store, Configuration.model_validate(raw))


def test_channel_that_does_not_vary_is_refused_by_name(store: FieldStore) -> None:
    statistics = {"mean": [0.5, 2.0], "std": [0.1, 0.0], "min": [0.0, 2.0], "max": [1.0, 2.0]}
    attributes = store.attributes | {"channels": ["vorticity", "land"], "statistics": statistics}
    with_land = dataclasses.replace(store, attributes=attributes)
    raw: dict[str, Any] = {"name": "test", "data": {"store": "x", "sequence_length": 10}}
    raw["model"] = {"architecture": "convgru"}
    raw["validation"] = {"warm_up": 10, "horizon": 3}
    with pytest.raises(UserError, match=r"land of '.*' is 2 at all points and times .* name the other channels in"):
        check_store_serves(with_land, Configuration.model_validate(raw))
    raw["data"]["variables"] = ["vorticity"]
    check_store_serves(with_land, Configuration.model_validate(raw))


def test_normalisation_uses_the_statistics_of_the_training_split_before_coarsening(store: FieldStore) -> None:
    data = FieldData.load(store, DataConfig(store="x", coarsen=4))
    train = store.load("train").astype(np.float64)
    assert data.field.std[0] == pytest.approx(train.std(), rel=1e-9)
    scaling = Scaling.of(DataConfig(store="x", normalize=True), data.field.mean, data.field.std)
    x = torch.full((1, 1, 1, 1, 1), 1.5)
    assert float(scaling.to_model(x)) == pytest.approx((1.5 - train.mean()) / train.std(), rel=1e-5)
    assert torch.allclose(scaling.to_physical(scaling.to_model(x)), x)
    assert Scaling.of(DataConfig(store="x"), data.field.mean, data.field.std) == Scaling((0.0,), (1.0,))


def test_kernel_that_reaches_around_the_grid_is_refused(store: FieldStore) -> None:
    def configuration(kernel_size: int, padding: str) -> Configuration:
        model = {"architecture": "convgru", "kernel_size": kernel_size, "padding": padding}
        raw = {"name": "test", "data": {"store": "x", "sequence_length": 10, "coarsen": 4}, "model": model}
        return Configuration.model_validate(raw | {"validation": {"warm_up": 10, "horizon": 3}})

    check_store_serves(store, configuration(9, "circular"))
    check_store_serves(store, configuration(11, "zeros"))
    for padding in ("circular", "cylinder"):
        with pytest.raises(UserError, match="kernel_size 11 is too large for a grid of 4 x 4"):
            check_store_serves(store, configuration(11, padding))


def test_stored_split_waits_for_object_storage(
    store: FieldStore, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    target = S3Prefix("lab/tiny.zarr")
    for key in store.location.sizes():
        target.write(key, store.location.read(key))
    monkeypatch.setenv("MCRNN_MEMORY", "0.000001")
    split = open_split(FieldStore.open(target), "train", DataConfig(store="x"))
    assert isinstance(split, StoredSplit)
    samples, starts = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    expected = split.windows(samples, starts, 14)
    requests = s3.requests
    split.windows(samples[:1], starts[:1], 14)
    assert s3.requests - requests <= 2  # the index of its shard, and the chunk; nothing to find them
    s3.fault = lambda environ: error("400 Bad Request", "KMS.DisabledException")
    with pytest.raises(UserError, match=r"refuses GetObject on 's3://lab/tiny\.zarr': told to \(KMS") as refusal:
        split.windows(samples[:1], starts[:1], 14)
    assert "damaged" not in str(refusal.value)
    s3.fault = None
    array, outages = split._array, iter(range(3))

    class Away:
        def __getitem__(self, place: Any) -> Any:
            if next(outages, None) is not None:
                raise EndpointConnectionError(endpoint_url=s3.url)
            return array[place]

    split.__dict__["_array"] = Away()
    with pytest.raises(UserError, match=r"^cannot reach"):
        split.windows(samples[:1], starts[:1], 14)
    with retries_enabled():
        assert torch.equal(split.windows(samples, starts, 14), expected)
    assert "answers again" in capsys.readouterr().err
