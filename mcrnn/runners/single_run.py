"""A single training: in this process, or on the data-parallel workers of Ray Train."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack

from rich.console import Console

from mcrnn.config.sections import Configuration
from mcrnn.console import Bar
from mcrnn.data.checks import check_store_serves
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.device import choose_device
from mcrnn.errors import UserError
from mcrnn.models import model_cost, with_resolved_width
from mcrnn.runners.ray_cluster import gpus_for
from mcrnn.runners.ray_train import root_cause, run_distributed
from mcrnn.runners.session import RunSession
from mcrnn.runners.signals import on_stop
from mcrnn.runners.stop_flag import new_stop_flag
from mcrnn.storage.retry import retries_enabled
from mcrnn.storage.root import Storage
from mcrnn.tracking import run_folder
from mcrnn.tracking.mlflow_client import Tracker
from mcrnn.tracking.run_folder import END_FILE, MODEL_FOLDER, read_json, read_metrics
from mcrnn.tracking.sync import RunSync, is_synced
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import OBJECTIVE, End, Metrics

MAY_CHANGE = ("train.workers", "train.micro_batch", "train.max_failures", "train.checkpoint_minutes", "train.device")
"""when a run is continued: what changes nothing but how it is done"""
EXPERIMENT = "mcrnn-runs"
"""in MLflow"""
SECONDS_BETWEEN_LOOKS = 0.5
"""for new epochs of workers"""


def run(config: Configuration, storage: Storage, *, new: bool, digest: str | None = None) -> None:
    """Train, or continue a run of that name, and print the end of it.

    Args:
        config: what to train.
        storage: the root.
        new: begin a new run beside one of the same name.
        digest: that the store must have, where an earlier run is repeated.

    Raises:
        UserError: the store cannot be used, its samples are too short, or the folder holds another run; or memory
            was not enough.
        KeyboardInterrupt: a stop was asked for, and a checkpoint written.
    """
    console = Console()
    if config.train.workers > 1:
        from mcrnn.runners.ray_cluster import check_reach

        check_reach(storage.location("runs"))
    store = FieldStore.open(storage.location(config.data.store))
    if digest is not None and store.digest != digest:
        raise UserError(
            f"the run trained on a store with digest {digest[:12]}, '{store.name}' has {store.digest[:12]}: build the "
            "store anew with its old parameters; they are in the run's dataset in MLflow"
        )
    check_store_serves(store, config)
    frame_shape = FieldDescription.of(store, config.data).frame_shape
    config = with_resolved_width(config, frame_shape)
    runs = storage.location("runs")
    name = run_folder.free_name(runs, config.name, new=new)
    folder = runs.child(name)
    run_folder.claim_folder(folder, {**config.model_dump(), "store_digest": store.digest}, budgets=MAY_CHANGE)
    ended = read_json(folder, END_FILE)
    if ended is None or ended["end"] == End.OUT_OF_MEMORY:
        folder.delete(END_FILE)
        mirrors = RunSync(Tracker.open(storage, EXPERIMENT))
        field = FieldDescription.of(store, config.data)
        job = TrainingRun(config, field, folder, run_name=name, tags=(("mcrnn.kind", "run"),))
        console.print(
            f"run {name}: {config.train.epochs} epochs, in {storage.show(folder)}", highlight=False, soft_wrap=True
        )
        costs = model_cost(config.model, field.frame_shape)
        console.print(f"{config.model.architecture}: {costs}", highlight=False, soft_wrap=True)
        _train(job, FieldData.load(store, config.data), console, mirrors)
        ended = read_json(folder, END_FILE)
    elif not is_synced(folder):  # MLflow was away when it ended
        mirrors = RunSync(Tracker.open(storage, EXPERIMENT))
        mirrors.update(folder, "FINISHED")
        mirrors.wait()
        mirrors.close()
    if ended is None:
        raise KeyboardInterrupt
    history = read_metrics(folder)
    if ended["end"] == End.DIVERGED:
        print(
            f"{name} diverged in epoch {history[-1]['epoch']:.0f}: its gradients were not finite for several steps in "
            "a row. Try a smaller train.learning_rate or train.gradient_clip, in a new run beside it with --new",
            file=sys.stderr,
        )
        sys.exit(1)
    early = f", stopped early after {len(history)} epochs" if ended["end"] == End.STOPPED_EARLY else ""
    console.print(
        f"{name}: best closed-loop RMSE {history[-1]['best']:.4f} of the training split's standard deviation{early}; "
        f"the model is in {storage.show(folder.child(MODEL_FOLDER))}",
        highlight=False,
        soft_wrap=True,
    )


def _train(job: TrainingRun, data: FieldData, console: Console, mirrors: RunSync) -> None:
    shown = RunDisplay(job, console, mirrors)
    status = "FAILED"
    try:
        with retries_enabled(), shown.bar:
            if job.config.train.workers == 1:
                _train_here(job, data, shown)
            else:
                _train_on_workers(job, data, shown)
        status = "FINISHED" if read_json(job.folder, END_FILE) else "KILLED"
        mirrors.update(job.folder, status)
        if status == "FINISHED":
            mirrors.wait()
    finally:
        mirrors.update(job.folder, status)
        mirrors.close()


def _train_here(job: TrainingRun, data: FieldData, shown: RunDisplay) -> None:
    def stop() -> None:
        session.stop_requested = True

    session = RunSession(job, on_epoch=shown.epoch, on_step=shown.step, on_recorded=shown.recorded, warn=shown.warn)
    with on_stop(stop):
        session.train(data, choose_device(job.config.train.device, "train.device"))


def _train_on_workers(job: TrainingRun, data: FieldData, shown: RunDisplay) -> None:
    import ray

    from mcrnn.runners.ray_cluster import connected

    workers = job.config.train.workers
    job.load_checkpoint(shown.warn)  # refuses what the workers would fail on
    with connected() as resources, ExitStack() as until_end:
        if workers > resources.cpus:
            raise UserError(f"train.workers {workers} needs as many CPUs, there are {resources.cpus}")
        gpus = gpus_for(job.config.train, resources.gpus)
        flag = new_stop_flag()
        failure: list[BaseException] = []

        def drive() -> None:
            try:
                run_distributed(job, reference, gpus=gpus, stop=flag)
            except BaseException as error:
                failure.append(error)

        reference = ray.put(data)
        until_end.enter_context(on_stop(lambda: flag.request.remote()))
        # in a thread, for Ray would handle the signals itself
        driver = threading.Thread(target=drive, daemon=True)
        driver.start()
        seen = len(read_metrics(job.folder))
        running = True
        while running:
            driver.join(SECONDS_BETWEEN_LOOKS)
            running = driver.is_alive()
            history = read_metrics(job.folder)
            for metrics in history[seen:]:
                shown.epoch(metrics)
                shown.recorded()
            seen = max(seen, len(history))
        if failure:
            raise root_cause(job, failure[0])


class RunDisplay:
    """What a training shows: a line an epoch; in a terminal a bar below."""

    def __init__(self, job: TrainingRun, console: Console, mirrors: RunSync) -> None:
        self.job, self.mirrors = job, mirrors
        self.console, self.epochs = console, job.config.train.epochs
        self.bar = Bar("epoch 1", self.epochs, "epochs")
        self.seconds: list[float] = []
        """of the epochs seen"""

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """A step is done."""
        self.bar.show(f"epoch {epoch}", epoch - 1 + batch / batches)

    def epoch(self, metrics: Metrics) -> None:
        """An epoch is done."""
        epoch = int(metrics["epoch"])
        self.seconds.append(metrics.get("seconds", 0.0))
        self.bar.show(f"epoch {epoch}", epoch)
        left = sum(self.seconds) / len(self.seconds) * (self.epochs - epoch)
        self.bar.print(_line(metrics, self.epochs, left), self.console)

    def recorded(self) -> None:
        """An epoch is written down."""
        self.mirrors.update(self.job.folder, "RUNNING")

    def warn(self, text: str) -> None:
        """Say what is not as it should be."""
        print(f"warning: {text}", file=sys.stderr)


def _line(metrics: Metrics, epochs: int, seconds_left: float) -> str:
    line = f"epoch {metrics['epoch']:.0f}/{epochs}: "
    if metrics["diverged"]:
        return line + "diverged"
    skipped = f", {metrics['skipped_steps']:.0f} steps left out" if metrics["skipped_steps"] else ""
    minutes, seconds = divmod(round(seconds_left), 60)
    left = f", {minutes} min {seconds:02d} s left" if metrics["epoch"] < epochs else ""
    return line + (
        f"loss {metrics['loss']:.5f}, RMSE {metrics['rmse_teacher_forced']:.4f} teacher-forced, "
        f"{metrics['rmse_closed_loop']:.4f} closed loop ({metrics[OBJECTIVE]:.4f} normalised), "
        f"{metrics['frames_per_second']:.0f} frames/s{skipped}{left}"
    )
