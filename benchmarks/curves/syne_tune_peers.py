"""BOHB and MOBSTER of Syne Tune (https://github.com/syne-tune/syne-tune), which the replay can do without.

The schedulers are called in the order in which the `Tuner` of Syne Tune calls them. Grace period, reduction factor and
brackets are at their defaults, and so is the type of the scheduler: it is "stopping" for both, so that a trial either
goes on at once or has ended. No trial is ever paused and resumed, as it would be with the type "promotion".

No release of Syne Tune has all that is needed here. MOBSTER has been left out since 0.14, and 0.13.0 asks for a NumPy
below 1.27, although BOHB and MOBSTER work with later ones. BOHB of 0.13.0 fits its densities to the errors of the
highest rung that has enough of them; since 0.14 it fits them to the last error of each trial, whatever its epoch.
"""

from __future__ import annotations

import contextlib
import io
import logging
from datetime import datetime
from importlib import metadata
from typing import Any

import numpy as np

from benchmarks.curves.simulation import Job
from mcrnn.config.paths import Values
from mcrnn.config.space import Search, Space, SpaceEntry
from mcrnn.training.session import OBJECTIVE

SYNE_TUNE_PEERS = ("bohb", "mobster")
INSTALL = (
    "bohb needs: pip install -c constraints.txt syne-tune; mobster needs after that: pip install --no-deps "
    "syne-tune==0.13.0 autograd"
)
"""How to install what is missing, in one line."""


def missing_peers() -> list[str]:
    """Return the names of the searches that the installed version of Syne Tune does not have."""
    try:
        version = metadata.version("syne-tune")
    except metadata.PackageNotFoundError:
        return list(SYNE_TUNE_PEERS)
    return [] if version.startswith("0.13.") else ["mobster"]


def depends(space: Space, path: str) -> bool:
    """Return whether the values of an entry depend on those of other fields, which Syne Tune has no means for."""
    return len(space.entries[path]) > 1 or bool(space.entries[path][0].needs)


def at_share(entry: SpaceEntry, share: float) -> Any:
    """Return the value at a share, from 0 to 1, of the range of an entry whose bounds are numbers."""
    if entry.is_finite:
        values = entry.grid()
        return values[min(int(share * len(values)), len(values) - 1)]
    low, high = (float(bound) for bound in entry.bounds or ())
    value = low * (high / low) ** share if entry.log else low + share * (high - low)
    return round(value) if entry.int_range is not None else value


def syne_tune_space(space: Space) -> dict[str, Any]:
    """Return a space as a user of Syne Tune would write it.

    A bound cannot name another field there. Such a field is a share of its range, from 0 to 1, from which `values_of`
    makes a value, so that every configuration is valid and none is drawn more often than others, as it would be if
    values above the bound were clipped.
    """
    from syne_tune import config_space

    domains: dict[str, Any] = {}
    for path in space:
        entry = space.entries[path][0]
        if depends(space, path):
            domains[path] = config_space.uniform(0.0, 1.0)
        elif entry.choice is not None:
            domains[path] = config_space.choice(entry.choice)
        else:
            low, high = (float(bound) for bound in entry.bounds or ())
            whole = entry.int_range is not None
            if entry.step is not None:
                size = int((high - low) / entry.step + 1e-9) + 1
                last = low + entry.step * (size - 1)
                domains[path] = config_space.finrange(low, last, size, cast_int=whole)
            elif whole:
                domain = config_space.lograndint if entry.log else config_space.randint
                domains[path] = domain(int(low), int(high))
            else:
                domains[path] = (config_space.loguniform if entry.log else config_space.uniform)(low, high)
    return domains


def values_of(space: Space, drawn: Values) -> Values:
    """Return the values of a configuration that Syne Tune has drawn from `syne_tune_space`."""
    values: Values = {}
    for path in space:
        entry = space.active_entry(path, values)
        if entry is not None:
            values[path] = at_share(entry, drawn[path]) if depends(space, path) else drawn[path]
    return values


class SyneTune:
    """A baseline of Syne Tune, a scheduler that has a searcher of its own.

    Args:
        search: the search whose space is drawn from.
        seed: seed of the baseline.
        epochs: epochs of a whole training.
        workers: trainings at a time, which the baseline does not ask for.
        baseline: name of the class in `syne_tune.optimizer.baselines`.
    """

    def __init__(self, search: Search, seed: int, epochs: int, workers: int, *, baseline: str) -> None:
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):  # It prints the names of extras that are not installed.
            from syne_tune.backend.trial_status import Trial
            from syne_tune.optimizer import baselines

        np.random.seed(seed)
        self.space = search.space
        self.takes_ids = hasattr(baselines, "MOBSTER")
        """Whether this is a release before 0.14, in which `suggest` takes the number of the trial."""
        epoch = {"resource_attr" if self.takes_ids else "time_attr": "epoch"}
        space = syne_tune_space(search.space)
        self.scheduler: Any = getattr(baselines, baseline)(
            space, metric=OBJECTIVE, max_t=epochs, random_seed=seed, **epoch
        )
        self.new_trial = Trial
        self.trials: list[Any] = []
        self.stopped: set[str] = set()

    def next_job(self) -> Job | None:
        number = len(self.trials)
        suggestion = self.scheduler.suggest(number) if self.takes_ids else self.scheduler.suggest()
        if suggestion is None:
            return None
        self.trials.append(self.new_trial(number, suggestion.config, datetime.now()))
        self.scheduler.on_trial_add(self.trials[number])
        return Job(str(number), values_of(self.space, suggestion.config))

    def epoch_ended(self, job: Job, epoch: int, error: float, epochs: int) -> bool:
        trial = self.trials[int(job.trial)]
        if self.scheduler.on_trial_result(trial, {OBJECTIVE: error, "epoch": epoch}) != "STOP":
            return False
        self.scheduler.on_trial_remove(trial)
        self.stopped.add(job.trial)
        return True

    def job_ended(self, job: Job, epoch: int, error: float, *, diverged: bool, epochs: int) -> None:
        # A training that diverges reports its error and ends by itself.
        if diverged:
            self.epoch_ended(job, epoch, error, epochs)
        if job.trial not in self.stopped:
            self.scheduler.on_trial_complete(self.trials[int(job.trial)], {OBJECTIVE: error, "epoch": epoch})
