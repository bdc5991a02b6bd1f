"""What runs in the Tune actor of a trial, or of a training of the confirmation."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import traceback
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune

from mcrnn.config.paths import Values
from mcrnn.config.space import Search
from mcrnn.data.description import FieldDescription
from mcrnn.errors import IsolatedError, NotEnoughMemoryError, UserError, first_line
from mcrnn.models import with_resolved_sizes
from mcrnn.runners import mps
from mcrnn.runners.ray_train import root_cause, run_distributed
from mcrnn.runners.session import report_constants
from mcrnn.runners.tune_trial import run_in_tune
from mcrnn.search.packing import TrialShare
from mcrnn.search.trial_report import TrialFailedError, TrialReport
from mcrnn.storage.retry import enable_retries
from mcrnn.tracking.run_folder import RunFolder, SearchFolder
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import End


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a search have in common; plain data and handles of Ray, so that it can be sent to actors."""

    search: Search
    field: FieldDescription
    folder: SearchFolder
    data: Any
    """Reference to the `FieldData` in Ray's object store, so that all trials of a node share one copy."""
    share: TrialShare
    """What each trial is given of a machine."""
    concurrency: int
    """Trials at a time."""
    stop: Any
    """Handle of the search's `StopFlag`."""

    def training_run(
        self, name: str, kind: str, folder: RunFolder, values: Values, target: int | None = None
    ) -> TrainingRun:
        """Return the training of one trial.

        Args:
            name: name of its run.
            kind: "trial" or "confirmation".
            folder: folder of its run.
            values: value of each searched field by dotted path.
            target: epoch after which it is paused; None to train to the end.
        """
        return TrainingRun(
            config=with_resolved_sizes(
                self.search.configuration(values), self.field.frame_shape, len(self.field.inputs)
            ),
            field=self.field,
            folder=folder,
            run_name=name,
            tags=(
                ("mcrnn.kind", kind),
                ("mcrnn.search", self.search.name),
                ("mcrnn.searched", ", ".join(values)),
                ("mcrnn.values", json.dumps(values, sort_keys=True)),
            ),
            target=target,
        )


def run_trial(proposal: dict[str, Any], *, context: TrialContext) -> None:
    """Run one trial in a Tune actor: train there, or drive the workers of Ray Train.

    What every further try, or every other trial, would meet as well is reported: too little memory, and an error of the
    configuration. Too little memory beside other trials, some of which may use the same device, is an exception: then
    the trial is tried once more.

    Args:
        proposal: {"number": ..., "values": ...} of a trial, with "target" where it is paused after an epoch, or
            {"proposal": {"retrain": (name, values)}} of a training of the confirmation; with "second_try" where it is
            tried once more.
        context: what all trials have in common.

    Raises:
        TrialFailedError: any other error, such as that of a broken GPU, a full disk or object storage that stays away.
            Tune then starts the trial again from its checkpoint, in a new process, as where processes were lost.
    """
    try:
        unreported = _run(proposal.get("proposal", proposal), context)
    finally:
        _give_back_gpu_memory(context)  # after the exception of a trial that ran out of it, which holds on to it
    if unreported is not None:
        tune.report(unreported)


def _run(proposal: dict[str, Any], context: TrialContext) -> dict[str, Any] | None:
    """Do what `run_trial` does; returns a result that is still to be reported, None where all is."""
    enable_retries()
    if "retrain" in proposal:
        name, values = proposal["retrain"]
        kind, folder = "confirmation", context.folder.retraining(name)
    else:
        name, values = trial_name(proposal["number"]), proposal["values"]
        kind, folder = "trial", context.folder.trial(proposal["number"])
    second_try = proposal.get("second_try", False)
    try:
        _train_and_report(
            context.training_run(name, kind, folder, values, proposal.get("target")), context, alone=second_try
        )
    except NotEnoughMemoryError:
        retry = context.concurrency > 1 and not second_try
        if retry:
            folder.delete_end()
        return TrialReport.out_of_memory(retry=retry).as_result()
    except Exception as error:
        if workers_were_lost(error):
            raise
        file = _write_error(folder)
        if is_mistake(error):
            return TrialReport.of_mistake(f"{name}: {error}").as_result()
        reason = first_line(error) if str(error).strip() else "no message"
        raise TrialFailedError(f"{type(error).__name__}: {reason}{file}") from error
    return None


