from __future__ import annotations

import math

import pytest
import torch

from mcrnn.config.sections import DataConfig, ValidationConfig
from mcrnn.data.description import Scaling
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import evaluation_windows
from mcrnn.evaluation.baselines import persistence
from mcrnn.evaluation.climatology import Climatology
from mcrnn.models.forecaster import build_model
from mcrnn.training.session import OBJECTIVE
from mcrnn.training.validation import SquaredError, validate, validation_metrics
from tests.training.test_trainer import configuration


def test_errors_of_known_size_and_order_of_mean_and_root() -> None:
    # sample s errs by (s + 1) * (t + 1) at step t: mean square over samples at step t is 2.5 (t + 1)^2
    truth = torch.zeros(2, 3, 1, 2, 2)
    prediction = torch.tensor([1.0, 2.0])[:, None, None, None, None] * torch.tensor([1.0, 2.0, 3.0])[
        None, :, None, None, None
    ].expand(2, 3, 1, 2, 2)
    error = SquaredError(3, 1)
    error.update(prediction, truth)
    assert error.rmse_by_step().tolist() == pytest.approx([math.sqrt(2.5) * t for t in (1, 2, 3)])
    assert error.rmse(2, 3) == pytest.approx(math.sqrt(2.5 * (4 + 9) / 2))
    assert error.rmse_mean_of_steps(2, 3) == pytest.approx(math.sqrt(2.5) * 2.5)
    assert error.rmse(1, 1) == pytest.approx(math.sqrt(2.5))


def test_streaming_does_not_depend_on_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, truth = torch.randn(2, 11, 4, 1, 3, 3, generator=generator)
    whole, parts = SquaredError(4, 1), SquaredError(4, 1)
    whole.update(prediction, truth)
    for p, t in zip(prediction.split(3), truth.split(3), strict=True):
        parts.update(p, t)
    assert torch.allclose(whole.rmse_by_step(), parts.rmse_by_step(), rtol=1e-12)
    expected = (prediction.double() - truth.double()).square().mean((0, 2, 3, 4)).sqrt()
    assert torch.allclose(whole.rmse_by_step(), expected, rtol=1e-12)


def test_error_that_is_not_a_number_counts_as_infinite_in_its_steps_alone() -> None:
    prediction = torch.zeros(1, 3, 1, 2, 2)
    prediction[0, 1, 0, 0, 0] = torch.nan
    error = SquaredError(3, 1)
    error.update(prediction, torch.zeros_like(prediction))
    assert error.rmse_by_step().tolist() == [0.0, math.inf, 0.0]
    assert error.rmse(1, 3) == math.inf


def test_persistence_holds_the_last_given_frame() -> None:
    frames = torch.arange(5.0)[None, :, None, None, None].expand(2, 5, 1, 3, 3)
    assert torch.equal(persistence(frames, 4), torch.full((2, 4, 1, 3, 3), 4.0))


def test_climatology_is_the_mean_at_each_grid_point(store: FieldStore) -> None:
    climatology = Climatology.of(store, "test", DataConfig(store="x", coarsen=2))
    found_BTCHW = climatology.at(torch.tensor([0, 3]), slice(1, 4))
    mean_CHW = torch.from_numpy(store.load("train", 2)).mean((0, 1))
    assert torch.allclose(found_BTCHW, mean_CHW.expand(2, 3, *mean_CHW.shape), atol=1e-6)


def test_normalised_error_weighs_each_channel_by_its_deviation() -> None:
    # errors of 3 and 40 in channels with deviations of 1 and 10: sqrt((3^2 + 4^2) / 2)
    prediction = torch.zeros(1, 2, 2, 4, 4)
    prediction[:, :, 0], prediction[:, :, 1] = 3.0, 40.0
    error = SquaredError(2, 2)
    error.update(prediction, torch.zeros_like(prediction))
    assert error.rmse_normalized(1, 2, (1.0, 10.0)) == pytest.approx(math.sqrt(12.5))
    assert error.rmse(1, 2) == pytest.approx(math.sqrt((9 + 1600) / 2))
    # with weights of 3 and 1: sqrt((3 * 3^2 + 4^2) / 4)
    std = (1.0, 10.0)
    scales = ValidationConfig(channel_weights={"a": 3}).error_scales(["a", "b"], std)
    assert validation_metrics(error, 1, std, scales)[OBJECTIVE] == pytest.approx(math.sqrt(43 / 4))
    assert ValidationConfig().error_scales(["a", "b"], std) == std
    assert ValidationConfig(channel_weights={"a": 2, "b": 2}).error_scales(["a", "b"], std) == std


def test_validation_does_not_depend_on_batch_size_or_normalisation_of_the_truth(store: FieldStore) -> None:
    data = FieldData.load(store, configuration().data)
    model = build_model(configuration().model, data.field.frame_shape, data.field.padding)
    windows = evaluation_windows(data.val.shape, False, 9)
    scaling = Scaling((0.0,), (1.0,))
    errors = [
        validate(model, data.val, windows, scaling, warm_up=4, horizon=5, batch_size=size).rmse_by_step()
        for size in (1, 2, 32)
    ]
    assert torch.allclose(errors[0], errors[1], rtol=1e-6)
    assert torch.allclose(errors[0], errors[2], rtol=1e-6)
