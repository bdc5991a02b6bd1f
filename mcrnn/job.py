"""One training as plain data, and what it leaves in its folder: checkpoints, the best model, metrics, how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch

from mcrnn.checkpoints import Checkpoints, packed, unpacked
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.errors import UserError
from mcrnn.models import summary, trained_model
from mcrnn.storage.location import Location
from mcrnn.tracking.provenance import hardware, load
from mcrnn.tracking.run_folder import (
    CHECKPOINT_FOLDER,
    CONFIGURATION_FILE,
    END_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    write_record,
)
from mcrnn.training import OBJECTIVE, End, Metrics, State, judged_weights


@dataclass(frozen=True)
class Job:
    """One training, wherever it runs: plain data, so that it can be sent to workers."""

    config: Configuration
    field: FieldDescription
    folder: Location
    """for its checkpoints, its model and its record"""
    run_name: str
    tags: tuple[tuple[str, str], ...] = ()

    @property
    def checkpoints(self) -> Checkpoints:
        """Those of this training."""
        return Checkpoints(self.folder.child(CHECKPOINT_FOLDER))

    def load_checkpoint(self, warn: Callable[[str], None]) -> bytes | None:
        """The newest packed state.

        Raises:
            UserError: it belongs to another store.
        """
        content = self.checkpoints.load(warn)
        if content is not None and (digest := unpacked(content)["store_digest"]) != self.field.store_digest:
            raise UserError(
                f"the store has changed since the checkpoint in '{self.folder.url}': its digest is "
                f"{self.field.store_digest}, the checkpoint's {digest}. Start a new run beside it with --new"
            )
        return content

    def write_record(self) -> None:
        """Write down what is trained, on what and where, for its run in MLflow."""
        config, field = self.config, self.field
        machine = hardware()
        size = asdict(summary(config.model, field.frame_shape))
        tags = {
            "mcrnn.machine": f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gb']:g} GB",
            "mcrnn.gpus": ", ".join(machine["gpus"]) or "none",
            "mcrnn.store_digest": field.store_digest,
        }
        dataset = {
            "name": config.data.store,
            "source": field.store or config.data.store,
            "digest": field.store_digest,
            "recipe": field.recipe,
            "schema": {"variable": field.variable, "units": field.units, "channels": field.channels},
        }
        write_record(
            self.folder,
            self.run_name,
            tags=dict(self.tags) | tags,
            params=config.model_dump() | {"size": size},
            files={CONFIGURATION_FILE: config.model_dump(), "machine.json": machine},
            dataset=dataset,
        )

    def finish(self, end: End, message: str = "") -> None:
        """Write down how it ended, unless it goes on."""
        if end != End.INTERRUPTED:
            self.folder.write(END_FILE, json.dumps({"end": end, "message": message}).encode())


class Recorder:
    """Rank 0's record of a job in its folder, written while training goes on."""

    def __init__(self, job: Job, on_recorded: Callable[[], None] | None = None) -> None:
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
            metrics |= {"time": time.time(), **load()}  # of the history, too
        if metrics is not None and metrics[OBJECTIVE] == metrics["best"] and not metrics["diverged"]:
            best = {name: weight.cpu().clone() for name, weight in judged_weights(state).items()}
        content = packed(
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
