"""What runs on a worker: the training loop, how it records, reports and hears that it is to stop.

The same loop runs in three places, which differ in their session only: in this process, in a Tune trial, on the
workers of Ray Train. Rank 0 records; the others train.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from mcrnn.data.splits import FieldData
from mcrnn.errors import NotEnoughMemoryError
from mcrnn.models import model_cost
from mcrnn.training.checkpoints import deserialize
from mcrnn.training.recorder import RunRecorder
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import End, Metrics, Request, State
from mcrnn.training.trainer import fit


class RunSession:
    """The session of a job in this process."""

    def __init__(
        self,
        job: TrainingRun,
        rank: int = 0,
        world_size: int = 1,
        on_epoch: Callable[[Metrics], None] | None = None,
        on_step: Callable[[int, int, int], None] | None = None,
        on_recorded: Callable[[], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.job, self.rank, self.world_size = job, rank, world_size
        self.on_epoch, self.on_step, self.warn = on_epoch, on_step, warn or (lambda _: None)
        self.recorder = RunRecorder(job, on_recorded) if rank == 0 else None
        self.stop_requested = False
        self.last_checkpoint = time.monotonic()
        costs = model_cost(job.config.model, job.field.frame_shape)
        self.known = {"epochs": job.config.train.epochs, "parameters": costs.parameters}
        """what goes with every report to Ray"""

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Record on rank 0."""
        if self.recorder:
            self.recorder.record(metrics, checkpoint)
        self.last_checkpoint = time.monotonic()
        if metrics is not None and self.on_epoch:
            self.on_epoch(metrics)

    def load_checkpoint(self) -> State | None:
        """The newest."""
        content = self.job.load_checkpoint(self.warn)
        return None if content is None else deserialize(content)

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Ask for a checkpoint when it is time."""
        if self.on_step:
            self.on_step(epoch, batch, batches)
        if self.stop_requested:
            return Request.STOP
        due = time.monotonic() - self.last_checkpoint > 60 * self.job.config.train.checkpoint_minutes
        return Request.CHECKPOINT if due else Request.NOTHING

    def train(self, data: FieldData, device: torch.device | None = None) -> End:
        """Train to the end, and write down which it was.

        Raises:
            NotEnoughMemoryError: written down, too.
        """
        try:
            end = fit(self.job.config, data, self, device)
        except NotEnoughMemoryError as error:
            self.job.finish(End.OUT_OF_MEMORY, str(error))
            raise
        finally:
            if self.recorder:
                self.recorder.close()
        if self.rank == 0:
            self.job.finish(end)
        return end
