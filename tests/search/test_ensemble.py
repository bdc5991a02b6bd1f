"""Models of a search that forecast best together: which are picked, and what their errors and their spread are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mcrnn.config.sections import Configuration
from mcrnn.data.masks import mask_weights
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.metrics import rmse_normalized
from mcrnn.evaluation.scoring import score
from mcrnn.evaluation.spread import spread_by_step
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel, network_of
from mcrnn.search.ensemble import error_products, pick
from mcrnn.storage.local import LocalFolder
from mcrnn.training.session import OBJECTIVE
from mcrnn.training.validation import validate, validation_metrics
from tests.commands.test_commands import CONFIGURATION
from tests.data.test_masks import MASK, built
from tests.data.test_masks import configuration as masked_configuration
from tests.models.test_ensemble import model

__all__ = ["built"]


def test_models_whose_errors_cancel_are_picked_before_better_ones_whose_errors_do_not() -> None:
    errors = np.array([[1.0, 1.0], [1.1, 1.0], [-1.4, -1.2], [np.nan, 0.0]])
    chosen, found = pick(errors @ errors.T / 2, 5)
    assert set(chosen) == {0, 2}
    assert chosen[0] == 0
    assert found[-1] == min(found)
    assert found[-1] == pytest.approx(math.sqrt(np.mean(errors[chosen].mean(0) ** 2)))


def test_one_model_that_no_other_helps_stays_alone() -> None:
    errors = np.array([[1.0, 1.0], [2.0, 2.0]])
    assert pick(errors @ errors.T / 2, 5) == ([0], [pytest.approx(1.0)])
    assert pick(np.full((2, 2), np.nan), 5) == ([], [])


def test_error_of_an_ensemble_follows_from_the_products_of_its_members(store: FieldStore) -> None:
    members = [model(store, "minconvgru"), model(store, "convlstm", seed=1, normalize=False)]
    evaluation_set = EvaluationSet.of_validation(store, members[0].config)
    std = np.array(members[0].field.std)
    products = error_products(members, evaluation_set, std)
    ensemble = Ensemble.of(members, [2, 1], ["a", "b"])
    for each, chosen in ((members[0], [0]), (members[1], [1]), (ensemble, [0, 0, 1])):
        squared = score(each, evaluation_set)[0].squared
        first = evaluation_set.warm_up + 1
        expected = rmse_normalized(squared, first, evaluation_set.steps, std)
        assert math.sqrt(products[np.ix_(chosen, chosen)].mean()) == pytest.approx(expected, rel=1e-5)


def test_errors_outside_of_the_mask_and_the_number_of_points_do_not_count(built: Path) -> None:
    config, store = masked_configuration(), FieldStore.open(LocalFolder(built / "z.zarr"))
    data = FieldData.load(store, config.data)
    member = TrainedModel(config, data.field, network_of(config, data.field).eval())
    evaluation_set, scales = EvaluationSet.of_validation(store, config), np.array(data.field.std)
    (product,) = error_products([member], evaluation_set, scales).flatten()
    weights_CHW = torch.tensor(mask_weights(MASK))
    error = validate(
        member.network, data.val, evaluation_set.windows, member.scaling,
        warm_up=2, horizon=3, batch_size=2, weights_CHW=weights_CHW,
    )  # fmt: skip
    metrics = validation_metrics(error, 2, tuple(scales), tuple(scales))
    assert math.sqrt(product) == pytest.approx(metrics[OBJECTIVE], rel=1e-5)


def test_spread_is_that_of_equal_members_and_nothing_of_one(store: FieldStore) -> None:
    config = Configuration.model_validate(CONFIGURATION | {"data": {"store": "data/tiny.zarr", "coarsen": 2}})
    evaluation_set = EvaluationSet.of_validation(store, config)
    one, other = model(store, "minconvgru"), model(store, "convlstm", seed=1)
    std = np.array(one.field.std)
    spread = spread_by_step(Ensemble.of([one, other], [1, 1], ["a", "b"]), evaluation_set, std)
    total = np.zeros(evaluation_set.steps)
    for batch in evaluation_set.batches(2):
        a, b = (
            each.scaling.to_physical(
                each.network(each.scaling.to_model(batch.frames_BTCHW), evaluation_set.warm_up, evaluation_set.steps)
            )
            for each in (one, other)
        )
        total += ((a - b) ** 2).mean((2, 3, 4)).sum(0).detach().numpy()
    unbiased = total / len(evaluation_set) / 2 / std[0] ** 2  # the variance of two values, one channel
    np.testing.assert_allclose(spread, np.sqrt(3 / 2 * unbiased), rtol=1e-4)
    assert not spread_by_step(Ensemble.of([one], [3], ["a"]), evaluation_set, std).any()