def _give_back_gpu_memory(context: TrialContext) -> None:
    """Free the memory of a shared GPU that PyTorch keeps: the next trial takes over this process."""
    if context.share.gpus % 1 and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def is_mistake(error: Exception) -> bool:
    """Return whether an error is one of the configuration, which every other trial would meet as well."""
    return isinstance(error, UserError) and not isinstance(error, IsolatedError)


def _write_error(folder: RunFolder) -> str:
    """Keep the traceback of the current error; returns the end of a line that names the file, empty on a full disk."""
    with contextlib.suppress(UserError):
        return f" (see {folder.write_error(traceback.format_exc())})"
    return ""


def _train_and_report(run: TrainingRun, context: TrialContext, *, alone: bool) -> None:
    """Train, or go on with what is in the folder, and report all epochs and an interruption, which no epoch says.

    Args:
        run: the training.
        context: what all trials have in common.
        alone: whether each worker is to have a GPU of its own, if there are any.

    Raises:
        NotEnoughMemoryError: memory was not enough.
    """
    constants = report_constants(run)
    record = run.folder.read_record()
    if record is not None and record["tags"]["mcrnn.values"] != dict(run.tags)["mcrnn.values"]:
        run.folder.clear()  # it holds another proposal of this number, which was lost with its driver
    if run.folder.read_end() is None:
        if not ray.get(context.stop.requested.remote(run.run_name)):  # it may have waited since before the request
            _train(run, context, alone=alone)
    else:  # the driver was lost before it got all reports
        for metrics in run.folder.read_metrics():
            tune.report(metrics | constants)
    ended = run.folder.read_end()
    if ended is None and ray.get(context.stop.is_stopped.remote(run.run_name)):
        history = run.folder.read_metrics()
        tune.report(TrialReport.stopped_by_user(history[-1] | constants if history else None).as_result())
        return
    distributed = run.config.train.workers > 1
    pruned_at = ray.get(context.stop.ended_at.remote(run.run_name)) if distributed else None
    if pruned_at is not None:  # the workers trained a little further; the result is that of the epoch decided on
        metrics = next(each for each in run.folder.read_metrics() if each["epoch"] == pruned_at)
        tune.report(metrics | constants)
    elif ended is None and not _is_paused(run):
        tune.report(TrialReport.interrupted().as_result())
    elif ended is not None and ended.end == End.OUT_OF_MEMORY:
        raise NotEnoughMemoryError(ended.message)
    elif distributed:  # workers that find nothing left to train report nothing
        epochs = [each for each in run.folder.read_metrics() if run.target is None or each["epoch"] <= run.target]
        if epochs:
            tune.report(epochs[-1] | constants)


def _is_paused(run: TrainingRun) -> bool:
    """Return whether a training has reached the epoch after which it is paused."""
    metrics = run.folder.read_metrics()
    return run.target is not None and bool(metrics) and metrics[-1]["epoch"] >= run.target


def _train(run: TrainingRun, context: TrialContext, *, alone: bool) -> None:
    if run.config.train.workers == 1:
        if context.share.uses_service:
            mps.join()  # without it, this trial and others take turns
        run_in_tune(run, ray.get(context.data), context.stop, context.share.threads)
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    gpus = math.ceil(context.share.gpus) if alone else context.share.gpus
    try:
        run_distributed(run, context.data, gpus=gpus, stop=context.stop, callbacks=[TuneReportCallback()])
    except Exception as error:
        if (cause := root_cause(run, error)) is error:
            raise
        raise cause from error


def trial_name(number: int) -> str:
    """Return the name of a trial's run."""
    return f"trial-{number}"


def workers_were_lost(error: BaseException) -> bool:
    """Return whether a training on Ray Train failed because its processes were lost, not by an error in them."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return False
    return all(isinstance(each, ray.exceptions.RayError) for each in failures.values())
