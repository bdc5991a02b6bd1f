"""Measure what trials take of a GPU, by some steps of a few of them on a GPU of their own."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from mcrnn.config.sections import Configuration
from mcrnn.config.space import Search
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.errors import NotEnoughMemoryError, UserError
from mcrnn.models import model_cost, with_resolved_sizes
from mcrnn.runners import mps
from mcrnn.runners.gpu_cards import BusySampler, Card, memory_in_use
from mcrnn.search.packing import TrialMeasurement
from mcrnn.training.numerics import BYTES_OF_PARAMETER
from mcrnn.training.session import Metrics, Request, State
from mcrnn.training.trainer import fit

SECONDS_OF_STEPS = 4.0
"""Time for which steps are taken. It is several times that in which the driver renews how busy the GPU is."""
SECONDS_OF_LEAD = 1.0
"""Time of steps before that, so that the driver's figure is of steps only."""


@dataclass(frozen=True)
class Measured:
    """What trials take of a GPU."""

    card: Card
    """The GPU, with what was in use of its memory before."""
    trials: tuple[TrialMeasurement, ...]
    """One for each configuration that its memory was enough for."""


Measure = Callable[[list[Configuration], FieldData], Measured]
"""Measures some configurations, in a process that has a GPU of its own.

Raises:
    UserError: it cannot be measured; the message says why.
"""


def configurations_to_measure(search: Search, field: FieldDescription) -> list[Configuration]:
    """Return the configurations of a search by which the needs of its trials are judged.

    They are, among the corners of the space, the one of each architecture that should need the most memory.

    Args:
        search: the search.
        field: the field that its trials are trained on.
    """
    largest: dict[str, tuple[float, Configuration]] = {}
    for values in search.space.corners():
        config = with_resolved_sizes(search.configuration(values), field.frame_shape, len(field.inputs))
        cost, train = model_cost(config.model, field.frame_shape), config.train
        windows = min(train.batch_size, train.micro_batch or train.batch_size)
        estimate = windows * config.data.sequence_length * cost.activation_bytes + BYTES_OF_PARAMETER * cost.parameters
        name = config.model.architecture
        if name not in largest or estimate > largest[name][0]:
            largest[name] = float(estimate), config
    return [config for _, config in largest.values()]


def measure_on_gpu(configs: list[Configuration], data: FieldData) -> Measured:
    """Measure some configurations on the GPU of this process, which has computed nothing on it yet.

    Args:
        configs: the configurations.
        data: the training and validation splits.

    Raises:
        UserError: PyTorch finds no GPU in this process.
    """
    mps.join()  # as the trials that share a GPU: a GPU that takes one process only has that of the service already
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU in a process that has one of Ray's")
    torch.set_num_threads(1)  # as in a trial
    device, used_before = torch.device("cuda", 0), memory_in_use()  # by others: CUDA has no context here yet
    free, total = torch.cuda.mem_get_info(device)
    context = max(0.0, total - free - used_before - torch.cuda.memory_reserved(device))
    trials = []
    for config in configs:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(NotEnoughMemoryError):  # in the search, too, such a trial is too large
            busy, cores = _train(config, data, device)
            peak = torch.cuda.max_memory_reserved(device)
            trials.append(TrialMeasurement(peak + context, busy, psutil.Process().memory_full_info().uss, cores))
    return Measured(Card(torch.cuda.get_device_name(device), total, used_before), tuple(trials))


def _train(config: Configuration, data: FieldData, device: torch.device) -> tuple[float | None, float]:
    """Train for some seconds as a trial does; returns how busy the GPU was, and the cores that were."""
    # a step costs the same where nothing is learnt, and no learning rate of the space makes it diverge
    train, validation = config.train.model_copy(update={"learning_rate": 0.0}), config.validation
    short = config.model_copy(
        update={
            "train": train.model_copy(update={"max_batches": 2, "epochs": 1}),
            "validation": validation.model_copy(update={"windows": validation.batch_size}),
        }
    )
    fit(short, data, TimedSession(), device)  # compiles kernels, and takes the memory of the validation
    endless = config.model_copy(update={"train": train.model_copy(update={"epochs": 10**6, "early_stopping": None})})
    session = TimedSession(SECONDS_OF_LEAD, SECONDS_OF_STEPS)
    with BusySampler() as sampler:
        session.on_start = sampler.samples.clear
        fit(endless, data, session, device)
    return sampler.busy, session.cores


class TimedSession:
    """The session of a training that is stopped after some seconds, and of which nothing is kept.

    Args:
        lead: seconds of steps before the time is taken.
        seconds: seconds of steps after that; 0 to train to the end.
    """

    rank, world_size = 0, 1

    def __init__(self, lead: float = 0.0, seconds: float = 0.0) -> None:
        self.lead, self.seconds = lead, seconds
        self.on_start: Callable[[], None] = lambda: None
        """Called at the end of the lead."""
        self.cores = 0.0
        """Cores that were busy meanwhile."""
        self._began = time.monotonic()
        self._start: tuple[float, float] | None = None

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Keep nothing."""

    def load_checkpoint(self) -> State | None:
        """Start from the beginning."""
        return None

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Request a stop when the time is over."""
        if not self.seconds:
            return Request.NOTHING
        now = time.monotonic()
        if self._start is None:
            if now - self._began >= self.lead:
                self._start = now, time.process_time()
                self.on_start()
            return Request.NOTHING
        passed = now - self._start[0]
        if passed < self.seconds:
            return Request.NOTHING
        self.cores = (time.process_time() - self._start[1]) / passed
        return Request.STOP

    def warn(self, line: str) -> None:
        """Say nothing: a training that is kept tells it."""
