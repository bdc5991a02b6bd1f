from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from mcrnn.config.sections import Configuration
from mcrnn.data.description import Scaling
from mcrnn.data.splits import FieldData, MemorySplit, Split
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import Batch, evaluation_windows
from mcrnn.errors import UserError
from mcrnn.models.forecaster import build_model
from mcrnn.models.precision import running_in
from mcrnn.training.batch_loss import BatchLoss
from mcrnn.training.checkpoints import deserialize, serialize
from mcrnn.training.numerics import DeviceUse, numeric_settings, out_of_memory_message
from mcrnn.training.session import OBJECTIVE, PENALTY, CallbackSession, End, Metrics, Request, State, evaluated_weights
from mcrnn.training.trainer import Trainer, fit
from mcrnn.training.validation import validate
from tests.support.device_operations import DeviceOperations


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
        states.append(deserialize(serialize(state)))

    fit(config, data, CallbackSession(on_report, checkpoint))
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

    shape = (2, *data.field.frame_shape[1:])
    channels, mean, std = (*data.field.channels, "other"), data.field.mean * 2, data.field.std * 2
    field = replace(data.field, channels=channels, frame_shape=shape, mean=mean, std=std)
    two = replace(data, train=doubled(data.train), val=doubled(data.val), field=field)
    reports, state = run(changed(channels_out=1), two)
    assert state["model"]["decoder.bias"].shape == (1,)
    assert (
        reports[-1]["loss"] < 10 * float(data.field.std[0]) ** 2
    )  # the second channel's would be 10,000 times as large


def test_objective_is_the_closed_loop_rmse_over_the_training_deviation(data: FieldData) -> None:
    reports, state = run(configuration(epochs=1), data)
    config = configuration()
    model = build_model(config.model, data.field.frame_shape, data.field.padding)
    model.load_state_dict(state["model"])
    val = all_frames(data.val)
    with torch.no_grad():
        prediction = model(val[:, :4], 4, 9)
    closed_loop = (prediction[:, 4:] - val[:, 5:10]).double().square().mean().sqrt()
    assert reports[0]["rmse_closed_loop"] == pytest.approx(float(closed_loop), rel=1e-6)
    assert reports[0][OBJECTIVE] == pytest.approx(float(closed_loop) / data.field.std[0], rel=1e-6)


def test_same_seed_gives_the_same_run_and_another_does_not(data: FieldData) -> None:
    def losses(seed: int) -> list[float]:
        return [m["loss"] for m in run(configuration(seed=seed), data)[0]]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


class Interrupted:
    """A session that asks for a checkpoint or a stop at some step and keeps what is reported."""

    rank, world_size = 0, 1

    def __init__(self, request: Request = Request.NOTHING, at: tuple[int, int] = (0, 0), start: State | None = None):
        self.request, self.at, self.start = request, at, start
        self.within: State | None = None
        self.reports: list[Metrics] = []
        self.state: State = {}

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        self.state = deserialize(serialize(checkpoint))
        if metrics is None:
            self.within = self.state
        else:
            self.reports.append(metrics)

    def load_checkpoint(self) -> State | None:
        return self.start

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        return self.request if (epoch, batch) == self.at else Request.NOTHING

    def warn(self, line: str) -> None:
        raise AssertionError(line)


EVERYTHING = {
    "schedule": "plateau",
    "plateau_epochs": 1,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "ema": 0.9,
    "warm_up_epochs": 0.5,
    "teacher_forcing_end": 2,
    "deterministic": True,
}


def equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


TIMES = ("seconds", "frames_per_second")


def timeless(state: State) -> State:
    history = [{key: value for key, value in metrics.items() if key not in TIMES} for metrics in state["history"]]
    return state | {"history": history}


@pytest.mark.parametrize("request_", [Request.CHECKPOINT, Request.STOP], ids=str)
@pytest.mark.parametrize("at", [(1, 1), (2, 2), (2, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("options", [{"schedule": "constant"}, {"schedule": "cosine"}, EVERYTHING], ids=str)
def test_run_that_goes_on_is_bit_for_bit_the_uninterrupted_one(
    data: FieldData, options: dict[str, Any], at: tuple[int, int], request_: Request
) -> None:
    config = configuration(**options)
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"noise": 0.1}),
            "model": config.model.model_copy(update={"dropout": 0.2}),
        }
    )
    whole = Interrupted()
    assert fit(config, data, whole) == End.FINISHED
    first = Interrupted(request_, at)
    end = fit(config, data, first)
    assert end == (End.INTERRUPTED if request_ == Request.STOP else End.FINISHED)
    if request_ == Request.CHECKPOINT and at[1] == 3:
        assert first.within is None  # the epoch's end has one of its own
        return
    torch.manual_seed(123)  # what happened before must not matter
    rest = Interrupted(start=first.within or first.state)
    assert fit(config, data, rest) == End.FINISHED
    assert equal(timeless(rest.state), timeless(whole.state))


