"""What a trial reports to Ray Tune, and how its end is named in the study and in MLflow."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcrnn.search.attributes import TrialEnd
from mcrnn.training.run import mlflow_status
from mcrnn.training.session import OBJECTIVE, PENALTY, End

END_KEY, MISTAKE_KEY, RETRY_KEY, STOPPED_KEY = "trial_end", "mistake", "retry", "stopped"
"""Keys of Tune's result dictionaries; all others are metrics."""

KEPT_METRICS = (
    "epoch",
    "rmse_closed_loop",
    "rmse_teacher_forced",
    OBJECTIVE,
    "best",
    "frames_per_second",
    "parameters",
    "time_total_s",
)
"""Metrics of a trial's last report that the study keeps; `time_total_s` is Tune's."""


TRIAL_ENDS = {
    End.FINISHED: TrialEnd.FINISHED,
    End.STOPPED_EARLY: TrialEnd.FINISHED,
    End.DIVERGED: TrialEnd.DIVERGED,
    End.OUT_OF_MEMORY: TrialEnd.OUT_OF_MEMORY,
}
"""The end of a trial for each end of its training. After an interruption the trial goes on, so it has no end."""


@dataclass(frozen=True)
class TrialReport:
    """A report of a trial: the metrics of an epoch, or how the trial ended without finishing one.

    Tune passes reports on as dictionaries: `as_result` makes one of a report, and `of` reads it again.
    """

    metrics: dict[str, Any]
    """Metrics of the epoch, as the training loop reports them, with `epochs` (of the whole training), `parameters` and
    what Tune adds. Without "epoch" where the report is not of an epoch."""
    end: End | None = None
    """How the training ended, where this report says so; None for an epoch that is like any other."""
    mistake: str | None = None
    """What is wrong with the configuration, for the user. It ends the search at once."""
    retry: bool = False
    """Whether memory was not enough beside other trials, so that the trial is tried once more."""
    stopped: bool = False
    """Whether a user has stopped the trial for good."""

    @classmethod
    def interrupted(cls) -> TrialReport:
        """Return the report of a trial that was asked to save and stop."""
        return cls(_worst(), End.INTERRUPTED)

    @classmethod
    def stopped_by_user(cls, metrics: dict[str, Any] | None) -> TrialReport:
        """Return the report of a trial that a user has stopped.

        Args:
            metrics: metrics of its last epoch; None where it has completed none.
        """
        return cls(_worst() if metrics is None else metrics, stopped=True)

    @classmethod
    def out_of_memory(cls, *, retry: bool = False) -> TrialReport:
        """Return the report of a trial for which memory was not enough.

        Args:
            retry: whether the trial is tried once more.
        """
        return cls(_worst() | {"epoch": 0}, End.OUT_OF_MEMORY, retry=retry)

    @classmethod
    def of_mistake(cls, message: str) -> TrialReport:
        """Return the report of a trial that cannot be trained as it is."""
        return cls(_worst(), mistake=message)

    @classmethod
    def of(cls, result: dict[str, Any] | None) -> TrialReport:
        """Read a report from a result of Tune; None, for a trial that has not reported, is one without metrics."""
        metrics = dict(result or {})
        end, mistake = metrics.pop(END_KEY, None), metrics.pop(MISTAKE_KEY, None)
        retry, stopped = metrics.pop(RETRY_KEY, False), metrics.pop(STOPPED_KEY, False)
        if end is None and metrics.get("diverged"):
            end = End.DIVERGED
        return cls(metrics, End(end) if end else None, mistake, retry, stopped)

    def as_result(self) -> dict[str, Any]:
        """Return the report as a result of Tune."""
        result = dict(self.metrics)
        if self.end is not None:
            result[END_KEY] = str(self.end)
        if self.mistake is not None:
            result[MISTAKE_KEY] = self.mistake
        if self.retry:
            result[RETRY_KEY] = True
        if self.stopped:
            result[STOPPED_KEY] = True
        return result

    @property
    def epoch(self) -> int | None:
        """The epoch that has ended, from 1; 0 where memory was not enough for any; None for other reports."""
        return int(self.metrics["epoch"]) if "epoch" in self.metrics else None

    @property
    def kept_metrics(self) -> dict[str, Any]:
        """The metrics that the study keeps; none of a trial that was stopped in its first epoch."""
        if self.stopped and self.epoch is None:
            return {}
        return {key: self.metrics[key] for key in KEPT_METRICS if key in self.metrics}

    @property
    def goes_on(self) -> bool:
        """Whether the trial goes on later: it was interrupted, waits for a correction, or is tried once more."""
        return self.end == End.INTERRUPTED or self.mistake is not None or self.retry

    def is_pause(self, target: int | None) -> bool:
        """Return whether this is the last report of a trial that has been trained to a rung, and not to its end.

        Args:
            target: epoch to which the trial was trained; None where it runs to its end.
        """
        last = self.metrics.get("epochs")
        return (
            self.end is None
            and not self.goes_on
            and not self.stopped
            and target is not None
            and self.epoch == target != last
        )

    def trial_end(self, *, pruned: bool) -> TrialEnd:
        """Return how the trial ended whose last report this is. Not for a trial that goes on.

        Args:
            pruned: whether the pruner has stopped it.
        """
        end = TRIAL_ENDS[self.end or End.FINISHED]
        return TrialEnd.STOPPED if (pruned or self.stopped) and end == TrialEnd.FINISHED else end

    @property
    def mlflow_status(self) -> str:
        """The status in MLflow of the run whose last report this is."""
        if self.mistake is not None:
            return "FAILED"
        return mlflow_status(End.INTERRUPTED if self.retry else self.end or End.FINISHED)


class TrialFailedError(Exception):
    """A trial has raised an error that another try may not meet again; its text is one line that names the file."""


def error_of(trial: Any) -> str | None:
    """Return in one line what error a trial of Tune has raised last; None if its processes were lost.

    Tune's own method for this reads a copy of the file that is made a while after the error.

    Args:
        trial: the trial, as Tune's callbacks and schedulers get it.
    """
    if trial.pickled_error_file is None:
        return None
    error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = getattr(error, "cause", error)
    return str(cause) if isinstance(cause, TrialFailedError) else None


def _worst() -> dict[str, Any]:
    """Return the metrics of a report without an epoch, which Tune wants to compare nonetheless."""
    return {OBJECTIVE: PENALTY, "best": PENALTY, "diverged": 0.0}
