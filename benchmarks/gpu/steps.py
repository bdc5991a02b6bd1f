"""Training steps on random fields, and how long functions take that run in turns."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.paper_models import LAYERS, SIZES
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData, MemorySplit
from mcrnn.data.windows import Batch
from mcrnn.models.precision import running_in
from mcrnn.training.session import CallbackSession
from mcrnn.training.trainer import Trainer

PRECISIONS = ("float32", "tf32", "bf16")
BATCHES = (1, 8)
FUSED_GATES = "MCRNN_FUSED_GATES"


@dataclass(frozen=True)
class Scale:
    """How large and how many: the paper's sizes by default."""

    grid: int = 16
    layers: int = LAYERS
    steps: int = 25
    forced: int = 20
    turns: int = 5
    """Turns of a measurement, after one that does not count."""
    steps_per_turn: int = 4
    compared_steps: int = 200
    gigabytes: float = 1.0
    """Size of the copy that measures the bandwidth."""
    side: int = 8192
    """Rows and columns of the matrices that measure the arithmetic."""

    def width(self, architecture: str) -> int:
        """Return the hidden size."""
        return SIZES[architecture] if self.layers == LAYERS else 3


TINY = Scale(grid=5, layers=1, steps=4, forced=2, turns=1, steps_per_turn=1, compared_steps=6, gigabytes=0.001, side=64)


def configuration(scale: Scale, architecture: str, batch: int, precision: str, **train: Any) -> Configuration:
    """Return the configuration of a training."""
    return Configuration.model_validate(
        {
            "name": "gpu",
            "data": {"store": "none", "sequence_length": scale.steps},
            "model": {
                "architecture": architecture,
                "hidden_size": scale.width(architecture),
                "layers": scale.layers,
            },
            "train": {
                "batch_size": batch,
                "teacher_forcing_steps": scale.forced,
                "precision": precision,
                "schedule": "constant",
                **train,
            },
            "validation": {"warm_up": 1, "horizon": 1},
        }
    )


def with_graph(config: Configuration) -> Configuration:
    """Return a configuration whose steps are recorded as CUDA graphs."""
    return config.model_copy(update={"train": config.train.model_copy(update={"cuda_graph": True})})


def trainer(config: Configuration, scale: Scale, device: torch.device) -> Trainer:
    """Return a training on random fields."""
    shape = (config.train.batch_size, scale.steps + 1, 1, scale.grid, scale.grid)
    split = MemorySplit(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    statistics_of_field: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "store_digest": ""}
    field = FieldDescription("f", "1", "1", ("f",), (1, scale.grid, scale.grid), "circular", **statistics_of_field)
    data = FieldData(split, split, field, is_series=False)
    return Trainer(config, data, CallbackSession(lambda *_: None), device)


def random_batch(training: Trainer, seed: int) -> Batch:
    """Return windows of random values on the device of a training."""
    shape = training.train_split.shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Batch(values.to(training.device), list(range(shape[0])), 1.0)


@contextlib.contextmanager
def fused_gates(enabled: bool) -> Iterator[None]:
    """Set MCRNN_FUSED_GATES within the context."""
    before = os.environ.get(FUSED_GATES)
    os.environ[FUSED_GATES] = "1" if enabled else "0"
    try:
        yield
    finally:
        os.environ.pop(FUSED_GATES)
        if before is not None:
            os.environ[FUSED_GATES] = before


def our_step(config: Configuration, scale: Scale, device: torch.device, fused: bool = False) -> Callable[[], None]:
    """Return a function that takes a step of a training."""
    training = trainer(config, scale, device)
    batch = random_batch(training, 0)

    def step() -> None:
        with running_in(config.train.precision, device), fused_gates(fused):
            training._step(batch)

    return step


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(works: dict[str, Callable[[], Any]], scale: Scale, device: torch.device) -> dict[str, float]:
    """Run functions in turns, and return the median seconds of a call of each."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(scale.turns + 1):
        for name, work in works.items():
            wait(device)
            started = clock()
            for _ in range(scale.steps_per_turn):
                work()
            wait(device)
            if turn:
                found[name].append((clock() - started) / scale.steps_per_turn)
    return {name: max(statistics.median(values), 1e-9) for name, values in found.items()}
