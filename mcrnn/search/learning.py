"""What the sampler learns from: every trial that has reached a rung, with the error that it is expected to end with.

Optuna's samplers learn from the trials that ended. Where trials are paused early, these are few, and they are the good
ones. So the sampler is shown the study as if each trial had been trained to its last epoch: its error there is
estimated from that at its highest rung. Errors of the same rung keep their order; from rung to rung they are multiplied
by the median factor by which the errors of trials fell that went on.
"""

from __future__ import annotations

import bisect
import heapq
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mcrnn.training.session import PENALTY

Rungs = tuple[int, ...]
"""Epochs at which a trial is compared."""
PAIRS = 100
"""Number of trials from which the fall of the error between two rungs is estimated, the newest ones."""


class ExpectedErrors:
    """The error that each trial is expected to end with, as its logarithm."""

    def __init__(self) -> None:
        self._curves: dict[int, list[float]] = {}
        """Logarithm of the error of each trial at the rungs that it has reached."""
        self._numbers: list[int] = []
        """Numbers of these trials in their order."""
        self._groups: dict[Rungs, list[tuple[float, int]]] = defaultdict(list)
        """For the rungs from the last one that is reached to the last epoch: the trials with the logarithm of their
        last error, the smallest first."""
        self._group_of: dict[int, Rungs] = {}
        self._falls: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
        """For two rungs that follow each other, the change of the logarithm of the error in each trial."""
        self._medians: dict[tuple[int, int], float] = {}
        """Medians of these changes, as far as they were asked for since they last changed."""

    def note(self, number: int, steps: Sequence[int], errors: Mapping[int, float], *, failed: bool = False) -> None:
        """Take up what is new of a trial.

        Args:
            number: number of the trial.
            steps: its rungs in epochs, the last of which is its last epoch.
            errors: its error at the rungs that it has reached, by epoch.
            failed: whether it has diverged, or memory was not enough; it is then expected to end with `PENALTY`.
        """
        if number in self._group_of:
            group = self._groups[self._group_of.pop(number)]
            group.pop(bisect.bisect_left(group, (self._curves[number][-1], number)))
        reached = [step for step in steps if step in errors]
        curve = [math.log(min(PENALTY, max(1e-9, errors[step]))) for step in reached]
        rest: Rungs = ()
        if failed:
            curve = [math.log(PENALTY)]
        elif not reached:
            return
        else:
            rest = tuple(steps[steps.index(reached[-1]) :])
            for pair, change in zip(pairwise(reached), (b - a for a, b in pairwise(curve)), strict=True):
                self._falls[pair][number] = change
                self._medians.pop(pair, None)
        if number not in self._curves:
            bisect.insort(self._numbers, number)
        self._curves[number], self._group_of[number] = curve, rest
        bisect.insort(self._groups[rest], (curve[-1], number))

    def best(self, count: int) -> dict[int, float]:
        """Return the trials that are expected to end with the smallest errors: logarithm of the error by number."""
        smallest = []
        for rest, group in self._groups.items():
            fall = self._fall(rest)
            smallest += [(error + fall, number) for error, number in group[:count]]
        return {number: error for error, number in heapq.nsmallest(count, smallest)}

    def newest(self, count: int) -> set[int]:
        """Return the numbers of the newest trials that have reached a rung."""
        return set(self._numbers[-count:])

    def expected(self, number: int) -> float | None:
        """Return the logarithm of the error that a trial is expected to end with; None before its first rung."""
        rest = self._group_of.get(number)
        return None if rest is None else self._curves[number][-1] + self._fall(rest)

    def _fall(self, rest: Rungs) -> float:
        """Return by how much the logarithm of the error is expected to change from the first to the last rung."""
        return sum(self._median(pair) for pair in pairwise(rest))

    def _median(self, pair: tuple[int, int]) -> float:
        if pair not in self._medians:
            changes = self._falls.get(pair, {})
            newest = [changes[number] for number in sorted(changes)[-PAIRS:]]
            self._medians[pair] = statistics.median(newest) if newest else 0.0
        return self._medians[pair]


class StudyView:
    """A study as a sampler or a pruner shall see it: other trials in place of its own.

    Where these ask for trials, they get the ones that are shown; everything else goes to the study itself.

    Args:
        study: the study.
        trials: the trials that are shown.
    """

    def __init__(self, study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
        self._study, self._shown = study, list(trials)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Any = None, **_: Any) -> list[FrozenTrial]:
        """Return the trials that are shown; arguments as of `optuna.Study.get_trials`."""
        return [trial for trial in self._shown if states is None or trial.state in states]

    _get_trials = get_trials


def as_shown(trial: FrozenTrial, error: float | None) -> FrozenTrial:
    """Return a trial as the sampler shall see it: complete with the expected error, or running without one.

    Args:
        trial: the trial as it is in the study.
        error: what it is expected to end with; None where it has not reached a rung.
    """
    return FrozenTrial(
        number=trial.number,
        state=TrialState.RUNNING if error is None else TrialState.COMPLETE,
        value=error,
        datetime_start=trial.datetime_start,
        datetime_complete=None if error is None else trial.datetime_complete or trial.datetime_start,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={},
        system_attrs=trial.system_attrs,
        intermediate_values={},
        trial_id=trial._trial_id,
    )
