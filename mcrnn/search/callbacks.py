"""Callbacks of Ray Tune that keep MLflow and the files of a search up to date with its trials."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ray import tune

from mcrnn.search.attributes import TrialEnd
from mcrnn.search.budgets import budget
from mcrnn.search.search_run import ActiveSearch
from mcrnn.search.superseded_files import Deletion
from mcrnn.search.trial_report import TrialReport, error_of
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.search.unsaved import Unsaved
from mcrnn.storage.presence import Presence
from mcrnn.storage.retry import print_warning
from mcrnn.training.session import PENALTY

SECONDS_BETWEEN_NOTES = 5.0
"""Time between two notes of how far a search is."""
SECOND_TRIES = "second tries"
"""Attribute of the study: names of the confirmation's trainings that are tried once more."""


class TrialCallback(Unsaved, tune.Callback):
    """Keeps the runs and the files of trials up to date, and stops the search at a mistake in its configuration.

    Args:
        active: the search.
        stop: asks all trials to save and stop.
    """

    def __init__(self, active: ActiveSearch, stop: Callable[[], None]) -> None:
        self.search_run, self.sync, self.uploads, self.stop = active.search_run, active.sync, active.uploads, stop
        self.superseded_files = self.search_run.superseded_files(active.index)
        self.uploads.put("superseded files", self.search_run.remove_superseded_files)  # those of a killed search

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
        """Send an epoch to MLflow."""
        self._sync(trial, "RUNNING")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Complete the run in MLflow, and delete what nobody needs any more.

        The trial cannot complete its run itself, because Tune kills its process when it stops it early.
        """
        report = TrialReport.of(trial.last_result)
        if report.mistake:
            self.stop()
        paused = report.is_pause(trial.config.get("target"))
        self._sync(trial, "SCHEDULED" if paused else report.mlflow_status)
        self.superseded_files.trial_ended(trial.config["number"], self.uploads.put)

    def paused_trial_stopped(self, number: int) -> None:
        """Complete the run of a paused trial that has ended, and delete what nobody needs any more."""
        self.sync.update(self.search_run.folder.trial(number), TrialEnd.STOPPED.mlflow_status)
        self.superseded_files.trial_ended(number, self.uploads.put)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Complete the run of a trial that failed too often."""
        self._sync(trial, "FAILED")

    def _sync(self, trial: Any, status: str) -> None:
        self.sync.update(self.search_run.folder.trial(trial.config["number"]), status)


class PresenceCallback(Unsaved, tune.Callback):
    """Writes down now and then how far a search is, for `python -m mcrnn.status`.

    Args:
        presence: the presence of this process in the folder of the search.
        searcher: the searcher of the trials.
    """

    def __init__(self, presence: Presence, searcher: StudySearcher) -> None:
        self.presence, self.searcher = presence, searcher
        self._best = searcher.index.smallest_error()
        self._next = 0.0
        self.note()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Take up the error of a trial."""
        report = TrialReport.of(trial.last_result)
        if report.epoch and report.end is None:
            self._best = min(self._best, report.metrics["best"])

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Write it down if it is time for it."""
        if time.monotonic() >= self._next:
            self.note()

    def note(self, phase: str | None = None) -> None:
        """Write down how far the search is.

        Args:
            phase: what is done once the trials have ended; None while they run.
        """
        self._next = time.monotonic() + SECONDS_BETWEEN_NOTES
        index, config = self.searcher.index, self.searcher.search.search
        self.presence.progress = {
            "done": index.ended + len(self.searcher.progress.paused),
            "budget": budget(index, config),
            "running": len(self.searcher.running),
            "failed": index.failures,
            "best": self._best if math.isfinite(self._best) else None,
            "hours": self.searcher.budgets.hours,
            "hours_budget": config.hours,
            "phase": phase,
        }


class ConfirmationCallback(Unsaved, tune.Callback):
    """Keeps the runs of the confirmation's trainings up to date, and prints their validation errors.

    Args:
        active: the search.
        searcher: the searcher of the trials before, which takes note of a mistake.
    """

    def __init__(self, active: ActiveSearch, searcher: StudySearcher) -> None:
        self.search_run, self.sync, self.console = active.search_run, active.sync, active.console
        self.searcher, self.uploads, self.upload_journal = searcher, active.uploads, active.upload_journal
        self.deletion = Deletion(self.search_run.folder.url)
        self.last_error: str | None = None
        """What a training has raised last; None where no training failed, or all were lost with their processes."""

    @property
    def second_tries(self) -> list[str]:
        """Names of the trainings that ran out of memory beside others and are tried once more."""
        return self.search_run.study.user_attrs.get(SECOND_TRIES, [])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
        """Send an epoch to MLflow."""
        name, _values = trial.config["proposal"]["retrain"]
        self.sync.update(self.search_run.folder.retraining(name), "RUNNING")
        self.searcher.budgets.note_hours(every=60.0)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Warn of an error or a lost process; Tune starts the training again."""
        name, _values = trial.config["proposal"]["retrain"]
        reason = error_of(trial) or "its process was lost"
        print_warning(f"{name}: {reason}; it goes on from its checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Complete the run of a training that failed too often."""
        name, _values = trial.config["proposal"]["retrain"]
        self.last_error = error_of(trial) or self.last_error
        self.sync.update(self.search_run.folder.retraining(name), "FAILED")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Complete the run in MLflow, delete its checkpoints and print its error."""
        report = TrialReport.of(trial.last_result)
        name, values = trial.config["proposal"]["retrain"]
        self.searcher.mistake = report.mistake or self.searcher.mistake
        folder = self.search_run.folder.retraining(name)
        self.sync.update(folder, report.mlflow_status)
        if report.retry:
            self.search_run.study.set_user_attr(SECOND_TRIES, [*self.second_tries, name])
        self.upload_journal()
        if report.goes_on:
            return
        self.uploads.put(f"checkpoints of {name}", lambda: self.deletion.delete(folder.checkpoints))
        architecture = self.search_run.search.configuration(values).model.architecture
        end = report.trial_end(pruned=False)
        outcome = f"error {report.metrics.get('best', PENALTY):.4f}" if end == TrialEnd.FINISHED else str(end)
        self.console.print(f"{architecture}, {name}: {outcome}", highlight=False, soft_wrap=True)
