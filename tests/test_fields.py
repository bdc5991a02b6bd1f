from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mcrnn.config import DataConfig
from mcrnn.errors import UserError
from mcrnn.fields import FieldData, FieldStore, Scaling, TrainingWindows


def numbered(samples: int = 7, frames: int = 9) -> torch.Tensor:
    """A field whose value says where it is from: 100 * sample + frame."""
    values = 100.0 * torch.arange(samples)[:, None] + torch.arange(frames)
    return values[:, :, None, None, None].expand(-1, -1, 1, 2, 2).contiguous()


def collect(windows: TrainingWindows, epoch: int, ranks: int = 1) -> list[list[int]]:
    """First frame of every window of an epoch, batch by batch, all ranks together."""
    batches: list[list[int]] = []
    for parts in zip(*(windows.epoch(epoch, rank, ranks) for rank in range(ranks)), strict=True):
        batches.append([int(w[0, 0, 0, 0]) for part, weight in parts if weight > 0 for w in part])
    return batches


def test_a_window_has_one_frame_more_than_its_steps_and_they_are_consecutive() -> None:
    for batch, _ in TrainingWindows(numbered(), 4, 3, seed=0).epoch(1):
        frames = batch[:, :, 0, 0, 0]
        assert frames.shape[1] == 5
        assert torch.equal(frames[:, 1:] - frames[:, :-1], torch.ones(len(frames), 4))


def test_an_epoch_has_one_window_of_each_sample_anywhere_in_it() -> None:
    windows = TrainingWindows(numbered(), 4, 3, seed=0)
    starts = set()
    for epoch in range(60):
        firsts = [first for batch in collect(windows, epoch) for first in batch]
        assert sorted(first // 100 for first in firsts) == list(range(7))
        starts |= {first % 100 for first in firsts}
    assert starts == {0, 1, 2, 3, 4}  # 9 frames hold windows of 5 at 5 places


def test_windows_follow_from_seed_and_epoch() -> None:
    windows = TrainingWindows(numbered(), 4, 3, seed=0)
    assert collect(windows, 1) == collect(windows, 1)
    assert collect(windows, 1) != collect(windows, 2)
    assert collect(windows, 1) != collect(TrainingWindows(numbered(), 4, 3, seed=1), 1)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_each_global_batch_and_their_weights_add_up(ranks: int) -> None:
    windows = TrainingWindows(numbered(), 4, 3, seed=0)
    alone = collect(windows, 1)
    assert [sorted(batch) for batch in collect(windows, 1, ranks)] == [sorted(batch) for batch in alone]
    for parts in zip(*(windows.epoch(1, rank, ranks) for rank in range(ranks)), strict=True):
        assert sum(weight for _, weight in parts) == pytest.approx(ranks)
        assert all(len(part) > 0 for part, _ in parts)


def test_window_longer_than_the_samples_is_refused() -> None:
    TrainingWindows(numbered(frames=9), 8, 3, seed=0)
    with pytest.raises(UserError, match=r"needs samples of 10 frames, the store has 9"):
        TrainingWindows(numbered(frames=9), 9, 3, seed=0)


def test_coarsening_is_the_mean_over_blocks(store: FieldStore) -> None:
    fine, coarse = store.load("val"), store.load("val", 4)
    assert coarse.shape == (3, 14, 1, 4, 4)
    assert coarse[1, 2, 0, 3, 1] == pytest.approx(fine[1, 2, 0, 12:16, 4:8].mean(), rel=1e-6)


def test_blocks_that_do_not_divide_the_grid_are_refused(store: FieldStore) -> None:
    with pytest.raises(UserError, match=r"data\.coarsen 3 does not divide the grid"):
        store.load("val", 3)


def test_normalisation_uses_the_statistics_of_the_training_split_before_coarsening(store: FieldStore) -> None:
    data = FieldData.load(store, 4)
    train = store.load("train").astype(np.float64)
    assert data.std == pytest.approx(train.std(), rel=1e-9)
    scaling = Scaling.of(DataConfig(store="x", normalize=True), data.mean, data.std)
    x = torch.tensor([1.5])
    assert float(scaling.to_model(x)) == pytest.approx((1.5 - train.mean()) / train.std(), rel=1e-5)
    assert torch.allclose(scaling.to_physical(scaling.to_model(x)), x)
    assert Scaling.of(DataConfig(store="x"), data.mean, data.std) == Scaling(0.0, 1.0)


def test_periodic_field_asks_for_circular_padding(store: FieldStore) -> None:
    assert store.padding == "circular"


def field_objects(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("*/field/c/**/*") if p.is_file())


def test_missing_object_is_refused_at_open(store_path: Path) -> None:
    field_objects(store_path)[0].unlink()
    with pytest.raises(UserError, match=r"damaged: .*field/c/0.* is missing"):
        FieldStore.open(store_path)


def test_truncated_object_is_refused_at_open(store_path: Path) -> None:
    victim = field_objects(store_path)[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(UserError, match="another size"):
        FieldStore.open(store_path)


@pytest.mark.parametrize("place", [10, 0.3, 0.6, 0.999])
def test_flipped_byte_of_a_field_is_refused_when_read(store_path: Path, place: float) -> None:
    victim = store_path / "train/field/c/0/0/0/0/0"
    content = bytearray(victim.read_bytes())
    content[int(place if place >= 1 else place * len(content))] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        FieldStore.open(store_path).load("train")


@pytest.mark.parametrize("name", ["train/field/zarr.json", "train/time/c/0", "train/zarr.json"])
def test_changed_metadata_is_refused_at_open(store_path: Path, name: str) -> None:
    content = bytearray((store_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (store_path / name).write_bytes(content)
    with pytest.raises(UserError, match="has changed"):
        FieldStore.open(store_path)


def test_changed_attributes_are_refused_at_open(store_path: Path) -> None:
    root = json.loads((store_path / "zarr.json").read_text())
    root["attributes"]["statistics"]["std"] *= 2
    (store_path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(UserError, match="attributes have changed"):
        FieldStore.open(store_path)


def test_removed_or_changed_manifest_is_refused_at_open(store_path: Path) -> None:
    manifest = store_path / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b"1", b"2", 1))
    with pytest.raises(UserError, match=r"manifest.json is missing or has changed"):
        FieldStore.open(store_path)
    manifest.unlink()
    with pytest.raises(UserError, match=r"manifest.json is missing or has changed"):
        FieldStore.open(store_path)


def test_newer_format_is_refused(store_path: Path) -> None:
    root = json.loads((store_path / "zarr.json").read_text())
    root["attributes"]["format_version"] = 99
    (store_path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(UserError, match="format version 99"):
        FieldStore.open(store_path)


def test_missing_and_foreign_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no store"):
        FieldStore.open(tmp_path / "nowhere.zarr")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="is not a field store"):
        FieldStore.open(tmp_path / "other")
