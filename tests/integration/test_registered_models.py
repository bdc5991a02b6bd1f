"""Registered models are loaded elsewhere, give the same numbers, and run no code that was planted in them."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking import model_loading
from mcrnn.tracking.mlflow_client import client_of, tracking_uri
from mcrnn.training.checkpoints import Checkpoints
from tests.commands.test_commands import CONFIGURATION
from tests.conftest import CommandRunner
from tests.support.registered_models import describe, register, save

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


CHECK = """
import sys
sys.path.append(sys.argv[1])
try:
    import mcrnn
except ImportError:
    pass
else:
    raise SystemExit("the package is installed here")
import json, mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[2])
for case in json.loads(sys.argv[3]):
    model = mlflow.pyfunc.load_model(f"models:/{case['name']}@champion")
    for batch, length, steps, height, width in case["shapes"]:
        frames = np.random.default_rng(0).normal(size=(batch, length, case["channels"], height, width))
        forecast = model.predict(frames.astype(np.float32), params={"steps": steps})
        np.save(f"{case['name']}-{batch}-{height}.npy", forecast)
print("loaded")
"""


def packages_without_ours(folder: Path) -> Path:
    """All that is installed, but for this project."""
    folder.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "mcrnn" not in path.name and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


def test_registered_models_load_without_the_package_and_give_the_same_numbers(root: Path, storage: Storage) -> None:
    cases = []
    for architecture in ARCHITECTURES:
        for prediction in ("frame", "increment"):
            model = {"architecture": architecture, "prediction": prediction, "hidden_size": 4, "layers": 2}
            cases.append((f"{architecture}-{prediction}", model, 1))
    cases.append(("two-channels", {"architecture": "convlstm", "hidden_size": 4, "layers": 1, "channels_out": 1}, 2))
    cases.append(("any-grid", {"architecture": "minconvlstm", "hidden_size": 4, "layers": 1, "norm": "group"}, 1))
    content = []
    for name, model, channels in cases:
        config, field = describe(root, model=model)
        if channels == 2:
            field = replace(field, channels=("a", "b"), frame_shape=(2, 8, 8), mean=(1.0, -2.0), std=(0.5, 3.0))
        version = register(storage, name, save(root / "models" / name, config, field))
        assert version == (1, "champion")
        shapes = [(1, 1, 1, 8, 8), (3, 7, 5, 8, 8), *([(2, 4, 3, 12, 20)] if name == "any-grid" else [])]
        content.append({"name": name, "channels": channels, "shapes": shapes})
    assert not list((root / "mlartifacts").rglob("*.pkl"))
    clean = packages_without_ours(root / "packages")
    arguments = [sys.executable, "-I", "-S", "-c", CHECK, str(clean), tracking_uri(storage), json.dumps(content)]
    loaded = subprocess.run(arguments, capture_output=True, text=True, cwd=root, check=False)
    assert loaded.stdout.strip().endswith("loaded"), loaded.stderr
    for case in content:
        ours = trained_model.load(LocalFolder(root / "models" / case["name"]))
        for batch, length, steps, height, width in case["shapes"]:
            frames = np.random.default_rng(0).normal(size=(batch, length, case["channels"], height, width))
            expected = ours.predict(frames.astype(np.float32), steps)
            found = np.load(root / f"{case['name']}-{batch}-{height}.npy")
            assert found.shape == expected.shape == (batch, steps, ours.network.channels_out, height, width)
            assert np.abs(found - expected).max() <= 1e-5 * min(ours.field.std), case["name"]
    card = client_of(tracking_uri(storage)).get_model_version("any-grid", "1").description
    assert "any grid" in card
    assert "**minconvlstm**" in card


def test_predict_returns_the_kind_of_array_that_it_was_given(root: Path, storage: Storage) -> None:
    config, field = describe(root)
    register(storage, "kinds", save(root / "m", config, field))
    loaded = model_loading.find("models:/kinds@champion", storage)
    model, identity = loaded.model, loaded.identity("models:/kinds@champion")
    assert (identity["model_version"], identity["model_digest"]) == ("1", model.digest)
    frames = np.random.default_rng(1).normal(size=(2, 5, 1, 8, 8)).astype(np.float32)
    expected = model.predict(frames, 3)
    assert isinstance(expected, np.ndarray)
    assert np.array_equal(model.predict(torch.from_numpy(frames), 3).numpy(), expected)
    times = xr.date_range("2000-01-01", periods=5, freq="6h")
    latitude = np.linspace(-80, 80, 8)
    labelled = xr.DataArray(
        frames[:, :, 0].transpose(1, 0, 2, 3),
        {"time": times, "lat": latitude},
        ("time", "member", "lat", "lon"),
        "vorticity",
        {"units": "1"},
    )
    forecast = model.predict(labelled, 3)
    assert forecast.dims == labelled.dims
    assert np.array_equal(forecast.values, expected[:, :, 0].transpose(1, 0, 2, 3))
    assert list(forecast.indexes["time"]) == list(xr.date_range("2000-01-02T06", periods=3, freq="6h"))
    assert np.array_equal(forecast.lat, latitude)
    assert forecast.attrs == {"units": "1"}
    monthly = replace(model, field=replace(model.field, time_step="1 month"))
    for use_cftime in (False, True):
        months = xr.date_range("2000-08-31", periods=8, freq="ME", use_cftime=use_cftime)
        forecast = monthly.predict(labelled.assign_coords(time=months[:5]), 3)
        assert [str(date)[:10] for date in forecast.indexes["time"]] == ["2001-01-31", "2001-02-28", "2001-03-31"]
    with pytest.raises(ValueError, match="expected frames of shape"):
        model.predict(frames[..., :4], 3)
    with pytest.raises(ValueError, match="at most one of samples"):
        model.predict(labelled.expand_dims("more"), 3)


class Malicious:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_planted_pickles_are_refused(root: Path, command: CommandRunner) -> None:
    trap = root / "executed"
    config, field = describe(root)
    place = save(root / "m", config, field)
    place.write(trained_model.WEIGHTS, pickle.dumps(Malicious(trap)))
    with pytest.raises(UserError, match="is not a model directory"):
        trained_model.load(place)
    # in place of a run's checkpoint, with a name that is right
    (root / "one.yaml").write_text(yaml.safe_dump(CONFIGURATION | {"name": "one"}))
    assert command("mcrnn.train", "one.yaml").returncode == 0
    folder = root / "runs/one/checkpoints"
    shutil.rmtree(folder)
    content = io.BytesIO()
    torch.save({"epoch": 1, "batch": 0, "model": Malicious(trap)}, content)
    Checkpoints(LocalFolder(folder)).save(content.getvalue(), epoch=1, batch=0)
    (root / "runs/one/end.json").unlink()
    refused = command("mcrnn.train", "one.yaml")
    assert refused.returncode == 2
    assert "holds more than data" in refused.stderr
    assert not trap.exists()
