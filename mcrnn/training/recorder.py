"""Writes what a training leaves in its folder, in a thread of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from mcrnn.models import trained_model
from mcrnn.tracking.provenance import system_metrics
from mcrnn.tracking.run_folder import METRICS_FILE, MODEL_FOLDER
from mcrnn.training.checkpoints import serialize
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import OBJECTIVE, Metrics, State, evaluated_weights


class RunRecorder:
    """Rank 0's record of a job in its folder, written while training goes on."""

    def __init__(self, job: TrainingRun, on_recorded: Callable[[], None] | None = None) -> None:
        self.job, self._on_recorded = job, on_recorded or (lambda: None)
        job.write_record()
        self._writer = ThreadPoolExecutor(1, "recorder")
        self._writing: Future[None] | None = None

    def record(self, metrics: Metrics | None, state: State) -> None:
        """Begin to keep the state, the model where it is the best so far, and the metrics.

        Raises:
            UserError: what was recorded before could not be written.
        """
        best = None
        if metrics is not None:
            metrics |= {"time": time.time(), **system_metrics()}  # of the history, too
        if metrics is not None and metrics[OBJECTIVE] == metrics["best"] and not metrics["diverged"]:
            best = {name: weight.cpu().clone() for name, weight in evaluated_weights(state).items()}
        content = serialize(
            state | {"store_digest": self.job.field.store_digest, "configuration": self.job.config.model_dump()}
        )
        self.wait()
        self._writing = self._writer.submit(self._write, metrics, state["history"], content, best, _place(state))

    def wait(self) -> None:
        """Until all is written.

        Raises:
            UserError: it could not be written.
        """
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """The same, at the end."""
        self._writer.shutdown()
        self.wait()

    def _write(
        self,
        metrics: Metrics | None,
        history: list[Metrics],
        content: bytes,
        best: dict[str, torch.Tensor] | None,
        place: dict[str, int],
    ) -> None:
        job = self.job
        if best is not None:
            trained_model.save(job.folder.child(MODEL_FOLDER), job.config, job.field, best)
        job.checkpoints.save(content, **place)
        if metrics is not None:
            lines = "".join(f"{json.dumps(epoch)}\n" for epoch in history)
            job.folder.write(METRICS_FILE, lines.encode())
            self._on_recorded()


def _place(state: State) -> dict[str, int]:
    return {"epoch": state["epoch"], "batch": state["batch"]}
