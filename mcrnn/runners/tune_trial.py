"""A training with one worker inside a Ray Tune trial."""

from __future__ import annotations

from typing import Any

import torch

from mcrnn.data.splits import FieldData
from mcrnn.device import choose_device
from mcrnn.runners.session import RunSession
from mcrnn.runners.stop_flag import StopPoll
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import End, Metrics, Request, State


class TuneSession(RunSession):
    """A one-worker trial: a plain Tune function on a reused actor."""

    def __init__(self, job: TrainingRun, stop: Any) -> None:
        super().__init__(job)
        self._stop_asked = StopPoll(stop, job.run_name)

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Record, and then report, for the trial may be stopped with the report."""
        from ray import tune

        super().report(metrics, checkpoint)
        if metrics is not None:
            assert self.recorder is not None
            self.recorder.wait()
            tune.report(metrics | self.known)

    def load_checkpoint(self) -> State | None:
        """The newest; its epochs are told once more, for the driver may have been lost before it heard of them."""
        from ray import tune

        state = super().load_checkpoint()
        for metrics in state["history"] if state else []:
            tune.report(metrics | self.known)
        return state

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Ask the driver whether to stop."""
        self.stop_requested = self.stop_requested or self._stop_asked()
        return super().advance(epoch, batch, batches)


def run_in_tune(job: TrainingRun, data: FieldData, stop: Any = None) -> End:
    """A one-worker trial, inside a Tune actor."""
    torch.set_num_threads(1)
    return TuneSession(job, stop).train(data, choose_device(job.config.train.device, "train.device"))
