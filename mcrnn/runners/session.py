"""The session of a training: records on disk, reports, and requests to stop.

The training loop is the same in this process, in a Tune trial and on the workers of Ray Train; only the session that it
is given differs. Rank 0 records what all ranks train.
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
    """The session of a training in this process, and what those on Ray have in common with it.

    Args:
        run: what to train.
        rank: number of this worker, from 0.
        world_size: number of workers.
        on_epoch: called with the metrics of each epoch.
        on_step: called after each step with the epoch, the number of the step in it from 1, and the steps of an epoch.
        on_recorded: called when the metrics of an epoch have been written.
        warn: takes a line for the user, such as about a damaged checkpoint.
    """

    def __init__(
        self,
        run: TrainingRun,
        rank: int = 0,
        world_size: int = 1,
        on_epoch: Callable[[Metrics], None] | None = None,
        on_step: Callable[[int, int, int], None] | None = None,
        on_recorded: Callable[[], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.run, self.rank, self.world_size = run, rank, world_size
        self.on_epoch, self.on_step, self.warn = on_epoch, on_step, warn or (lambda _: None)
        self.recorder = RunRecorder(run, on_recorded) if rank == 0 else None
        self.stop_requested = False
        self.last_checkpoint = time.monotonic()
        self.constants = report_constants(run)

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Record the metrics of an epoch, if it has ended, and a checkpoint; on rank 0 only."""
        if self.recorder:
            self.recorder.record(metrics, checkpoint)
        self.last_checkpoint = time.monotonic()
        if metrics is not None and self.on_epoch:
            self.on_epoch(metrics)

    def load_checkpoint(self) -> State | None:
        """Return the newest state, None where the training starts from the beginning."""
        content = self.run.load_checkpoint(self.warn)
        return None if content is None else deserialize(content)

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Request a stop if one was asked for, else a checkpoint every `train.checkpoint_minutes`."""
        if self.on_step:
            self.on_step(epoch, batch, batches)
        if self.stop_requested:
            return Request.STOP
        due = time.monotonic() - self.last_checkpoint > 60 * self.run.config.train.checkpoint_minutes
        return Request.CHECKPOINT if due else Request.NOTHING

    def train(self, data: FieldData, device: torch.device | None = None) -> End:
        """Train to the end, and write down how it ended.

        Args:
            data: the training and validation splits.
            device: where to train; by default the processor.

        Raises:
            NotEnoughMemoryError: memory was not enough, which is written down, too.
        """
        try:
            end = fit(self.run.config, data, self, device, self.run.target)
        except NotEnoughMemoryError as error:
            self.run.finish(End.OUT_OF_MEMORY, str(error))
            raise
        finally:
            if self.recorder:
                self.recorder.close()
        if self.rank == 0:
            self.run.finish(end)
        return end


def report_constants(run: TrainingRun) -> Metrics:
    """Return what every report to Tune says beside the metrics of its epoch."""
    costs = model_cost(run.config.model, run.field.frame_shape)
    return {"epochs": run.config.train.epochs, "parameters": costs.parameters}
