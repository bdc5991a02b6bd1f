"""Steps that are recorded once and repeated are, bit for bit, those that are taken operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData, MemorySplit
from mcrnn.training.checkpoints import deserialize, serialize
from mcrnn.training.graphed_step import CudaGraphs, GraphedStep, graphed
from mcrnn.training.numerics import numeric_settings
from mcrnn.training.session import CallbackSession, End, State
from mcrnn.training.step import TrainingStep
from mcrnn.training.trainer import Trainer
from tests.support.recorded_operations import HostReadsError, RecordedOperations
from tests.training.test_trainer import Interrupted, equal, timeless

STEPS, EPOCHS = 200, 8
BATCHES = STEPS // EPOCHS
SPOILT = 7
"""A sample that is infinite, so that one step of each epoch is skipped."""


def configuration(architecture: str, **train: Any) -> Configuration:
    """All that a step may do, with a smaller last batch, over as many epochs as the curriculum has horizons."""
    return Configuration.model_validate(
        {
            "name": "test",
            "data": {"store": "none", "sequence_length": 4, "noise": 0.1, "normalize": True},
            "model": {"architecture": architecture, "hidden_size": 3, "layers": 1, "dropout": 0.2},
            "train": {
                **{"epochs": EPOCHS, "batch_size": 3, "learning_rate": 5e-3, "optimizer": "adamw"},
                **{"weight_decay": 0.01, "warm_up_epochs": 1.5, "ema": 0.9},
                **{"gradient_clip": 0.1, "teacher_forcing_steps": 4, "teacher_forcing_end": 2},
                **train,
            },
            "validation": {"warm_up": 2, "horizon": 2},
        }
    )


@pytest.fixture(scope="module")
def data() -> FieldData:
    values = np.random.default_rng(0).standard_normal((3 * BATCHES - 1, 6, 2, 4, 4), dtype=np.float32)
    values[SPOILT] = np.inf
    statistics = {"mean": (0.0, 0.1), "std": (1.0, 2.0), "store_digest": ""}
    field = FieldDescription("a, b", "1", "1", ("a", "b"), (2, 4, 4), "circular", **statistics)  # type: ignore[arg-type]
    return FieldData(MemorySplit(values), MemorySplit(values[:3]), field, is_series=False)


def trainer_of(config: Configuration, data: FieldData, start: State | None = None, device: str = "cpu") -> Trainer:
    return Trainer(config, data, Interrupted(start=start), torch.device(device), target=None)


def tensors_of(trainer: Trainer) -> list[torch.Tensor]:
    """What outlives a step."""
    of_optimizer = [value for state in trainer.optimizer.state.values() for value in state.values()]
    return [*trainer.model.parameters(), *of_optimizer, trainer.sums.tensor]


def with_recording(trainer: Trainer) -> RecordedOperations:
    """Let a training repeat its steps, and return what counts them."""
    operations = RecordedOperations(lambda: tensors_of(trainer))
    assert isinstance(trainer.step, TrainingStep)
    trainer.step = GraphedStep(trainer.step, operations, pytest.fail)
    return operations


def finished(trainer: Trainer) -> State:
    """Train to the end, and return the last state."""
    with numeric_settings(trainer.config.train, trainer.device):
        assert trainer.run() == End.FINISHED
    assert isinstance(trainer.session, Interrupted)
    return timeless(trainer.session.state)


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=() if a in ("convlstm", "minconvexplstm") else pytest.mark.soak) for a in ARCHITECTURES],
)
def test_recorded_steps_are_bit_for_bit_the_ordinary_ones(architecture: str, data: FieldData) -> None:
    config = configuration(architecture)
    plain, recorded = trainer_of(config, data), trainer_of(config, data)
    operations = with_recording(recorded)
    expected = finished(plain)
    assert equal(finished(recorded), expected)
    history = expected["history"]
    assert [metrics["skipped_steps"] for metrics in history] == [1.0] * EPOCHS
    assert history[-1]["loss"] < history[0]["loss"]
    assert len({metrics["learning_rate"] for metrics in history}) == EPOCHS
    # the horizon is 4, 4 (rounded), 3, 2, 2, ..: each has a graph, and the smaller last batch has one of its own
    horizons = [config.train.teacher_forcing(epoch) for epoch in range(1, EPOCHS + 1)]
    assert set(horizons) == {4, 3, 2}
    assert 3 < operations.recordings < 2 * 3 + 1
    first_ones = STEPS - operations.replays
    assert first_ones <= 2 * 3


@pytest.mark.parametrize(
    "train",
    [
        {"schedule": "plateau", "plateau_epochs": 1, "gradient_clip": None, "micro_batch": 2},
        {"precision": "bf16", "deterministic": True},
        {"precision": "float64", "optimizer": "adam"},
    ],
    ids=str,
)
def test_recorded_steps_follow_every_schedule_and_precision(train: dict[str, Any], data: FieldData) -> None:
    config = configuration("minconvexplstm", epochs=4, max_batches=8, teacher_forcing_end=None, **train)
    plain, recorded = trainer_of(config, data), trainer_of(config, data)
    operations = with_recording(recorded)
    assert equal(finished(recorded), finished(plain))
    assert operations.replays >= 20


def test_recorded_steps_go_on_from_a_checkpoint(data: FieldData) -> None:
    config = configuration("minconvgru", epochs=3)
    whole = trainer_of(config, data)
    expected = finished(whole)
    stopped = trainer_of(config, data)
    with_recording(stopped)
    batches = stopped.windows.epoch(1)
    for _ in range(9):
        stopped._step(next(batches))
        stopped.batch += 1
    content = serialize(stopped.state())
    assert type(deserialize(content)["optimizer"]["param_groups"][0]["lr"]) is float
    for recorded in (True, False):  # the steps after it may be recorded again or not
        rest = trainer_of(config, data, deserialize(content))
        if recorded:
            with_recording(rest)
        assert equal(finished(rest), expected)


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(data: FieldData) -> None:
    config = configuration("minconvgru", epochs=2)
    expected = finished(trainer_of(config, data))
    other = trainer_of(config, data)
    lines: list[str] = []
    step = other.step
    assert isinstance(step, TrainingStep)

    class Reading(RecordedOperations):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            def reads() -> None:
                bool(other.sums.tensor[0] > 0)
                work()

            return super().record(reads)

    other.step = GraphedStep(step, Reading(lambda: tensors_of(other)), lines.append)
    assert equal(finished(other), expected)
    assert lines == [
        "train.cuda_graph is not used: a step cannot be recorded (_local_scalar_dense cannot be recorded). The steps "
        "run operation by operation, with the same results"
    ]


def test_a_step_reads_nothing_on_the_host_and_copies_nothing_from_it(data: FieldData) -> None:
    trainer = trainer_of(configuration("convlstm"), data)
    batch = next(trainer.windows.epoch(1))
    trainer._step(batch)
    operations = RecordedOperations(lambda: tensors_of(trainer))
    inputs = trainer.loss.inputs(batch, 1)
    operations.record(lambda: trainer.step.take(inputs, 1e-3))
    with pytest.raises(HostReadsError):
        operations.record(lambda: trainer.sums.load(trainer.sums.values()))


@pytest.mark.parametrize(
    ("device", "workers", "clip", "reason"),
    [
        ("cpu", 1, 1.0, "the training runs on cpu, not on a CUDA device"),
        ("cuda", 2, 1.0, "several workers exchange gradients within a step"),
        ("cuda", 1, "learning_rate", "train.gradient_clip: learning_rate needs the learning rate on the host"),
    ],
)
def test_what_rules_out_a_graph_is_said_in_one_line(
    device: str, workers: int, clip: Any, reason: str, data: FieldData
) -> None:
    step = trainer_of(configuration("minconvgru"), data).step
    assert isinstance(step, TrainingStep)
    lines: list[str] = []
    train = configuration("minconvgru", gradient_clip=clip).train
    assert graphed(step, train, torch.device(device), workers, lines.append) is step
    assert len(lines) == 1
    assert f"train.cuda_graph is not used: {reason}." in lines[0]


def test_a_training_with_a_graph_asked_for_on_a_processor_says_so_and_trains(data: FieldData) -> None:
    reports: list[Any] = []
    config = configuration("minconvgru", epochs=2, max_batches=2, cuda_graph=True)
    session = CallbackSession(lambda *report: reports.append(report))
    with pytest.warns(UserWarning, match=r"train\.cuda_graph is not used: the training runs on cpu"):
        trainer = Trainer(config, data, session, torch.device("cpu"))
    assert trainer.run() == End.FINISHED
    assert len(reports) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_graphs_on_a_gpu_are_bit_for_bit_the_ordinary_steps(architecture: str, data: FieldData) -> None:
    config = configuration(architecture, deterministic=True)
    with_graph = config.model_copy(update={"train": config.train.model_copy(update={"cuda_graph": True})})
    plain, repeated = trainer_of(config, data, device="cuda"), trainer_of(with_graph, data, device="cuda")
    assert isinstance(repeated.step, GraphedStep)
    assert isinstance(repeated.step.graphs, CudaGraphs)
    assert equal(finished(repeated), finished(plain))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_step_does_not_wait_for_the_gpu(data: FieldData) -> None:
    config = configuration("minconvexplstm", cuda_graph=True)
    trainer = trainer_of(config, replace(data, train=data.train.on(torch.device("cuda"))), device="cuda")
    batches = trainer.windows.epoch(1)
    for _ in range(2):
        trainer._step(next(batches))
    batch = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
