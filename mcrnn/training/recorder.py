"""The record that a training keeps in its folder, written in a thread while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from mcrnn.models import trained_model
from mcrnn.tracking.provenance import system_metrics
from mcrnn.training.checkpoints import serialize
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import OBJECTIVE, Metrics, State, evaluated_weights


class RunRecorder:
    """Writes checkpoints, the best model and the metrics of a training. Only rank 0 has one.

    Args:
        run: the training.
        on_recorded: called in the recorder's thread when the metrics of an epoch have been written.
    """

    def __init__(self, run: TrainingRun, on_recorded: Callable[[], None] | None = None) -> None:
        self.run, self._on_recorded = run, on_recorded or (lambda: None)
        run.write_record()
        self._writer = ThreadPoolExecutor(1, "recorder")
        self._writing: Future[None] | None = None

    def record(self, metrics: Metrics | None, state: State) -> None:
        """Start writing a checkpoint and, after an epoch, its metrics and the model if it is the best so far.

        The state is copied before this returns, so training may change it at once.

        Args:
            metrics: metrics of the epoch that has ended, None within an epoch.
            state: state of the training.

        Raises:
            UserError: the write before this one failed.
        """
        best = None
        if metrics is not None:
            metrics |= {"time": time.time(), **system_metrics()}  # in place: the history in the state holds it too
        if metrics is not None and metrics[OBJECTIVE] == metrics["best"] and not metrics["diverged"]:
            best = {name: weight.cpu().clone() for name, weight in evaluated_weights(state).items()}
        content = serialize(
            state | {"store_digest": self.run.field.store_digest, "configuration": self.run.config.model_dump()}
        )
        self.wait()
        self._writing = self._writer.submit(self._write, metrics, state["history"], content, best, _position(state))

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            UserError: it could not be written.
        """
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Wait until everything is written, and end the thread.

        Raises:
            UserError: it could not be written.
        """
        self._writer.shutdown()
        self.wait()

    def _write(
        self,
        metrics: Metrics | None,
        history: list[Metrics],
        content: bytes,
        best: dict[str, torch.Tensor] | None,
        position: dict[str, int],
    ) -> None:
        run = self.run
        if best is not None:
            trained_model.save(run.folder.model, run.config, run.field, best)
        run.checkpoints.save(content, **position)
        if metrics is not None:
            run.folder.write_metrics(history)
            self._on_recorded()


def _position(state: State) -> dict[str, int]:
    """Return how far a training is, for the name of its checkpoint."""
    return {"epoch": state["epoch"], "batch": state["batch"]}
