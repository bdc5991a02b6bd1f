from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mcrnn.checkpoints import packed, unpacked
from mcrnn.config import Configuration
from mcrnn.errors import UserError
from mcrnn.fields import FieldStore
from mcrnn.training import OBJECTIVE, PENALTY, Alone, Metrics, State, build_model, fit, running_in, validate
from mcrnn.windows import FieldData, MemorySplit, Scaling, Split, evaluation_windows


def configuration(**train: Any) -> Configuration:
    return Configuration.model_validate(
        {
            "name": "test",
            "data": {"store": "tiny.zarr", "coarsen": 2, "sequence_length": 6},
            "model": {"architecture": "minconvgru", "hidden_size": 6, "layers": 1},
            "train": {"epochs": 3, "batch_size": 2, "teacher_forcing_steps": 4, "learning_rate": 5e-3, **train},
            "validation": {"warm_up": 4, "horizon": 5},
        }
    )


@pytest.fixture
def data(store: FieldStore) -> FieldData:
    return FieldData.load(store, configuration().data)


def all_frames(split: Split) -> torch.Tensor:
    samples, frames = split.shape[:2]
    return split.windows(torch.arange(samples), torch.zeros(samples, dtype=torch.int64), frames)


def run(
    config: Configuration, data: FieldData, checkpoint: dict[str, Any] | None = None
) -> tuple[list[Metrics], dict[str, Any]]:
    reports: list[Metrics] = []
    states: list[dict[str, Any]] = []

    def on_report(metrics: Metrics, state: State) -> None:
        reports.append(metrics)
        states.append(unpacked(packed(state)))

    fit(config, data, Alone(on_report, checkpoint))
    return reports, states[-1]


def test_training_lowers_the_error(data: FieldData) -> None:
    reports, _ = run(configuration(epochs=12), data)
    assert [m["epoch"] for m in reports] == list(range(1, 13))
    assert reports[-1]["loss"] < 0.5 * reports[0]["loss"]
    assert reports[-1]["best"] == min(m[OBJECTIVE] for m in reports) < reports[0][OBJECTIVE]


def changed(**model: Any) -> Configuration:
    content = configuration().model_dump()
    return Configuration.model_validate(content | {"model": content["model"] | model})


@pytest.mark.parametrize(
    "model",
    [
        {"hidden_size": [4, 6], "layers": 2},
        {"norm": "group", "norm_groups": 2, "dropout": 0.1},
        {"prediction": "increment", "kernel_size": 5},
    ],
    ids=str,
)
def test_every_kind_of_network_learns(data: FieldData, model: dict[str, Any]) -> None:
    reports, _ = run(changed(**model), data)
    assert reports[-1]["loss"] < reports[0]["loss"]


@pytest.mark.parametrize("architecture", ["convlstm", "minconvexplstm"])
def test_bfloat16_learns_the_same(data: FieldData, architecture: str) -> None:
    exact = run(changed(architecture=architecture), data)[0]
    config = changed(architecture=architecture)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "bf16"})})
    reports, state = run(config, data)
    assert reports[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.1)
    assert reports[-1]["loss"] != exact[-1]["loss"]
    assert all(value.dtype == torch.float32 for value in state["model"].values())


def test_precision_leaves_the_settings_of_torch_as_they_were() -> None:
    before = torch.backends.cudnn.allow_tf32
    for precision in ("float32", "tf32", "bf16"):
        with running_in(precision, torch.device("cpu")):
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
    assert torch.backends.cudnn.allow_tf32 == before


def test_only_the_channels_that_are_predicted_count(data: FieldData) -> None:
    def doubled(split: Split) -> MemorySplit:
        frames = all_frames(split).numpy()
        return MemorySplit(np.concatenate([frames, 100 * frames], axis=2))

    two = replace(data, train=doubled(data.train), val=doubled(data.val), mean=data.mean * 2, std=data.std * 2)
    reports, state = run(changed(channels_out=1), two)
    assert state["model"]["decoder.bias"].shape == (1,)
    assert reports[-1]["loss"] < 10 * float(data.std[0]) ** 2  # the second channel's would be 10,000 times as large


