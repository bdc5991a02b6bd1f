"""What runs on a worker: the training loop with its checkpoints, its record and its reports.

The same loop runs in three places, which differ in their session only: in this process, in a Tune trial, on the
workers of Ray Train. Rank 0 records; the others train.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mcrnn import model_directory, tracking
from mcrnn.checkpoints import Checkpoints, packed, unpacked
from mcrnn.config import Configuration, TrainConfig
from mcrnn.errors import NotEnoughMemoryError, UserError
from mcrnn.lineage import hardware, load
from mcrnn.model_directory import FieldDescription
from mcrnn.models import summary
from mcrnn.storage import Location
from mcrnn.tracking import METRICS_FILE
from mcrnn.training import OBJECTIVE, End, Metrics, Request, State, fit, judged_weights
from mcrnn.windows import FieldData

CHECKPOINT_FOLDER = "checkpoints"
MODEL_FOLDER = "model"
END_FILE = "end.json"
"""how the training ended, where it has: not after an interruption"""
SECONDS_BETWEEN_QUESTIONS = 1.0
"""of a worker to its driver, whether to stop"""
SECONDS_BETWEEN_POLLS = {"alone": "2.0", "in Tune": "0.1"}
"""of Ray Train's controller to its workers: each takes time from all of them, and a report waits for one"""


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
        tracking.write_record(
            self.folder,
            self.run_name,
            tags=dict(self.tags) | tags,
            params=config.model_dump() | {"size": size},
            files={tracking.CONFIGURATION_FILE: config.model_dump(), "machine.json": machine},
            dataset=dataset,
        )

    def finish(self, end: End, message: str = "") -> None:
        """Write down how it ended, unless it goes on."""
        if end != End.INTERRUPTED:
            self.folder.write(END_FILE, json.dumps({"end": end, "message": message}).encode())


def read_json(folder: Location, name: str) -> Any:
    """Content of a JSON file, None where there is none."""
    try:
        return json.loads(folder.read(name))
    except FileNotFoundError:
        return None


def read_metrics(folder: Location) -> list[Metrics]:
    """The metrics of a training's epochs so far."""
    try:
        return [json.loads(line) for line in folder.read(METRICS_FILE).splitlines()]
    except FileNotFoundError:
        return []


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
            model_directory.save(job.folder.child(MODEL_FOLDER), job.config, job.field, best)
        job.checkpoints.save(content, **place)
        if metrics is not None:
            lines = "".join(f"{json.dumps(epoch)}\n" for epoch in history)
            job.folder.write(METRICS_FILE, lines.encode())
            self._on_recorded()


def _place(state: State) -> dict[str, int]:
    return {"epoch": state["epoch"], "batch": state["batch"]}


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


def device_for(train: TrainConfig) -> torch.device:
    """The device that a configuration asks for, on this machine.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device is cuda, but PyTorch finds no GPU here; leave it out, or set it to cpu")
    return torch.device("cpu" if train.device == "cpu" or not torch.cuda.is_available() else "cuda")


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
            storage_path=job.folder.url,
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