def test_curriculum_moves_the_horizon_over_epochs() -> None:
    train = configuration(epochs=9, teacher_forcing_end=1, teacher_forcing_epochs=4).train
    assert [train.teacher_forcing(epoch) for epoch in range(1, 7)] == [4, 3, 2, 1, 1, 1]
    assert configuration().train.teacher_forcing(3) == 4


def test_early_stopping_ends_a_run_that_no_longer_improves(data: FieldData) -> None:
    session = Interrupted()
    # at this rate the first epoch is the best
    config = configuration(epochs=30, early_stopping=2, learning_rate=1e-12, schedule="constant", gradient_clip=None)
    assert fit(config, data, session) == End.STOPPED_EARLY
    errors = [metrics[OBJECTIVE] for metrics in session.reports]
    assert len(errors) - 1 - errors.index(min(errors)) == 2
    assert fit(config, data, Interrupted(start=session.state)) == End.STOPPED_EARLY


def test_average_of_the_weights_is_what_is_validated(data: FieldData) -> None:
    session = Interrupted()
    fit(configuration(epochs=2, ema=0.99), data, session)
    averaged = evaluated_weights(session.state)
    assert not equal(averaged, session.state["model"])
    config = configuration()
    model = build_model(config.model, data.field.frame_shape, data.field.padding)
    model.load_state_dict(averaged)
    windows = evaluation_windows(data.val.shape, False, 9)
    error = validate(model, data.val, windows, Scaling((0.0,), (1.0,)), warm_up=4, horizon=5, batch_size=32)
    assert session.reports[-1]["rmse_closed_loop"] == pytest.approx(error.rmse(5, 9), rel=1e-6)


def test_gradients_in_parts_are_those_of_the_whole_batch(data: FieldData) -> None:
    whole = run(configuration(batch_size=5, precision="float64"), data)[1]
    parts = run(configuration(batch_size=5, precision="float64", micro_batch=2), data)[1]
    for name, value in whole["model"].items():
        assert torch.allclose(parts["model"][name], value, rtol=1e-10, atol=1e-14), name
    assert not equal(whole["model"], parts["model"])


def test_few_batches_for_a_quick_try(data: FieldData) -> None:
    seen = []

    class Counting(Interrupted):
        def advance(self, epoch: int, batch: int, batches: int) -> Request:
            seen.append((epoch, batch, batches))
            return Request.NOTHING

    fit(configuration(epochs=2, max_batches=2), data, Counting())
    assert seen == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]


def spoilt(data: FieldData, samples: list[int]) -> FieldData:
    """With infinite frames in some training samples."""
    frames = all_frames(data.train).clone().numpy()
    frames[samples] = np.inf
    return replace(data, train=MemorySplit(frames))


def test_step_without_a_finite_gradient_is_left_out_and_counted(data: FieldData) -> None:
    reports, state = run(configuration(epochs=4, batch_size=1), spoilt(data, [2]))
    assert [metrics["skipped_steps"] for metrics in reports] == [1.0, 1.0, 1.0, 1.0]
    assert all(np.isfinite(metrics["loss"]) and metrics["diverged"] == 0 for metrics in reports)
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert all(bool(value.isfinite().all()) for value in state["model"].values())


def test_run_whose_losses_are_no_numbers_ends_with_the_penalty(data: FieldData) -> None:
    for wild in (spoilt(data, [0, 1, 2, 3, 4, 5]), spoilt(data, [0, 1, 2, 3, 5])):
        session = Interrupted()
        assert fit(configuration(batch_size=1, epochs=30), wild, session) == End.DIVERGED
        last = session.reports[-1]
        assert last["diverged"] == 1.0
        assert last[OBJECTIVE] == PENALTY
        assert len(session.reports) < 30
        assert fit(configuration(batch_size=1, epochs=30), wild, Interrupted(start=session.state)) == End.DIVERGED


