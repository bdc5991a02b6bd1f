"""A single training: in this process, or on the data-parallel workers of Ray Train."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from mcrnn import folders
from mcrnn.config import Configuration
from mcrnn.errors import UserError
from mcrnn.fields import FieldStore
from mcrnn.model_directory import FieldDescription
from mcrnn.models import summary
from mcrnn.storage import Storage
from mcrnn.tracking import Run, Tracker
from mcrnn.training import OBJECTIVE, Alone, Metrics, fit
from mcrnn.windows import FieldData, check_exam
from mcrnn.worker import METRICS_FILE, MODEL_FOLDER, RUN_FILE, Job, Recorder, load_state, run_distributed


def run(config: Configuration, storage: Storage, *, new: bool) -> None:
    """Train, or continue a run of that name, and print the end of it.

    Raises:
        UserError: the store cannot be used, its samples are too short, or the folder holds another run.
    """
    console = Console()
    store = FieldStore.open(storage.location(config.data.store))
    check_exam(store, config)
    folder = folders.choose(storage.path("runs"), config.name, new=new)
    folders.claim(folder, {**config.model_dump(), "store_digest": store.digest}, budgets=("train.workers",))
    state = load_state(folder)
    if state is None or state["epoch"] < config.train.epochs:
        field = FieldDescription.of(store, config.data)
        job = Job(
            config=config,
            field=field,
            folder=folder,
            tracker=Tracker.open(storage, "mcrnn-runs"),
            run_name=folder.name,
            tags=(("mcrnn.kind", "run"),),
        )
        console.print(f"run {folder.name}: {config.train.epochs} epochs, in {storage.show(folder)}", highlight=False)
        costs = summary(config.model, field.frame_shape)
        console.print(f"{config.model.architecture}: {costs}", highlight=False, soft_wrap=True)
        _train(job, FieldData.load(store, config.data), console)
    best = min(json.loads(line)["best"] for line in (folder / METRICS_FILE).read_text().splitlines())
    console.print(
        f"{folder.name}: best closed-loop RMSE {best:.4f} of the training split's standard deviation; "
        f"the model is in {storage.show(folder / MODEL_FOLDER)}",
        highlight=False,
        soft_wrap=True,
    )


def _train(job: Job, data: FieldData, console: Console) -> None:
    status = "FAILED"
    try:
        if job.config.train.workers == 1:
            recorder = Recorder(job)

            def on_report(metrics: Metrics, state: dict[str, Any]) -> None:
                recorder.record(metrics, state)
                console.print(_line(metrics, job.config.train.epochs), highlight=False, soft_wrap=True)

            fit(job.config, data, Alone(on_report, load_state(job.folder)))
        else:
            import ray

            from mcrnn.cluster import connected

            with connected() as cpus:
                if job.config.train.workers > cpus:
                    raise UserError(f"train.workers {job.config.train.workers} needs as many CPUs, there are {cpus}")
                run_distributed(job, ray.put(data))
        status = "FINISHED"
    finally:
        if (job.folder / RUN_FILE).exists():
            Run(job.tracker, json.loads((job.folder / RUN_FILE).read_bytes())["run_id"]).end(status)


def _line(metrics: Metrics, epochs: int) -> str:
    if metrics["diverged"]:
        return f"epoch {metrics['epoch']:.0f}/{epochs}: diverged, the loss is not a number"
    return (
        f"epoch {metrics['epoch']:.0f}/{epochs}: loss {metrics['loss']:.5f}, "
        f"RMSE {metrics['rmse_teacher_forced']:.4f} teacher-forced, {metrics['rmse_closed_loop']:.4f} closed loop "
        f"({metrics[OBJECTIVE]:.4f} normalised), {metrics['frames_per_second']:.0f} frames/s"
    )
