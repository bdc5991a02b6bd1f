"""A data-parallel training on the workers of Ray Train."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch

from mcrnn.errors import NotEnoughMemoryError, UserError
from mcrnn.runners.session import RunSession
from mcrnn.runners.stop_flag import StopPoll
from mcrnn.storage.retry import enable_retries
from mcrnn.tracking.run_folder import END_FILE, read_json
from mcrnn.training.checkpoints import deserialize
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import Metrics, Request, State

SECONDS_BETWEEN_POLLS = {"alone": "2.0", "in Tune": "0.1"}
"""of Ray Train's controller to its workers: each takes time from all of them, and a report waits for one"""


class TrainSession(RunSession):
    """One of the workers of a Ray Train run.

    Args:
        job: what it trains.
        stop: a handle of a `StopFlag`.
        reports: whether to report to Ray, for Tune; the run's own files have all that others need.
    """

    def __init__(self, job: TrainingRun, stop: Any = None, *, reports: bool = False) -> None:
        import ray.train

        self.reports = reports

        context = ray.train.get_context()
        super().__init__(job, context.get_world_rank(), context.get_world_size())
        self._stop_asked = StopPoll(stop if self.rank == 0 else None, job.run_name)

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Record on rank 0 and report on all."""
        import ray.train

        super().report(metrics, checkpoint)
        if metrics is not None and self.reports:
            ray.train.report(metrics | self.known)

    def load_checkpoint(self) -> State | None:
        """The newest that rank 0 finds, so that all ranks start from the same."""
        import torch.distributed as dist

        content = [self.job.load_checkpoint(self.warn) if self.rank == 0 else None]
        if self.world_size > 1:
            group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
            dist.broadcast_object_list(content, group=group)
        return None if content[0] is None else deserialize(content[0])

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Ask the driver whether to stop, on rank 0."""
        self.stop_requested = self.stop_requested or self._stop_asked()
        return super().advance(epoch, batch, batches)


def _on_train_worker(loop_config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    import ray
    import ray.train.torch

    torch.set_num_threads(1)
    enable_retries()
    job: TrainingRun = loop_config["job"]
    if read_json(job.folder, END_FILE) is not None:
        return  # a worker ran out of memory, and would again
    data = ray.get(loop_config["data"])
    session = TrainSession(job, loop_config["stop"], reports=loop_config["reports"])
    session.train(data, ray.train.torch.get_device())


def run_distributed(job: TrainingRun, data: Any, *, gpus: float = 0, stop: Any = None, callbacks: Any = None) -> None:
    """Train on `job.config.train.workers` data-parallel workers of Ray Train.

    Lost workers and nodes are replaced as often as the configuration says, and training goes on from the newest
    checkpoint.

    Args:
        job: what to train.
        data: a `FieldData` in Ray's object store (an object reference), of which a node has one copy.
        gpus: for each worker, or a part of one.
        stop: a handle of a `StopFlag`.
        callbacks: of Ray Train, such as the one that hands reports on to Tune.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = SECONDS_BETWEEN_POLLS["in Tune" if callbacks else "alone"]
    train = job.config.train
    use_gpu = gpus > 0
    # which Ray Train asks for, on the machine of its controller, this one; all that is kept is in the job's folder
    with tempfile.TemporaryDirectory(prefix="mcrnn-train-") as unused:
        trainer = TorchTrainer(
            _on_train_worker,
            train_loop_config={"job": job, "data": data, "stop": stop, "reports": callbacks is not None},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=train.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": 1, **({"GPU": gpus} if use_gpu else {})},
            ),
            run_config=RunConfig(
                name="train",
                storage_path=unused,
                callbacks=callbacks,
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=train.max_failures, controller_failure_limit=0
                ),
            ),
        )
        trainer.fit()


def root_cause(job: TrainingRun, error: BaseException) -> BaseException:
    """The error of a training on Ray Train: what a user can mend as such, anything else as it is."""
    ended = read_json(job.folder, END_FILE)
    if ended is not None:
        return NotEnoughMemoryError(ended["message"])
    for each in [*getattr(error, "worker_failures", {}).values(), error]:
        inner: BaseException | None = each
        while inner is not None and not isinstance(inner, UserError):
            inner = inner.__cause__ or getattr(inner, "cause", None)
        if inner is not None:
            return UserError(str(inner))
    return error
