"""The trials of a search on Ray Tune's side: how Tune runs them, and what runs in the actor of one."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from mcrnn.config.paths import Values
from mcrnn.config.space import Search
from mcrnn.data.description import FieldDescription
from mcrnn.errors import IsolatedError, NotEnoughMemoryError, UserError, first_line
from mcrnn.models import with_resolved_sizes
from mcrnn.runners.ray_train import root_cause, run_distributed
from mcrnn.runners.session import report_constants
from mcrnn.runners.tune_trial import run_in_tune
from mcrnn.search.trial_report import TrialFailedError, TrialReport
from mcrnn.search.unsaved import Unsaved
from mcrnn.storage.lease import Lease
from mcrnn.storage.retry import enable_retries
from mcrnn.tracking.run_folder import RunFolder, SearchFolder
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import End

SECONDS_TO_END = 10.0
"""Time that Tune's thread gets to end when its trials are given up. A step of Tune takes a tenth of a second or so."""


class EndOfTune(Unsaved, tune.Callback):
    """Ends Tune's thread at its next step.

    Args:
        given_up: is set when the trials are given up.
        interrupted: returns whether a stop was asked for. Then trials that still wait for a machine are not waited for.
    """

    def __init__(self, given_up: threading.Event, interrupted: Callable[[], bool]) -> None:
        self.given_up, self.interrupted = given_up, interrupted
        self.has_ended_tune = False
        """Whether Tune's thread was ended. Tune may then raise an error of its own."""

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Raise what Tune does not handle; the processes of the trials end with their handles."""
        if self.given_up.is_set() or (self.interrupted() and all(each.status != Trial.RUNNING for each in trials)):
            self.has_ended_tune = True
            raise KeyboardInterrupt


def retry_lost_resets() -> None:
    """Let Tune start a trial again whose process was lost while it was taken over from the trial before.

    Tune resets a process that it takes over, and meanwhile the trial is pending. An error of a pending trial ends it
    for good in Tune 2.60, however many losses are allowed, and a lost process gives two errors: its own, after which
    the trial waits for another process, and that of the reset. Nothing is changed where another version of Tune has
    other functions.
    """
    failed = getattr(TuneController, "_process_trial_failure", None)
    if failed is None or hasattr(failed, "__wrapped__"):
        return

    @functools.wraps(failed)
    def process_trial_failure(self: Any, trial: Trial, exception: Exception) -> None:
        is_reset = trial in self._resetting_trials
        self._resetting_trials.discard(trial)  # else it would wait for the end of its reset
        if trial.status == Trial.PENDING:
            if not is_reset:  # the second error of a process whose loss has been handled
                return
            self._set_trial_status(trial, Trial.RUNNING)
            self._unstage_trial_with_resources(trial)
        failed(self, trial, exception)

    setattr(TuneController, "_process_trial_failure", process_trial_failure)  # noqa: B010, for the type checker


@dataclass(frozen=True)
class TrialRunner:
    """Runs on Tune the trials that a searcher proposes."""

    trainable: Any
    """The function that Tune calls with the proposal of a trial."""
    tune_folder: str
    """Folder for Tune's own state. A search is never restored from it."""
    lease: Lease
    """The lease of the search, without which no trial runs."""
    resources: dict[str, float]
    """What Tune reserves for each trial, such as {"CPU": 1}."""
    concurrency: int
    """Trials at a time."""
    max_failures: int
    """How often Tune starts a trial again whose process was lost."""
    interrupted: Callable[[], bool] = lambda: False
    """Returns whether a stop was asked for."""

    def run(self, name: str, callbacks: list[Any], **options: Any) -> None:
        """Run trials until the searcher has finished and all of them have ended, or all that run after a stop.

        Tune runs in a thread, because in the main thread it would handle the signals itself. The thread ends before an
        error in the main thread, such as a KeyboardInterrupt, is passed on.

        Args:
            name: name of Tune's state below the folder.
            callbacks: callbacks of Tune.
            options: arguments of Tune's TuneConfig, such as `search_alg`.
        """
        retry_lost_resets()
        given_up, ended = threading.Event(), threading.Event()
        end_of_tune = EndOfTune(given_up, self.interrupted)
        share_gpus = self.resources.get("GPU", 0) % 1 > 0
        resources = functools.partial(_resources_of, self.resources) if share_gpus else self.resources
        tuner = tune.Tuner(
            tune.with_resources(self.trainable, resources),
            param_space={},
            tune_config=tune.TuneConfig(
                num_samples=-1,
                max_concurrent_trials=self.concurrency,
                reuse_actors="CPU" in self.resources,
                **options,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=self.tune_folder,
                callbacks=[*callbacks, end_of_tune],
                failure_config=tune.FailureConfig(max_failures=self.max_failures),
                verbose=0,
            ),
        )
        failure: list[BaseException] = []

        def fit() -> None:
            try:
                tuner.fit()
            except BaseException as error:
                if not end_of_tune.has_ended_tune:
                    failure.append(error)
            finally:
                ended.set()

        for logger in ("ray.tune", "ray.air"):  # their tracebacks of lost processes say less than our own lines
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        threading.Thread(target=fit, daemon=True, name="Tune").start()
        try:
            # Python handles signals in the main thread between two waits. An event is waited for because Python 3.11
            # takes a thread to be dead whose `join` a signal has interrupted.
            while not ended.wait(0.2):
                self.lease.check()
        except BaseException:
            given_up.set()
            ended.wait(SECONDS_TO_END)
            raise
        if failure:
            raise failure[0]


def _resources_of(resources: dict[str, float], proposal: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Tune reserves for one trial: for a second try whole GPUs, which no other trial then shares.

    Args:
        resources: what it reserves for other trials.
        proposal: the proposal of the trial.
    """
    proposal = proposal.get("proposal", proposal)
    whole = {"GPU": math.ceil(resources["GPU"])} if proposal.get("second_try") else {}
    return tune.PlacementGroupFactory([resources | whole])


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a search have in common; plain data and handles of Ray, so that it can be sent to actors."""

    search: Search
    field: FieldDescription
    folder: SearchFolder
    data: Any
    """Reference to the `FieldData` in Ray's object store, so that all trials of a node share one copy."""
    gpus: float
    """GPUs for each worker; a fraction shares one."""
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
    enable_retries()
    proposal = proposal.get("proposal", proposal)
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
        tune.report(TrialReport.out_of_memory(retry=retry).as_result())
    except Exception as error:
        if workers_were_lost(error):
            raise
        file = _write_error(folder)
        if is_mistake(error):
            tune.report(TrialReport.of_mistake(f"{name}: {error}").as_result())
            return
        reason = first_line(error) if str(error).strip() else "no message"
        raise TrialFailedError(f"{type(error).__name__}: {reason}{file}") from error


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
        run_in_tune(run, ray.get(context.data), context.stop)
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    gpus = math.ceil(context.gpus) if alone else context.gpus
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
