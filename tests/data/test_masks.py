"""A field without values at some points: what stands there counts for nothing, from the conversion to the forecast."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from data_prep.convert import convert
from mcrnn.config.sections import Configuration
from mcrnn.data.masks import decode_mask, encode_mask, mask_weights
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.splits import FieldData, MemorySplit, open_split
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import Batch, evaluation_windows
from mcrnn.errors import UserError
from mcrnn.evaluation.compatibility import store_differences
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.forecasting import result
from mcrnn.forecasting.given import fit
from mcrnn.forecasting.source import opened
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel, network_of
from mcrnn.serving import bodies
from mcrnn.serving.served_model import ServedModel
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.training.batch_loss import BatchLoss
from mcrnn.training.validation import validate
from tests.data_prep.test_odd_inputs import DAYS, LATITUDE, OTHER, VALUES, dataset, with_t
from tests.forecasting.test_forecast import blocks

SEA = np.ones((6, 8), bool)
SEA[2:4, 2:4] = SEA[0, 5] = SEA[5, 1] = False  # a whole block of 2 x 2, and parts of two others
MASK = np.stack([SEA, np.ones((6, 8), bool)])
FIELD = np.stack([VALUES, OTHER], 1)
"""The channels z, which has values at sea only, and t, which has them everywhere."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with z.nc, and z.zarr made of it, by day: 24 frames of two channels in each split."""
    root = tmp_path_factory.mktemp("masked")
    with_t(dataset(np.where(SEA, VALUES, np.float32(np.nan)))).to_netcdf(root / "z.nc")
    options: dict[str, Any] = DAYS | {"variable": ["z", "t"], "mask": True, "workers": 1, "storage": str(root)}
    convert([str(root / "z.nc")], "z.zarr", **options)
    convert([str(root / "z.nc")], "coarse.zarr", **options, coarsen=2)
    return root


def opened_store(built: Path, name: str = "z.zarr") -> FieldStore:
    return FieldStore.open(LocalFolder(built / name))


def configuration(**data: Any) -> Configuration:
    raw = {
        "name": "masked",
        "data": {"store": "z.zarr", "sequence_length": 4, "normalize": True, "noise": 0.1} | data,
        "model": {"architecture": "minconvgru", "hidden_size": 3, "layers": 1, "prediction": "increment"},
        "train": {"teacher_forcing_steps": 2},
        "validation": {"warm_up": 2, "horizon": 3},
    }
    return Configuration.model_validate(raw)


def test_store_holds_mask_and_statistics_of_its_points(built: Path) -> None:
    store = opened_store(built)
    found = store.mask()
    assert found is not None
    assert np.array_equal(found, MASK)
    assert store.mask(variables=["t"]) is None
    train = store.load("train")[0]
    assert np.array_equal(train[:, MASK], FIELD[:24][:, MASK])
    assert (train[:, ~MASK] == VALUES[0][SEA].mean(dtype=np.float64).astype(np.float32)).all()
    points = VALUES[:24][:, SEA].astype(np.float64)
    for name in ("mean", "std", "min", "max"):
        assert store.statistic(name) == pytest.approx([getattr(x, name)() for x in (points, OTHER[:24].astype(float))])
    assert store.attributes["format_version"] == 2
    assert "mask/c/0/0/0" in store.manifest.objects
    assert decode_mask(encode_mask(found)).tolist() == found.tolist()  # type: ignore[union-attr]


