"""Ray Tune as it runs the trials of a search: in a thread that can be ended, with processes that trials take over."""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from mcrnn.search.unsaved import Unsaved
from mcrnn.storage.lease import Lease

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
