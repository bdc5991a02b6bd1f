"""A model is evaluated, and forecasts, in the precision that it was trained and validated in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mcrnn.config.sections import Configuration
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.kept_scores import key_of_model
from mcrnn.evaluation.scoring import score
from mcrnn.models import trained_model
from mcrnn.models.ensemble import Ensemble
from mcrnn.storage.local import LocalFolder
from mcrnn.training.session import CallbackSession, Metrics, State
from mcrnn.training.trainer import fit
from tests.training.test_trainer import configuration


def trained(root: Path, store: FieldStore, precision: str) -> tuple[trained_model.TrainedModel, Metrics]:
    """A model after one epoch, read from its files, and the metrics of its validation."""
    config = configuration(precision=precision, epochs=1)
    reports: list[tuple[Metrics, State]] = []
    data = FieldData.load(store, config.data)
    fit(config, data, CallbackSession(lambda *report: reports.append(report)))
    metrics, state = reports[-1]
    trained_model.save(LocalFolder(root / precision), config, data.field, state["model"])
    return trained_model.load(LocalFolder(root / precision)), metrics


def closed_loop(model: trained_model.TrainedModel, store: FieldStore, config: Configuration) -> float:
    """The error of an evaluation of the validation windows."""
    scores, _ = score(model, EvaluationSet.of_validation(store, config))
    return float(scores.squared[:, config.validation.warm_up :].mean() ** 0.5)


def test_validation_and_evaluation_agree_on_the_precision(store: FieldStore, tmp_path: Path) -> None:
    model, metrics = trained(tmp_path, store, "bf16")
    assert closed_loop(model, store, model.config) == pytest.approx(metrics["rmse_closed_loop"], rel=1e-6)
    # the same weights in float32 give another error, so the line before could fail
    exact = trained_model.TrainedModel(configuration(epochs=1), model.field, model.network)
    assert closed_loop(exact, store, model.config) != pytest.approx(metrics["rmse_closed_loop"], rel=1e-5)
    evaluation_set = EvaluationSet.of_validation(store, model.config)
    keys = {key_of_model(each, store, evaluation_set, model.config.validation) for each in (model, exact)}
    assert len(keys) == 2
    # so does a forecast, and each member of an ensemble has its own precision
    x = next(iter(evaluation_set.batches(2))).frames_BTCHW[:, :4]
    forecasts = [each.forecast(x, 3) for each in (model, exact)]
    assert not torch.equal(*forecasts)
    for members in ([model, exact], [exact, model]):
        mean = Ensemble.of(members, [1, 1], ["a", "b"]).forecast(x, 3)
        assert torch.allclose(mean, sum(forecasts) / 2, rtol=1e-6, atol=1e-7)


def test_precision_of_float32_is_that_of_validation_too(store: FieldStore, tmp_path: Path) -> None:
    model, metrics = trained(tmp_path, store, "float32")
    assert closed_loop(model, store, model.config) == pytest.approx(metrics["rmse_closed_loop"], rel=1e-6)