def test_coarse_points_are_means_over_the_points_of_the_mask(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    area = MASK * latitude_weights(LATITUDE)[:, None]
    with np.errstate(invalid="ignore"):
        expected = blocks(np.where(MASK, FIELD, 0) * area) / blocks(area)
    coarse = ~np.isnan(expected[0])
    assert coarse.sum() == 2 * 12 - 1
    converted, store, data = opened_store(built, "coarse.zarr"), opened_store(built), configuration(coarsen=2).data
    for mask in (converted.mask(), store.mask(2)):
        assert mask is not None
        assert np.array_equal(mask, coarse)
    assert np.allclose(converted.load("val")[0][:, coarse], expected[24:48][:, coarse], rtol=1e-6)
    assert np.allclose(store.load("val", 2)[0][:, coarse], expected[24:48][:, coarse], rtol=1e-6)
    monkeypatch.setenv("MCRNN_MEMORY", "0.000001")
    window = open_split(store, "val", data).windows(torch.tensor([0]), torch.tensor([5]), 6)
    assert np.array_equal(window[0].numpy(), store.load("val", 2)[0, 5:11])


def test_values_outside_of_the_mask_change_neither_loss_nor_errors(built: Path) -> None:
    config = configuration()
    data = FieldData.load(opened_store(built), config.data)
    torch.manual_seed(0)
    network = network_of(config, data.field)
    scaling, weights = trained_model.Scaling.of(config.data, data.field.mean, data.field.std), mask_weights(MASK)
    weights_CHW = torch.tensor(weights, dtype=torch.float32)
    loss = BatchLoss(config, network, scaling, torch.device("cpu"), torch.float32, weights_CHW)
    losses, gradients, errors = [], [], []
    windows = evaluation_windows(data.val.shape, True, 5)
    for value in (None, 1e30, -5.0):
        frames = data.val.windows(torch.zeros(1, dtype=torch.int64), torch.tensor([0]), 24)[None, 0].numpy().copy()
        if value is not None:
            frames[:, :, ~MASK] = value
        split = MemorySplit(frames)
        network.zero_grad()
        losses.append(float(loss.backward(loss.inputs(Batch(split.windows(*windows, 5), [0, 1, 2, 3], 1.0), 1))))
        gradients.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
        settings = {"warm_up": 2, "horizon": 3, "batch_size": 2, "weights_CHW": weights_CHW}
        errors.append(validate(network, split, windows, scaling, **settings).total_TC)  # type: ignore[arg-type]
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(errors[0], errors[1])
    assert torch.equal(errors[0], errors[2])
    for each in zip(*gradients, strict=True):
        assert torch.equal(each[0], each[1])
    # the same by hand, from the points of each channel
    frames_BTCHW = data.val.windows(*windows, 6)
    with torch.no_grad():
        prediction_BTCHW = scaling.to_physical(network(scaling.to_model(frames_BTCHW[:, :2]), 2, 5)).double()
    error_BTCHW = (prediction_BTCHW - frames_BTCHW[:, 1:].double()).numpy()
    by_hand = [(error_BTCHW[:, :, c, MASK[c]] ** 2).mean((0, 2)) for c in range(2)]
    count = len(windows[0]) * 6 * 8
    assert np.allclose(errors[0].numpy() / count, np.stack(by_hand, 1), rtol=1e-5)
    outside = (prediction_BTCHW[:, :, 0][..., ~torch.tensor(SEA)] - data.field.mean[0]).abs().max()
    assert outside < 1e-2  # what the network reads again in closed loop


@pytest.mark.parametrize("coarsen", [1, 2])
def test_forecasts_have_no_values_outside_of_the_mask(built: Path, tmp_path: Path, coarsen: int) -> None:
    config, store, storage = configuration(coarsen=coarsen), opened_store(built), Storage.open(str(built))
    field = FieldData.load(store, config.data).field
    trained_model.save(LocalFolder(tmp_path), config, field, network_of(config, field).state_dict())
    model = trained_model.load(LocalFolder(tmp_path))
    mask = model.field.model_mask
    assert mask is not None
    forecasts = {}
    for name in ("z.nc", "z.zarr"):
        with opened(str(built / name), storage, "test") as source:
            given = fit(source, model)
            values = result.forecast(model, given, [len(given.times) - 1], warm_up=2, steps=3)
            labelled = result.label(values, model, given, [len(given.times) - 1], warm_up=2, identity={}, command="c")
        assert np.array_equal(np.isnan(labelled.z.values), np.broadcast_to(~mask[0], labelled.z.shape))
        assert np.isfinite(labelled.t.values).all()
        forecasts[name] = values
    assert np.array_equal(*forecasts.values(), equal_nan=True)
    evaluated = EvaluationSet.of(store, config.data, warm_up=2, horizon=3)
    assert np.array_equal(evaluated.measures.mask_CHW, mask)  # type: ignore[arg-type]
    served = ServedModel(model, {"model": "m"}, None)
    frames = np.where(mask, store.load("test", coarsen)[:, -2:], np.nan)
    body = json.dumps({"frames": np.where(np.isnan(frames), None, frames.astype(object)).tolist(), "steps": 3})
    reading = bodies.read(bodies.JSON, body.encode(), {}, served, bodies.Limits(10**6, 10))
    answer = np.array(json.loads(reading.answer(model.predict(reading.frames_BTCHW, 3)))["forecast"], dtype=float)
    assert np.allclose(answer, forecasts["z.zarr"][:, 0], rtol=1e-6, equal_nan=True)


def test_a_value_that_the_model_takes_may_not_be_missing(built: Path, tmp_path: Path) -> None:
    config, store, storage = configuration(), opened_store(built), Storage.open(str(built))
    field = FieldData.load(store, config.data).field
    model = TrainedModel(config, field, network_of(config, field).eval())
    values = xr.open_dataset(built / "z.nc", decode_times=False).load()
    values["z"][-1, 0, 0] = np.nan
    values.to_netcdf(tmp_path / "less.nc")
    with opened(str(tmp_path / "less.nc"), storage, "test") as source:
        given = fit(source, model)
        with pytest.raises(UserError, match=r"missing values in z at 1979-01-03 23:00; .* each point of its mask"):
            given.read([0], [len(given.times) - 1], 2)
    larger = MASK.copy()
    larger[0, 2, 2] = True
    other = TrainedModel(config, replace(field, mask=encode_mask(larger)), model.network)
    refused = pytest.raises(UserError, match="has no values of z at 1 points where the model takes them")
    with opened(str(built / "z.zarr"), storage, "test") as source, refused:
        fit(source, other)
    assert store_differences(other, store) == ["6 masked values instead of 5"]
