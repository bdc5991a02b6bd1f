"""A single training: in this process, or on the data-parallel workers of Ray Train."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from mcrnn.config.sections import Configuration
from mcrnn.console import Bar
from mcrnn.data.checks import check_store_serves
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.device import choose_device
from mcrnn.errors import UserError
from mcrnn.models import model_cost, with_resolved_sizes
from mcrnn.runners.cluster_size import gpus_for
from mcrnn.runners.ray_cluster import check_reach, connected
from mcrnn.runners.ray_train import root_cause, run_distributed
from mcrnn.runners.session import RunSession
from mcrnn.runners.signals import on_stop
from mcrnn.runners.stop_flag import new_stop_flag
from mcrnn.runners.stop_requests import StopRequests
from mcrnn.storage.lease import Lease
from mcrnn.storage.presence import Presence
from mcrnn.storage.retry import print_warning, retries_enabled
from mcrnn.storage.root import Storage
from mcrnn.tracking.experiment import Tracker
from mcrnn.tracking.run_folder import LEASE_FILE, RunFolder, free_name
from mcrnn.tracking.sync import RunSync, is_synced
from mcrnn.training.graphed_step import SEVERAL_WORKERS, unused
from mcrnn.training.run import TrainingRun, mlflow_status
from mcrnn.training.session import OBJECTIVE, End, Metrics

MAY_CHANGE = (
    "train.workers",
    "train.micro_batch",
    "train.max_failures",
    "train.checkpoint_minutes",
    "train.device",
    "train.cuda_graph",
)
"""Fields of the configuration that may differ when a run is continued, because they do not change what is trained."""
EXPERIMENT = "mcrnn-runs"
"""Experiment of single trainings in MLflow."""
SECONDS_BETWEEN_POLLS = 0.5
"""Time between two looks for new epochs of workers."""


def run(
    config: Configuration,
    storage: Storage,
    *,
    new: bool,
    digest: str | None = None,
    facts: dict[str, Any] | None = None,
    target: int | None = None,
) -> RunFolder:
    """Train, or continue a run of that name, and print its result; a run that diverged ends the command.

    The arguments, the result and the errors are those of `complete`.
    """
    console = Console()
    folder = complete(config, storage, console, new=new, digest=digest, facts=facts, target=target)
    history, ended = folder.read_metrics(), folder.read_end()
    if ended is not None and ended.end == End.DIVERGED:
        print(
            f"{folder.name} diverged in epoch {history[-1]['epoch']:.0f}: its gradients were not finite for several "
            "steps in a row. Try a smaller train.learning_rate or train.gradient_clip, in a new run beside it with "
            "--new",
            file=sys.stderr,
        )
        sys.exit(1)
    stopped = ended is not None and ended.end == End.STOPPED_EARLY
    early = f", stopped early after {len(history)} epochs" if stopped else ""
    console.print(
        f"{folder.name}: best closed-loop RMSE {history[-1]['best']:.4f} of the training split's standard "
        f"deviation{early}; the model is in {storage.show(folder.model)}",
        highlight=False,
        soft_wrap=True,
    )
    return folder


def complete(
    config: Configuration,
    storage: Storage,
    console: Console,
    *,
    new: bool,
    digest: str | None = None,
    facts: dict[str, Any] | None = None,
    target: int | None = None,
    data: FieldData | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> RunFolder:
    """Train, continue a run of that name, or send to MLflow what it lacks of a run that has ended.

    Meanwhile this process has the lease of the run's folder, so that no other one trains the run.

    Args:
        config: what to train.
        storage: the storage root.
        console: takes the lines about each epoch.
        new: True to start a new run beside one of the same name.
        digest: digest that the store must have, where an earlier run is repeated.
        facts: what `python -m mcrnn.status` is to know of this process, such as which file it has read; JSON.
        target: epoch after which the training is paused; None to train to the end.
        data: the splits of the store, where they have been loaded.
        on_start: called when this process has the run, before it is trained; not for a run that has ended.

    Returns:
        The folder of the run, which has ended, or has reached the target.

    Raises:
        HeldError: another process trains the run, or has taken it over because this one was suspended for too long.
        UserError: the store cannot be used, its samples are too short, the folder holds another run, or memory was not
            enough.
        KeyboardInterrupt: a stop was asked for, and a checkpoint has been written.
    """
    if config.train.workers > 1:
        check_reach(storage.location("runs"))
    runs = storage.location("runs")
    name = free_name(runs, config.name, new=new)
    folder = RunFolder(runs.child(name))
    started_with = (folder.read_configuration() or {}).get("store_digest")
    store = FieldStore.open(storage.location(config.data.store)).as_of(digest or started_with)
    if digest is not None and store.digest != digest:
        raise UserError(
            f"{name} is a training on a store with digest {digest[:12]}, and '{store.name}' has {store.digest[:12]}: "
            "build the store anew with its old parameters; those of a run are in its dataset in MLflow"
        )
    check_store_serves(store, config)
    field = FieldDescription.of(store, config.data)
    config = with_resolved_sizes(config, field.frame_shape, len(field.inputs))
    with Lease(folder.location, LEASE_FILE, "training") as lease:
        folder.claim({**config.model_dump(), "store_digest": store.digest}, MAY_CHANGE)
        ended = folder.read_end()
        if ended is None or ended.end == End.OUT_OF_MEMORY:
            folder.delete_end()
            on_start()
            sync = RunSync(Tracker.open(storage, EXPERIMENT))
            tags = (("mcrnn.kind", "run"),)
            training_run = TrainingRun(config, field, folder, run_name=name, tags=tags, target=target)
            console.print(
                f"run {name}: {config.train.epochs} epochs, in {storage.show(folder.location)}",
                highlight=False,
                soft_wrap=True,
            )
            costs = model_cost(config.model, field.frame_shape)
            console.print(f"{config.model.architecture}: {costs}", highlight=False, soft_wrap=True)
            _train(training_run, data or FieldData.load(store, config.data), console, sync, facts or {}, lease)
            ended = folder.read_end()
        elif not is_synced(folder):  # MLflow was away when the training ended
            sync = RunSync(Tracker.open(storage, EXPERIMENT))
            sync.update(folder, mlflow_status(End(ended.end)))
            sync.wait()
            sync.close()
    if ended is None and (target is None or len(folder.read_metrics()) < target):
        raise KeyboardInterrupt
    return folder


def _train(
    run: TrainingRun, data: FieldData, console: Console, sync: RunSync, facts: dict[str, Any], lease: Lease
) -> None:
    display = RunDisplay(run, console, sync, lease)
    requests = StopRequests(run.run_name, lambda line: display.bar.print(line, console))
    presence = Presence(run.folder.location, facts, requests.hear, lambda: not lease.lost)
    display.presence = presence
    status = "FAILED"
    try:
        with presence, display.bar:
            with retries_enabled():
                if run.config.train.workers == 1:
                    _train_here(run, data, display, requests)
                else:
                    _train_on_workers(run, data, display, requests)
                lease.check()
                ended = run.folder.read_end()
            presence.end("interrupted" if ended is None else "finished")
        status = mlflow_status(End(ended.end) if ended else End.INTERRUPTED)
        sync.update(run.folder, status)
        if ended:
            sync.wait()
    finally:
        if not lease.lost:  # else the run in MLflow is that of another process
            sync.update(run.folder, status)
        sync.close()


def _train_here(run: TrainingRun, data: FieldData, display: RunDisplay, requests: StopRequests) -> None:
    def stop() -> None:
        session.stop_requested = True

    session = RunSession(
        run, on_epoch=display.epoch, on_step=display.step, on_recorded=display.recorded, warn=display.warn
    )
    with requests.handled_by(stop), on_stop(stop):
        session.train(data, choose_device(run.config.train.device, "train.device"))


def _train_on_workers(run: TrainingRun, data: FieldData, display: RunDisplay, requests: StopRequests) -> None:
    import ray

    workers = run.config.train.workers
    if run.config.train.cuda_graph:  # the workers print nothing
        display.warn(unused(SEVERAL_WORKERS))
    run.load_checkpoint(display.warn)  # a checkpoint of another store is refused here, before Ray starts workers
    with connected() as cluster, ExitStack() as until_end:
        if workers > cluster.cpus:
            raise UserError(f"train.workers {workers} needs as many CPUs, there are {cluster.cpus}")
        gpus = gpus_for(run.config.train, cluster)
        flag = new_stop_flag()
        failure: list[BaseException] = []

        def drive() -> None:
            try:
                run_distributed(run, reference, gpus=gpus, stop=flag)
            except BaseException as error:
                failure.append(error)

        reference = ray.put(data)
        until_end.enter_context(requests.handled_by(lambda: flag.request.remote()))
        until_end.enter_context(on_stop(lambda: flag.request.remote()))
        # in a thread, because in the main thread Ray would handle the signals itself
        driver = threading.Thread(target=drive, daemon=True)
        driver.start()
        seen = len(run.folder.read_metrics())
        running = True
        while running:
            driver.join(SECONDS_BETWEEN_POLLS)
            running = driver.is_alive()
            if display.lease.lost:
                flag.request.remote()
            history = run.folder.read_metrics()
            for metrics in history[seen:]:
                display.epoch(metrics)
                display.recorded()
            seen = max(seen, len(history))
        if failure:
            raise root_cause(run, failure[0])


class RunDisplay:
    """Shows a training on the terminal, a line an epoch and a bar below them, and sends its epochs to MLflow.

    Args:
        run: the training.
        console: takes the lines.
        sync: takes the run's folder whenever an epoch has been recorded there.
        lease: the lease of the run's folder.
    """

    def __init__(self, run: TrainingRun, console: Console, sync: RunSync, lease: Lease) -> None:
        self.run, self.sync, self.lease = run, sync, lease
        self.console, self.epochs = console, run.config.train.epochs
        self.bar = Bar("epoch 1", self.epochs, "epochs")
        self.seconds: list[float] = []
        """How long each epoch took that this command has trained."""
        self.presence: Presence | None = None
        """Gets to know how far the training is."""

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """Show that a step is done.

        Raises:
            HeldError: another process has taken the run over, and nothing more may be written.
        """
        self.lease.check()
        self.bar.show(f"epoch {epoch}", epoch - 1 + batch / batches)

    def epoch(self, metrics: Metrics) -> None:
        """Show the metrics of an epoch and the time left."""
        epoch = int(metrics["epoch"])
        self.seconds.append(metrics.get("seconds", 0.0))
        self.bar.show(f"epoch {epoch}", epoch)
        if self.presence is not None:
            hours = sum(self.seconds) / 3600 / len(self.seconds) * epoch
            self.presence.progress = {"done": epoch, "budget": self.epochs, "best": metrics["best"], "hours": hours}
        left = sum(self.seconds) / len(self.seconds) * (self.epochs - epoch)
        self.bar.print(_line(metrics, self.epochs, left), self.console)

    def recorded(self) -> None:
        """Send what has been recorded to MLflow."""
        if not self.lease.lost:
            self.sync.update(self.run.folder, "RUNNING")

    def warn(self, text: str) -> None:
        """Print a warning."""
        print_warning(text)


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
