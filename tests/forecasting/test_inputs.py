"""Inputs that are known ahead have their true values in closed loop: in training, evaluation, forecasts and serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from data_prep.convert import convert
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation.result import evaluate_model
from mcrnn.forecasting import result
from mcrnn.forecasting.given import fit
from mcrnn.forecasting.source import Source, opened
from mcrnn.models import trained_model
from mcrnn.models.sizing import with_resolved_sizes
from mcrnn.models.trained_model import TrainedModel
from mcrnn.serving import bodies
from mcrnn.serving.bodies import JSON, NETCDF, Limits
from mcrnn.serving.served_model import ServedModel
from mcrnn.serving.work import Work, joined_inputs
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.training.session import OBJECTIVE, CallbackSession
from mcrnn.training.trainer import fit as train
from tests.data_prep.test_odd_inputs import DAYS
from tests.support.registered_models import save
from tests.support.served import as_json
from tests.support.store_inputs import with_orography

GIVEN, STEPS = 4, 6


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A root with a store of z, orography, solar angle and day of the year, and its source."""
    with_orography().to_netcdf(tmp_path / "a.nc")
    inputs = {"static": ["orography"], "forcing": ["solar-angle", "day-of-year"]}
    convert([str(tmp_path / "a.nc")], "z.zarr", variable=["z"], workers=1, storage=str(tmp_path), **inputs, **DAYS)
    return Storage.open(str(tmp_path))


@pytest.fixture
def model(storage: Storage, tmp_path: Path) -> TrainedModel:
    config = configuration()
    field = FieldDescription.of(FieldStore.open(storage.location("z.zarr")), config.data)
    config = with_resolved_sizes(config, field.frame_shape, len(field.inputs))
    return trained_model.load(save(tmp_path / "model", config, field))


def configuration() -> Configuration:
    return Configuration.model_validate(
        {
            "name": "test",
            "data": {"store": "z.zarr", "normalize": True, "coarsen": 2, "sequence_length": 6, "noise": 0.1},
            "model": {"architecture": "minconvgru", "hidden_size": 4, "layers": 1},
            "train": {"epochs": 1, "batch_size": 2, "teacher_forcing_steps": 2},
            "validation": {"warm_up": GIVEN, "horizon": 5},
        }
    )


def truth(storage: Storage, start: int) -> torch.Tensor:
    """Frames of the test split from one on, as the model sees them."""
    field = FieldStore.open(storage.location("z.zarr")).load("test", coarsen=2)
    return torch.from_numpy(field[:, start : start + GIVEN + STEPS])


def by_hand(model: TrainedModel, frames: torch.Tensor) -> np.ndarray:
    """The forecast with the true inputs at each step, by feeding the network the frames that it is to see."""
    fed = model.scaling.to_model(frames)
    with torch.no_grad():
        for step in range(GIVEN, GIVEN + STEPS - 1):
            fed[:, step, :1] = model.network(fed[:, :step])[:, -1]
        return model.scaling.to_physical(model.network(fed[:, : GIVEN + STEPS - 1])[:, GIVEN - 1 :]).numpy()


