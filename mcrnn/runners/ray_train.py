"""A data-parallel training on the workers of Ray Train."""

from __future__ import annotations

import gc
import os
import tempfile
from typing import Any

import torch

from mcrnn.device import choose_device
from mcrnn.errors import NotEnoughMemoryError, UserError
from mcrnn.runners.session import RunSession
from mcrnn.runners.stop_flag import StopPoll
from mcrnn.storage.retry import enable_retries
from mcrnn.training.checkpoints import deserialize
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import Metrics, Request, State

SECONDS_BETWEEN_POLLS = {"alone": "2.0", "in Tune": "0.1"}
"""Time between two polls of Ray Train's controller. A poll slows every worker, but reports arrive only with a poll, and
Tune needs them."""


class TrainSession(RunSession):
    """The session of one worker of Ray Train.

    Args:
        run: what to train.
        stop: handle of a `StopFlag`, or None.
        reports: whether to report to Ray, as Tune needs it; the files of the run have all that others need.
    """

    def __init__(self, run: TrainingRun, stop: Any = None, *, reports: bool = False) -> None:
        import ray.train

        self.reports = reports
        context = ray.train.get_context()
        super().__init__(run, context.get_world_rank(), context.get_world_size())
        self._stop_poll = StopPoll(stop if self.rank == 0 else None, run.run_name)

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Record on rank 0, and report on every rank, because Ray Train waits for all of them."""
        import ray.train

        super().report(metrics, checkpoint)
        if metrics is not None and self.reports:
            ray.train.report(metrics | self.constants)

    def load_checkpoint(self) -> State | None:
        """Return the newest state that rank 0 finds; it is sent to the other ranks, so that all start from the same."""
        import torch.distributed as dist

        content = [self.run.load_checkpoint(self.warn) if self.rank == 0 else None]
        if self.world_size > 1:
            group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
            dist.broadcast_object_list(content, group=group)
        return None if content[0] is None else deserialize(content[0])

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Request a stop if the driver asks rank 0 for one."""
        self.stop_requested = self.stop_requested or self._stop_poll()
        return super().advance(epoch, batch, batches)


def _on_train_worker(loop_config: dict[str, Any]) -> None:
    """Train on one worker; Ray Train calls this on every one."""
    import ray
    import ray.train.torch

    torch.set_num_threads(1)
    enable_retries()
    run: TrainingRun = loop_config["run"]
    if run.folder.read_end() is not None:
        return  # a worker has run out of memory, and would do so again when Ray Train starts it anew
    data = ray.get(loop_config["data"])
    session = TrainSession(run, loop_config["stop"], reports=loop_config["reports"])
    # Ray names the GPU that it has assigned, also on a machine where PyTorch finds none
    cuda = torch.cuda.is_available()
    session.train(
        data, ray.train.torch.get_device() if cuda else choose_device(run.config.train.device, "train.device")
    )
    # Ray Train now destroys the process group. Were the data-parallel model, which is part of a reference cycle, the
    # last to hold it, PyTorch would wait for the group's threads in a destructor that keeps them from running.
    gc.collect()


def run_distributed(run: TrainingRun, data: Any, *, gpus: float = 0, stop: Any = None, callbacks: Any = None) -> None:
    """Train on `run.config.train.workers` data-parallel workers of Ray Train.

    Lost workers and nodes are replaced up to `train.max_failures` times, and training goes on from the newest
    checkpoint.

    Args:
        run: what to train.
        data: reference to a `FieldData` in Ray's object store, of which each node keeps one copy.
        gpus: GPUs for each worker; a fraction shares one.
        stop: handle of a `StopFlag`, or None.
        callbacks: callbacks of Ray Train, such as the one that hands reports on to Tune.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from mcrnn.runners.process_group import ProcessGroupConfig

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = SECONDS_BETWEEN_POLLS["in Tune" if callbacks else "alone"]
    train = run.config.train
    use_gpu = gpus > 0
    # Ray Train needs a folder on the machine of its controller, this one; all that we keep is in the run's own folder
    with tempfile.TemporaryDirectory(prefix="mcrnn-train-") as unused:
        trainer = TorchTrainer(
            _on_train_worker,
            train_loop_config={"run": run, "data": data, "stop": stop, "reports": callbacks is not None},
            torch_config=ProcessGroupConfig(backend="nccl" if use_gpu else "gloo"),
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


def root_cause(run: TrainingRun, error: BaseException) -> BaseException:
    """Find in an error of Ray Train the one that a worker raised.

    Returns:
        NotEnoughMemoryError or another UserError where a user can mend what is wrong, anything else as it is.
    """
    ended = run.folder.read_end()
    if ended is not None:
        return NotEnoughMemoryError(ended.message)
    for each in [*getattr(error, "worker_failures", {}).values(), error]:
        inner: BaseException | None = each
        while inner is not None and not isinstance(inner, UserError):
            inner = inner.__cause__ or getattr(inner, "cause", None)
        if inner is not None:
            # Ray raises a class of its own that is also the worker's; the first of ours in it is the worker's.
            return next(kind for kind in type(inner).__mro__ if kind.__module__.startswith("mcrnn."))(str(inner))
    return error
