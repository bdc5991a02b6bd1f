"""Several trained models as one: the mean of their forecasts, also from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.forecaster import build_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.local import LocalFolder
from tests.commands.test_commands import CONFIGURATION


def model(store: FieldStore, architecture: str, *, seed: int = 0, normalize: bool = True) -> TrainedModel:
    """A model with random weights."""
    content = CONFIGURATION | {
        "data": {"store": "data/tiny.zarr", "coarsen": 2, "normalize": normalize},
        "model": {"architecture": architecture, "hidden_size": 4, "layers": 1},
    }
    config = Configuration.model_validate(content)
    field = FieldDescription.of(store, config.data)
    torch.manual_seed(seed)
    return TrainedModel(config, field, build_model(config.model, field.frame_shape, field.padding).eval())


@pytest.fixture
def members(store: FieldStore) -> list[TrainedModel]:
    """Models of two architectures, one of which sees the field in its own units."""
    return [model(store, "minconvgru"), model(store, "convlstm", seed=1, normalize=False)]


def test_forecast_is_the_mean_of_the_members_also_from_files(members: list[TrainedModel], tmp_path: Path) -> None:
    frames = torch.randn(2, 5, *members[0].field.frame_shape)
    ensemble = Ensemble.of(members, [1, 3], ["one", "other"])
    expected = (members[0].forecast(frames, 6) + 3 * members[1].forecast(frames, 6)) / 4
    torch.testing.assert_close(ensemble.forecast(frames, 6), expected, rtol=1e-5, atol=1e-6)
    trained_model.save_ensemble(LocalFolder(tmp_path), ensemble)
    loaded = trained_model.load(LocalFolder(tmp_path))
    assert isinstance(loaded, Ensemble)
    assert (loaded.names, loaded.counts, loaded.architecture) == (("one", "other"), (1, 3), "ensemble of 4")
    np.testing.assert_array_equal(loaded.predict(frames.numpy(), 6), ensemble.predict(frames.numpy(), 6))
    assert loaded.cost.parameters == sum(w.numel() for each in members for w in each.network.parameters())


def test_models_of_other_fields_do_not_go_together(members: list[TrainedModel]) -> None:
    first, other = members
    stranger = replace(other, field=replace(other.field, store_digest="f" * 64))
    with pytest.raises(UserError, match=r"'one' and 'other' cannot be in one ensemble: .*store with digest"):
        Ensemble.of([first, stranger], [1, 1], ["one", "other"])
