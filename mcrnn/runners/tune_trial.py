"""A training with one worker, inside a Ray Tune trial."""

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
    """The session of a one-worker trial, which is a plain function in a Tune actor.

    Args:
        run: what to train.
        stop: handle of a `StopFlag`, or None.
    """

    def __init__(self, run: TrainingRun, stop: Any) -> None:
        super().__init__(run)
        self._stop_poll = StopPoll(stop, run.run_name)

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Record, then report to Tune; in this order, because Tune may stop the trial at the report."""
        from ray import tune

        super().report(metrics, checkpoint)
        if metrics is not None:
            assert self.recorder is not None
            self.recorder.wait()
            tune.report(metrics | self.constants)

    def load_checkpoint(self) -> State | None:
        """Return the newest state, and report its epochs again: the driver may have been lost before it got them.

        Epochs beyond the target are not reported: a trial whose last report is not of its target would have ended.
        """
        from ray import tune

        state = super().load_checkpoint()
        for metrics in state["history"] if state else []:
            if self.run.target is None or metrics["epoch"] <= self.run.target:
                tune.report(metrics | self.constants)
        return state

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Request a stop if the driver asks for one."""
        self.stop_requested = self.stop_requested or self._stop_poll()
        return super().advance(epoch, batch, batches)


def run_in_tune(run: TrainingRun, data: FieldData, stop: Any = None, threads: int = 1) -> End:
    """Train inside a Tune actor, on few threads, so that trials side by side do not take each other's cores.

    Args:
        run: what to train.
        data: the training and validation splits.
        stop: handle of a `StopFlag`, or None.
        threads: threads of PyTorch; one for each CPU that Ray has reserved.
    """
    torch.set_num_threads(threads)
    return TuneSession(run, stop).train(data, choose_device(run.config.train.device, "train.device"))