def test_forecasts_have_true_inputs_wherever_they_are_made(
    storage: Storage, model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frames = truth(storage, 3)
    expected = by_hand(model, frames)
    given = frames[:, :GIVEN].numpy()
    start = "1979-01-03T06:00"
    close = {"rtol": 1e-5, "atol": 1e-2}
    assert np.allclose(model.predict(given, STEPS, start=start), expected, **close)
    assert not np.allclose(model.predict(given, STEPS, start="1979-07-03T18:00"), expected, **close)
    with pytest.raises(ValueError, match=r"solar-angle and day-of-year as inputs.* give the date"):
        model.predict(given, STEPS)
    with opened("z.zarr", storage, "test") as source:
        frame = fit(source, model)
        found = result.forecast(model, frame, [6], warm_up=GIVEN, steps=STEPS)
        assert np.allclose(found[:, 0], expected, **close)
        newest = result.forecast(model, frame, [23], warm_up=GIVEN, steps=STEPS)  # beyond the end of the data
        labelled = result.label(newest, model, frame, [23], warm_up=GIVEN, identity={}, command="")
        assert np.isfinite(newest).all()
        assert list(labelled.data_vars) == ["z"]
    # A file has neither the channels of the sun nor a time of the orography.
    file = with_orography().isel(time=slice(51, 55))
    served = ServedModel(model, {"model_digest": "0"}, None)
    file.to_netcdf("given.nc")
    reading = bodies.read(NETCDF, Path("given.nc").read_bytes(), {"steps": str(STEPS)}, served, Limits(10**6, 99))
    assert np.allclose(reading.frames_BTCHW, given, **close)
    query = {"steps": str(STEPS), "start": [start]}
    as_lists = bodies.read(JSON, as_json({"frames": given.tolist()}), query, served, Limits(10**6, 99))
    for each in (reading, as_lists):
        found = model.predict(each.frames_BTCHW, STEPS, inputs=each.inputs_BTIHW)
        assert np.allclose(found, expected, **close)
    # Requests for several numbers of steps are computed together.
    short = Work("0", [], given, 1)
    joined = joined_inputs([short, Work("0", [], given, STEPS, reading.inputs_BTIHW)], STEPS)
    assert joined is not None
    assert joined.shape == (2, STEPS - 1, 4, 3, 4)
    assert reading.inputs_BTIHW is not None
    assert np.array_equal(joined[1], reading.inputs_BTIHW[0])
    with pytest.raises(UserError, match="give the date of the last given frame as `start`"):
        bodies.read(JSON, as_json({"frames": given.tolist()}), {}, served, Limits(10**6, 99))
    for units, sentence in (("s", "has the units s, the model takes m, and these do not"), ("", "has no units")):
        moved = file.assign(orography=file["orography"].assign_attrs(units=units))
        with pytest.raises(UserError, match=f"orography in 'x' {sentence}"):
            fit(Source("x", moved), model)


def test_data_array_with_dates_needs_no_start(storage: Storage, model: TrainedModel) -> None:
    frames = truth(storage, 0)
    dates = xr.date_range("1979-01-03", periods=GIVEN, freq="h")
    labelled = xr.DataArray(frames[0, :GIVEN].numpy(), {"time": dates}, ("time", "channel", "lat", "lon"))
    found = model.predict(labelled, STEPS)
    assert np.allclose(found.values, by_hand(model, frames)[0], rtol=1e-5, atol=1e-2)
    assert found.sizes == {"time": STEPS, "channel": 1, "lat": 3, "lon": 4}


def test_training_and_evaluation_see_true_inputs_and_predict_the_others(storage: Storage, tmp_path: Path) -> None:
    store = FieldStore.open(storage.location("z.zarr"))
    config = configuration()
    states: list[dict[str, torch.Tensor]] = []
    reports: list[dict[str, float]] = []

    def on_report(metrics: dict[str, float] | None, state: dict[str, dict[str, torch.Tensor]]) -> None:
        reports.append(metrics or {})
        states.append({name: value.clone() for name, value in state["model"].items()})

    data = FieldData.load(store, config.data)
    train(config, data, CallbackSession(on_report))
    assert states[-1]["decoder.bias"].shape == (1,)
    resolved = with_resolved_sizes(config, data.field.frame_shape, len(data.field.inputs))
    trained_model.save(LocalFolder(tmp_path / "trained"), resolved, data.field, states[-1])
    model = trained_model.load(LocalFolder(tmp_path / "trained"))
    errors = []
    val = torch.from_numpy(store.load("val", coarsen=2))
    for first in (0, 10):
        frames = val[:, first : first + 10]
        fed = model.scaling.to_model(frames)
        with torch.no_grad():
            for step in range(GIVEN, 9):
                fed[:, step, :1] = model.network(fed[:, :step])[:, -1]
            prediction = model.scaling.to_physical(model.network(fed[:, :9]))
        errors.append((prediction[:, GIVEN:, 0] - frames[:, GIVEN + 1 :, 0]).double().square().mean())
    by_hand = float(torch.stack(errors).mean().sqrt()) / data.field.std[0]
    assert reports[-1][OBJECTIVE] == pytest.approx(by_hand, rel=1e-5)
    evaluation = evaluate_model("trained", model, storage)
    assert list(evaluation.metrics["channels"]) == ["z"]
    assert evaluation.metrics["units"] == "m**2 s**-2"
