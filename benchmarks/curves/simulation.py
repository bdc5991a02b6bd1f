"""Searches on recorded learning curves: workers on a simulated clock, which take no time.

A searcher hands out jobs, each of which trains one configuration from an epoch on. It learns of every epoch when the
simulated worker has trained it, and may end the job there.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from benchmarks.curves.blackbox import Blackbox, Curve
from mcrnn.config.paths import Values


@dataclass
class Job:
    """Part of the training of one configuration."""

    trial: str
    """Names the configuration; jobs with the same name go on with the same training."""
    values: Values
    first: int = 1
    """First epoch of the job."""
    last: int | None = None
    """Last epoch of the job; None for the last epoch of the training."""
    leg: str = ""
    """Names the job itself, where its searcher needs that."""


class Player(Protocol):
    """A searcher as far as the simulation needs it."""

    def next_job(self) -> Job | None:
        """Return a job for a free worker, None where it has none now."""

    def epoch_ended(self, job: Job, epoch: int, error: float, epochs: int) -> bool:
        """Take the error of an epoch, and return whether the job ends there."""

    def job_ended(self, job: Job, epoch: int, error: float, *, diverged: bool, epochs: int) -> None:
        """Take the last error of a job that has ended."""


@dataclass
class History:
    """What a simulated search has found by when."""

    seconds: list[float] = field(default_factory=list)
    """Times at which a smaller validation error was found."""
    validation: list[float] = field(default_factory=list)
    """The smallest validation error from each of these times on."""
    test: list[float] = field(default_factory=list)
    """Test error of that network."""
    trials: int = 0
    """Configurations that were started."""
    busy: float = 0.0
    """Share of the workers' time in which they trained."""

    def add(self, seconds: float, validation: float, test: float) -> None:
        """Take an error that was found."""
        if not self.validation or validation < self.validation[-1]:
            self.seconds.append(seconds)
            self.validation.append(validation)
            self.test.append(test)

    def time_to(self, error: float) -> float:
        """Return when the validation error came down to a level, in seconds; infinite where it did not."""
        return next((t for t, v in zip(self.seconds, self.validation, strict=True) if v <= error), float("inf"))

    def error_at(self, seconds: float) -> float:
        """Return the smallest validation error that was found until some time; nan where none was."""
        index = int(np.searchsorted(self.seconds, seconds, side="right")) - 1
        return self.validation[index] if index >= 0 else float("nan")


@dataclass(order=True)
class _Running:
    until: float
    order: int
    job: Job = field(compare=False)
    curve: Curve = field(compare=False)
    epoch: int = field(compare=False)


def simulate(
    player: Player,
    blackbox: Blackbox,
    *,
    workers: int,
    seconds: float,
    start_seconds: float = 0.0,
    enough: float = 0.0,
) -> History:
    """Run a search.

    Args:
        player: the searcher.
        blackbox: gives the curve of each configuration.
        workers: trainings at a time.
        seconds: when the search ends on the simulated clock.
        start_seconds: what each job costs beside its epochs.
        enough: validation error at which the search ends.
    """
    history, free = History(), workers
    running: list[_Running] = []
    numbers: Iterator[int] = itertools.count()
    seen: set[str] = set()
    now = trained = 0.0
    while now < seconds:
        while free and (job := player.next_job()) is not None:
            curve = blackbox.curve(job.values)
            free -= 1
            seen.add(job.trial)
            first = start_seconds + curve.seconds[job.first - 1]
            heapq.heappush(running, _Running(now + first, next(numbers), job, curve, job.first))
            trained += first
        if not running:
            break
        event = heapq.heappop(running)
        now, job, curve, epoch = event.until, event.job, event.curve, event.epoch
        if now > seconds:
            break
        error = float(curve.validation[epoch - 1])
        diverged = curve.diverged_at is not None and epoch >= curve.diverged_at
        if not diverged:
            history.add(now, error, float(curve.test[epoch - 1]))
        last = min(job.last or blackbox.epochs, blackbox.epochs)
        stopped = not diverged and player.epoch_ended(job, epoch, error, blackbox.epochs)
        if diverged or stopped or epoch >= last:
            player.job_ended(job, epoch, error, diverged=diverged, epochs=blackbox.epochs)
            free += 1
        else:
            event.epoch, event.until, event.order = epoch + 1, now + curve.seconds[epoch], next(numbers)
            trained += curve.seconds[epoch]
            heapq.heappush(running, event)
        if history.validation and history.validation[-1] <= enough:
            break
    history.trials = len(seen)
    history.busy = min(1.0, trained / (workers * now)) if now else 0.0
    return history
