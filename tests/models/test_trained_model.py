from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.models.forecaster import build_model
from mcrnn.storage.local import LocalFolder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalize", [False, True])
def test_round_trip_forecasts_in_field_units(
    tmp_path: Path, store: FieldStore, architecture: str, normalize: bool
) -> None:
    config = Configuration.model_validate(
        {
            "name": "test",
            "data": {"store": "tiny.zarr", "coarsen": 2, "normalize": normalize},
            "model": {"architecture": architecture, "hidden_size": 3, "layers": 2},
        }
    )
    field = FieldDescription.of(store, config.data)
    network = build_model(config.model, field.frame_shape, field.padding).eval()
    trained_model.save(LocalFolder(tmp_path / "m"), config, field, network.state_dict())
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors"}

    loaded = trained_model.load(LocalFolder(tmp_path / "m"))
    assert loaded.config == config
    assert loaded.field == field
    frames = torch.from_numpy(store.load("test", 2))[:, :5]
    mean, std = (field.mean[0], field.std[0]) if normalize else (0.0, 1.0)
    with torch.no_grad():
        expected = network.forecast((frames - mean) / std, 3) * std + mean
    assert torch.equal(loaded.forecast(frames, 3), expected)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a model directory"):
        trained_model.load(LocalFolder(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not a model directory"):
        trained_model.load(LocalFolder(tmp_path))
