"""What runs on a worker: the training loop, how it records, reports and hears that it is to stop.

The same loop runs in three places, which differ in their session only: in this process, in a Tune trial, on the
workers of Ray Train. Rank 0 records; the others train.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from mcrnn.config.sections import TrainConfig
from mcrnn.data.splits import FieldData
from mcrnn.device import device_for
from mcrnn.errors import NotEnoughMemoryError, UserError
from mcrnn.models import summary
from mcrnn.storage.retry import be_patient
from mcrnn.tracking.run_folder import END_FILE, read_json
from mcrnn.training.checkpoints import unpacked
from mcrnn.training.recorder import Recorder
from mcrnn.training.run import Job
from mcrnn.training.session import End, Metrics, Request, State
from mcrnn.training.trainer import fit

SECONDS_BETWEEN_QUESTIONS = 1.0
"""of a worker to its driver, whether to stop"""
SECONDS_BETWEEN_POLLS = {"alone": "2.0", "in Tune": "0.1"}
"""of Ray Train's controller to its workers: each takes time from all of them, and a report waits for one"""


class RunSession:
    """The session of a job in this process."""

    def __init__(
        self,
        job: Job,
        rank: int = 0,
        world_size: int = 1,
        on_epoch: Callable[[Metrics], None] | None = None,
        on_step: Callable[[int, int, int], None] | None = None,
        on_recorded: Callable[[], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.job, self.rank, self.world_size = job, rank, world_size
        self.on_epoch, self.on_step, self.warn = on_epoch, on_step, warn or (lambda _: None)
        self.recorder = Recorder(job, on_recorded) if rank == 0 else None
        self.stop_requested = False
        self.last_checkpoint = time.monotonic()
        costs = summary(job.config.model, job.field.frame_shape)
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
        return None if content is None else unpacked(content)

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


class _Asking:
    """Asks a `StopFlag` now and then, without waiting for its answer."""

    def __init__(self, flag: Any, name: str) -> None:
        self._flag, self._name, self._asked, self._answer = flag, name, 0.0, None

    def __call__(self) -> bool:
        import ray

        if self._flag is None:
            return False
        if self._answer is None and time.monotonic() - self._asked > SECONDS_BETWEEN_QUESTIONS:
            self._asked, self._answer = time.monotonic(), self._flag.requested.remote(self._name)
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        requested, self._answer = ray.get(self._answer), None
        return requested


class TuneSession(RunSession):
    """A one-worker trial: a plain Tune function on a reused actor."""

    def __init__(self, job: Job, stop: Any) -> None:
        super().__init__(job)
        self._stop_asked = _Asking(stop, job.run_name)

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


class TrainSession(RunSession):
    """One of the workers of a Ray Train run.

    Args:
        job: what it trains.
        stop: a handle of a `StopFlag`.
        reports: whether to report to Ray, for Tune; the run's own files have all that others need.
    """

    def __init__(self, job: Job, stop: Any = None, *, reports: bool = False) -> None:
        import ray.train

        self.reports = reports

        context = ray.train.get_context()
        super().__init__(job, context.get_world_rank(), context.get_world_size())
        self._stop_asked = _Asking(stop if self.rank == 0 else None, job.run_name)

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
        return None if content[0] is None else unpacked(content[0])

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Ask the driver whether to stop, on rank 0."""
        self.stop_requested = self.stop_requested or self._stop_asked()
        return super().advance(epoch, batch, batches)


class StopFlag:
    """A Ray actor through which the driver asks its workers to stop: all of them, or those of one training."""

    def __init__(self) -> None:
        self._requested = False
        self._ended: dict[str, int] = {}

    def request(self) -> None:
        """Stop all; they go on when the command is given again."""
        self._requested = True

    def end(self, name: str, epoch: int) -> None:
        """Stop a training for good, by what it was after an epoch."""
        self._ended[name] = epoch

    def requested(self, name: str) -> bool:
        """Whether a training is to stop."""
        return self._requested or name in self._ended

    def ended_at(self, name: str) -> int | None:
        """The epoch by which a training was ended, None where it was not."""
        return self._ended.get(name)


def new_stop_flag() -> Any:
    """A `StopFlag` on the node of this process, so that it is lost only with the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(StopFlag).remote()  # type: ignore[call-overload]


def gpus_for(train: TrainConfig, in_cluster: float, each: float | None = None) -> float:
    """GPUs for each worker: as given, else one where there are enough for all.

    Raises:
        UserError: GPUs are asked for and there are too few.
    """
    if train.device == "cpu":
        return 0.0
    wanted = 1.0 if each is None else each
    if wanted * train.workers <= in_cluster:
        return wanted
    if each or train.device == "cuda":
        raise UserError(f"{train.workers} workers need {wanted * train.workers:g} GPUs, the cluster has {in_cluster:g}")
    return 0.0


def _on_train_worker(loop_config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    import ray
    import ray.train.torch

    torch.set_num_threads(1)
    be_patient()
    job: Job = loop_config["job"]
    if read_json(job.folder, END_FILE) is not None:
        return  # a worker ran out of memory, and would again
    data = ray.get(loop_config["data"])
    session = TrainSession(job, loop_config["stop"], reports=loop_config["reports"])
    session.train(data, ray.train.torch.get_device())


def run_distributed(job: Job, data: Any, *, gpus: float = 0, stop: Any = None, callbacks: Any = None) -> None:
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


def explained(job: Job, error: BaseException) -> BaseException:
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


def run_in_tune(job: Job, data: FieldData, stop: Any = None) -> End:
    """A one-worker trial, inside a Tune actor."""
    torch.set_num_threads(1)
    return TuneSession(job, stop).train(data, device_for(job.config.train))
