"""Loading a trained model by `mcrnn.load_model`; names in MLflow are covered by test_registered_models.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mcrnn import load_model
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.models.forecaster import build_model
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage

FIELD = FieldDescription(
    variable="vorticity",
    units="1",
    time_step="1",
    channels=("w",),
    frame_shape=(1, 8, 8),
    padding="circular",
    mean=(0.5,),
    std=(2.0,),
    store_digest="0" * 64,
)


@pytest.fixture
def expected(tmp_path: Path) -> trained_model.TrainedModel:
    """An untrained model, saved as the model of the run `runs/one`."""
    config = Configuration.model_validate(
        {
            "name": "one",
            "data": {"store": "data/none.zarr"},
            "model": {"architecture": "convgru", "hidden_size": 4, "layers": 1},
        }
    )
    torch.manual_seed(0)
    network = build_model(config.model, FIELD.frame_shape, FIELD.padding).eval()
    trained_model.save(LocalFolder(tmp_path / "runs/one/model"), config, FIELD, network.state_dict())
    return trained_model.TrainedModel(config, FIELD, network)


@pytest.mark.parametrize("name", ["runs/one", "runs/one/model"], ids=["folder of a run", "model directory"])
def test_model_of_a_folder_forecasts_as_the_one_saved(
    tmp_path: Path, expected: trained_model.TrainedModel, name: str
) -> None:
    frames = np.random.default_rng(0).normal(size=(2, 3, 1, 8, 8)).astype(np.float32)
    for uri, storage in ((name, Storage.open(str(tmp_path))), (str(tmp_path / name), None)):
        loaded = load_model(uri, storage)
        np.testing.assert_array_equal(loaded.predict(frames, 2), expected.predict(frames, 2))
        assert loaded.field == FIELD


def test_relative_folder_is_below_the_storage_root_of_the_environment(
    tmp_path: Path, expected: trained_model.TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCRNN_STORAGE", str(tmp_path))
    assert load_model("runs/one").config == expected.config


def test_missing_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model 'runs/none'"):
        load_model("runs/none", Storage.open(str(tmp_path)))


def test_import_of_the_package_loads_nothing_heavy() -> None:
    check = "import sys, mcrnn; print(sorted({'torch', 'numpy', 'mlflow', 'ray', 'pydantic'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