def test_objective_is_the_closed_loop_rmse_over_the_training_deviation(data: FieldData) -> None:
    reports, state = run(configuration(epochs=1), data)
    config = configuration()
    model = build_model(config.model, data.frame_shape, data.padding)
    model.load_state_dict(state["model"])
    val = all_frames(data.val)
    with torch.no_grad():
        prediction = model(val[:, :4], 4, 9)
    closed_loop = (prediction[:, 4:] - val[:, 5:10]).double().square().mean().sqrt()
    assert reports[0]["rmse_closed_loop"] == pytest.approx(float(closed_loop), rel=1e-6)
    assert reports[0][OBJECTIVE] == pytest.approx(float(closed_loop) / data.std[0], rel=1e-6)


def test_validation_does_not_depend_on_batch_size_or_normalisation_of_the_truth(data: FieldData) -> None:
    model = build_model(configuration().model, data.frame_shape, data.padding)
    windows = evaluation_windows(data.val.shape, False, 9)
    scaling = Scaling((0.0,), (1.0,))
    errors = [
        validate(model, data.val, windows, scaling, warm_up=4, horizon=5, batch_size=size).rmse_by_step()
        for size in (1, 2, 32)
    ]
    assert torch.allclose(errors[0], errors[1], rtol=1e-6)
    assert torch.allclose(errors[0], errors[2], rtol=1e-6)


def test_same_seed_gives_the_same_run_and_another_does_not(data: FieldData) -> None:
    def losses(seed: int) -> list[float]:
        return [m["loss"] for m in run(configuration(seed=seed), data)[0]]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_continued_run_is_the_uninterrupted_one(data: FieldData, schedule: str) -> None:
    config = configuration(schedule=schedule)
    whole, end = run(config, data)
    buffer = io.BytesIO()

    def die_after_two(metrics: Metrics, state: dict[str, Any]) -> None:
        if metrics["epoch"] == 2:
            torch.save(state, buffer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, data, Alone(die_after_two))
    buffer.seek(0)
    rest, continued = run(config, data, torch.load(buffer, weights_only=True))
    assert [m["epoch"] for m in rest] == [3]
    assert rest[-1]["loss"] == whole[-1]["loss"]
    for name, value in end["model"].items():
        assert torch.equal(continued["model"][name], value)


def test_run_that_diverges_ends_with_the_penalty(data: FieldData) -> None:
    wild = replace(data, train=MemorySplit(np.full_like(all_frames(data.train).numpy(), 1e30)))
    reports, _ = run(configuration(), wild)
    assert len(reports) == 1
    assert reports[0]["diverged"] == 1.0
    assert reports[0][OBJECTIVE] == PENALTY


def test_objective_never_exceeds_the_penalty(data: FieldData) -> None:
    wild = replace(data, val=MemorySplit(1e15 * all_frames(data.val).numpy()))
    reports, _ = run(configuration(epochs=1), wild)
    assert reports[0][OBJECTIVE] == PENALTY


def test_noise_is_added_to_inputs_only(data: FieldData) -> None:
    # a model that sees pure noise of huge amplitude still has finite targets: the loss stays of order one
    config = configuration(epochs=1)
    noisy = config.model_copy(update={"data": config.data.model_copy(update={"noise": 0.5})})
    plain_loss = run(config, data)[0][0]["loss"]
    noisy_loss = run(noisy, data)[0][0]["loss"]
    assert noisy_loss != plain_loss
    assert noisy_loss < 10 * plain_loss


def test_samples_too_short_for_the_exam_are_refused(data: FieldData) -> None:
    config = configuration()
    long = config.model_copy(update={"validation": config.validation.model_copy(update={"horizon": 99})})
    with pytest.raises(UserError, match="needs samples of 104 frames, the store has 14"):
        run(long, data)