def test_too_little_memory_says_what_was_asked_for(store_path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
from mcrnn.errors import NotEnoughMemoryError
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.storage.local import LocalFolder
from mcrnn.training.session import CallbackSession
from mcrnn.training.trainer import fit
from tests.training.test_trainer import configuration
config = configuration(batch_size=6)
config = config.model_copy(update={{"model": config.model.model_copy(update={{"hidden_size": 512, "layers": 3}})}})
data = FieldData.load(FieldStore.open(LocalFolder(Path("{store_path}"))), config.data)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
try:
    fit(config, data, CallbackSession(lambda *_: None))
except NotEnoughMemoryError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "a step takes 6 windows of 6 steps of 1 x 8 x 8 through 14,1" in result.stdout, result.stderr
    assert "Try --set train.micro_batch=3, or a smaller model" in result.stdout


def test_too_little_memory_of_a_gpu_says_what_took_it() -> None:
    config = configuration(batch_size=6)
    use = DeviceUse(total=80e9, own=12.3e9, elsewhere=66e9)
    message = out_of_memory_message(config, (1, 8, 8), 1, torch.device("cuda:0"), use)
    assert message.startswith("out of memory on cuda:0: a step takes 6 windows of 6 steps of 1 x 8 x 8")
    assert "; of its 80 GB this process used up to 12 GB, and CUDA and other processes 66 GB. Try" in message
    assert DeviceUse.of(torch.device("cpu")) is None


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


def test_noise_leaves_channels_that_are_not_predicted() -> None:
    config = changed(channels_out=1)
    config = config.model_copy(update={"data": config.data.model_copy(update={"noise": 0.5})})
    given: list[torch.Tensor] = []

    def model(x_BTCHW: torch.Tensor, teacher_forcing_steps: int) -> torch.Tensor:
        given.append(x_BTCHW)
        return x_BTCHW[:, :, :1].clone().requires_grad_()

    x = torch.ones(2, 7, 2, 3, 4)
    cast("Any", model).channels_out = 1
    loss = BatchLoss(config, cast("nn.Module", model), Scaling((0.0,) * 2, (1.0,) * 2), x.device, x.dtype)
    loss.backward(loss.inputs(Batch(x, [3, 1], 1.0), epoch=1))
    assert (given[0][:, :, 0] != 1).all()
    assert 0.4 < (given[0][:, :, 0] - 1).std() < 0.6
    assert (given[0][:, :, 1] == 1).all()


def with_everything(data: FieldData, device: str) -> tuple[Trainer, Batch]:
    """A training with all that adds to a step, after its first one, and the windows of a step on the device."""
    content = changed(dropout=0.1).model_dump()
    content["data"] |= {"noise": 0.1, "normalize": True}
    content["train"] |= {"ema": 0.99, "gradient_clip": 1.0}
    session = CallbackSession(lambda *_: None)
    trainer = Trainer(Configuration.model_validate(content), data, session, torch.device(device))
    batch = next(trainer.windows.epoch(1))
    trainer._step(batch)
    return trainer, batch


def test_a_step_makes_no_tensor_of_python_numbers(data: FieldData) -> None:
    # on a GPU each would be a copy, and a wait for it
    trainer, batch = with_everything(data, "cpu")
    with DeviceOperations() as operations:
        trainer._step(batch)
    assert operations.from_lists == 0
    assert operations.calls["_fused_adam_"] == operations.calls["_foreach_lerp_"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_does_not_wait_for_the_gpu(data: FieldData) -> None:
    trainer, batch = with_everything(data, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("own", [None, ":16:8"])
def test_determinism_on_gpus_sets_up_cublas(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, own or "")  # so that it is restored
    if own is None:
        monkeypatch.delenv(name)
    for device, expected in (("cpu", own), ("cuda", own or ":4096:8")):
        with numeric_settings(configuration(deterministic=True).train, torch.device(device)):
            assert os.environ.get(name) == expected


def test_samples_too_short_for_validation_are_refused(data: FieldData) -> None:
    config = configuration()
    long = config.model_copy(update={"validation": config.validation.model_copy(update={"horizon": 99})})
    with pytest.raises(UserError, match="needs samples of 104 frames, the store has 14"):
        run(long, data)
