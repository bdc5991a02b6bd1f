"""Bodies of requests are read into frames, answers are written in their kind, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.serving import bodies
from mcrnn.serving.bodies import ARROW, JSON, NETCDF, Limits
from mcrnn.serving.served_model import ServedModel
from tests.support.registered_models import describe, save
from tests.support.served import arrow, as_json, bad_requests, read_forecast, write_netcdf

LIMITS = Limits(1_000_000, 1000)


@pytest.fixture
def served(root: Path) -> ServedModel:
    model = trained_model.load(save(root / "models/ns", *describe(root)))
    return ServedModel(model, {"model": "models:/ns@champion", "model_digest": model.digest}, None)


def test_each_kind_of_body_gives_the_same_frames_and_is_answered_in_its_kind(root: Path, served: ServedModel) -> None:
    frames = np.random.default_rng(0).normal(size=(3, 4, 1, 8, 8)).astype(np.float32)
    forecasts = served.model.predict(frames, 5)
    for kind, body in ((JSON, as_json({"frames": frames.tolist(), "steps": 5})), (ARROW, arrow(frames))):
        question = {"steps": "5"} if kind == ARROW else {}
        reading = bodies.read(kind, body, question, served, LIMITS)
        assert np.array_equal(reading.frames_BTCHW, frames)
        assert reading.steps == 5
        assert np.abs(read_forecast(kind, reading.answer(forecasts)) - forecasts).max() <= 1e-6
    one = bodies.read(JSON, as_json({"frames": frames[0].tolist()}), {}, served, LIMITS)
    assert np.array_equal(one.frames_BTCHW, frames[:1])
    assert one.steps == 6  # as in the model's validation
    assert read_forecast(JSON, one.answer(forecasts[:1])).shape == (5, 1, 8, 8)

    netcdf = write_netcdf(root / "given.nc", frames[0, :, 0], coarsen=2)
    reading = bodies.read(NETCDF, netcdf.read_bytes(), {"steps": "5"}, served, LIMITS)
    assert np.abs(reading.frames_BTCHW - frames[:1]).max() <= 1e-6
    (root / "answer.nc").write_bytes(reading.answer(forecasts[:1]))
    with xr.open_dataset(root / "answer.nc") as found:
        assert np.array_equal(found.vorticity.values, forecasts[0, :, 0])
        assert found.t.values.tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
        assert found.attrs["mcrnn_model_digest"] == served.model.digest


def test_bad_bodies_are_refused_in_a_sentence(root: Path, served: ServedModel) -> None:
    frames = np.random.default_rng(0).normal(size=(1, 4, 1, 8, 8)).astype(np.float32)
    netcdf = write_netcdf(root / "given.nc", frames[0, :, 0], coarsen=2)
    cases = [case for case in bad_requests(frames, netcdf) if case.status == 400]
    assert len(cases) > 20
    for case in cases:
        question = {key: [value] if key == "start" else value for key, value in case.query.items()}
        with pytest.raises(UserError) as refusal:
            bodies.read(case.kind, case.body, question, served, LIMITS)
        assert case.sentence in str(refusal.value)
