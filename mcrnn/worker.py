"""What runs on a worker: the training loop with its checkpoints, its MLflow run and its reports.

The same loop runs in three places, which differ in their session only: alone in a process, in a Tune trial,
on the workers of Ray Train. Rank 0 records; the others train.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mcrnn import model_directory
from mcrnn.config import Configuration
from mcrnn.model_directory import FieldDescription
from mcrnn.models import summary
from mcrnn.storage import write_atomically
from mcrnn.tracking import Run, Tracker
from mcrnn.training import OBJECTIVE, Metrics, fit
from mcrnn.windows import FieldData

STATE = "state.pt"
MODEL_FOLDER = "model"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Job:
    """One training, wherever it runs: plain data, so that it can be sent to workers."""

    config: Configuration
    field: FieldDescription
    folder: Path
    """for its checkpoints, its model and its record"""
    tracker: Tracker
    run_name: str
    parent_run: str | None = None
    tags: tuple[tuple[str, str], ...] = ()


class Recorder:
    """Rank 0's record of a job: files in its folder, metrics in its MLflow run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        job.folder.mkdir(parents=True, exist_ok=True)
        run_file = job.folder / RUN_FILE
        if run_file.exists():
            self.run = Run(job.tracker, json.loads(run_file.read_bytes())["run_id"])
        else:
            self.run = job.tracker.start(job.run_name, parent=job.parent_run, tags=dict(job.tags))
            self.run.log_configuration(job.config, summary(job.config.model, job.field.frame_shape))
            write_atomically(run_file, json.dumps({"run_id": self.run.run_id}).encode())

    def record(self, metrics: Metrics, state: dict[str, Any]) -> None:
        """Keep the state, the model where it is the best so far, and the metrics."""
        folder = self.job.folder
        if metrics[OBJECTIVE] == metrics["best"] and state["best_model"]:
            model_directory.save(folder / MODEL_FOLDER, self.job.config, self.job.field, state["best_model"])
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(folder / STATE, buffer.getvalue())
        with (folder / METRICS_FILE).open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        self.run.log_metrics(metrics, step=int(metrics["epoch"]))


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state that a job left in its folder, None where there is none."""
    path = folder / STATE
    return torch.load(path, weights_only=True) if path.exists() else None


class TuneSession:
    """A one-worker trial: a plain Tune function on a reused actor."""

    rank = 0
    world_size = 1

    def __init__(self, job: Job) -> None:
        self.job = job
        self.recorder = Recorder(job)

    def report(self, metrics: Metrics, checkpoint: dict[str, Any]) -> None:
        from ray import tune

        self.recorder.record(metrics, checkpoint)
        tune.report(dict(metrics))

    def load_checkpoint(self) -> dict[str, Any] | None:
        return load_state(self.job.folder)


class TrainSession:
    """One of the workers of a Ray Train run."""

    def __init__(self, job: Job) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.job = job
        self.recorder = Recorder(job) if self.rank == 0 else None

    def report(self, metrics: Metrics, checkpoint: dict[str, Any]) -> None:
        import ray.train

        if self.recorder:
            self.recorder.record(metrics, checkpoint)
        ray.train.report(dict(metrics))

    def load_checkpoint(self) -> dict[str, Any] | None:
        return load_state(self.job.folder)


def _on_train_worker(loop_config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    import ray

    torch.set_num_threads(1)
    job: Job = loop_config["job"]
    fit(job.config, ray.get(loop_config["data"]), TrainSession(job))


def run_distributed(job: Job, data: Any, callbacks: list[Any] | None = None) -> None:
    """Train on `job.config.train.workers` data-parallel workers of Ray Train.

    Args:
        job: what to train.
        data: a `FieldData` in Ray's object store (an object reference).
        callbacks: of Ray Train, such as the one that hands reports on to Tune.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _on_train_worker,
        train_loop_config={"job": job, "data": data},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=job.config.train.workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="train",
            storage_path=str(job.folder),
            callbacks=callbacks,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
    )
    trainer.fit()


def run_in_tune(job: Job, data: FieldData) -> None:
    """A one-worker trial, inside a Tune actor."""
    torch.set_num_threads(1)
    fit(job.config, data, TuneSession(job))
