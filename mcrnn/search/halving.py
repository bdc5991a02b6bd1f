"""Asynchronous successive halving: which trials go on, and how far.

Every trial is trained to the first rung, an epoch at which trials are compared, and paused there with its checkpoint.
Whenever a worker is free, the best paused trial that is among the best of its rung, one in `reduction_factor`, goes on
to the next rung; where there is none, a new trial is started. Nothing that is paused is lost: a trial that is not among
the best of its rung today is taken up when enough others turn out to be worse. The method is that of Li et al. (2020),
arXiv 1810.05934, but for two rules. No more trials go on from a rung than one in `reduction_factor` of those that have
reached it: without it nearly all go on once a sampler learns, for each new trial is then better than most before it.
And that number is rounded rather than rounded down: with a factor of 3, the better of the first two trials goes on
without waiting for a third, so that the search has a trained network earlier.

All of it follows from the study. A trial has the user attribute `TARGET`, the epoch to which it is trained, and an
intermediate value for every rung that it has reached.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mcrnn.config.search import AshaConfig
from mcrnn.training.session import PENALTY


def rungs(config: AshaConfig, epochs: int, longest: int | None = None) -> list[int]:
    """Return the epochs at which a trial is compared, the last of which is its last epoch.

    The first is `grace_epochs`. The others are counted from the end of the longest training, so that none is just
    before it, where little is saved by pausing: of 30 epochs, with a factor of 3, they are 3, 10 and 30.

    Args:
        config: the first rung, and the factor between two rungs.
        epochs: number of epochs of the trial.
        longest: number of epochs of the longest trial of the search, so that all trials are compared at the same
            epochs; None where all are as long.
    """
    factor, epoch, found = config.reduction_factor, longest or epochs, {config.grace_epochs, epochs}
    # A rung nearer to the first one than half of the factor, on a logarithmic scale, would only repeat it.
    while (epoch := epoch // factor) ** 2 > config.grace_epochs**2 * factor:
        found.add(epoch)
    return sorted(epoch for epoch in found if epoch <= epochs)


@dataclass
class _Rung:
    """The trials that have reached a rung."""

    errors: list[tuple[float, int]] = field(default_factory=list)
    """Error and number of each trial, the smallest error first."""
    paused: set[int] = field(default_factory=set)
    """Numbers of the trials that are paused here."""
    promoted: set[int] = field(default_factory=set)
    """Numbers of the trials that went on from here."""


class SuccessiveHalving:
    """Knows which trials are paused at which rung, and which of them goes on next.

    Args:
        reduction_factor: one in this many trials goes on at each rung.
    """

    def __init__(self, reduction_factor: int) -> None:
        self.reduction_factor = reduction_factor
        self._rungs: dict[int, _Rung] = {}
        """The rungs by their epoch, without the last epochs of trainings."""
        self._known: dict[int, int] = {}
        """The highest rung at which each trial has been counted."""
        self.next_target: dict[int, int] = {}
        """The epoch to which each paused trial goes on, by its number."""
        self.complete: set[int] = set()
        """Numbers of the trials that are trained to their last epoch, or are on their way there."""

    def note(
        self, number: int, steps: Sequence[int], errors: Mapping[int, float], target: int, *, ended: bool, failed: bool
    ) -> None:
        """Take up what is new of a trial.

        Args:
            number: number of the trial.
            steps: its rungs in epochs, the last of which is its last epoch.
            errors: its error at the rungs that it has reached, by epoch.
            target: the rung to which it is trained.
            ended: whether it has ended, in whatever way.
            failed: whether it has ended badly; it is then the worst of the rung that it was trained to.
        """
        if failed:
            errors = {**errors, target: PENALTY}
            self.complete.discard(number)
        elif target == steps[-1]:
            self.complete.add(number)
        known = self._known.get(number, 0)
        for step in steps[:-1]:
            if step in errors and step > known:
                bisect.insort(self._rungs.setdefault(step, _Rung()).errors, (errors[step], number))
                self._known[number] = step
            if step in errors and step < target:
                self._rungs[step].promoted.add(number)
        if known in self._rungs:
            self._rungs[known].paused.discard(number)
        self.next_target.pop(number, None)
        if target in errors and target != steps[-1] and not ended:
            self._rungs[target].paused.add(number)
            self.next_target[number] = steps[list(steps).index(target) + 1]
        elif target in self._rungs:
            self._rungs[target].paused.discard(number)

    def promotion(self) -> int | None:
        """Return the number of the trial that goes on next, None where none is among the best of its rung."""
        for epoch in sorted(self._rungs, reverse=True):
            rung = self._rungs[epoch]
            best = self._number_of_best(len(rung.errors))
            if len(rung.promoted) >= best:
                continue  # while trials get better, more would go on: each is among the best when it arrives
            for _, number in rung.errors[:best]:
                if number in rung.paused:
                    return number
        return None

    def _number_of_best(self, trials: int) -> int:
        """Return one in `reduction_factor` of a number of trials, rounded; a half is rounded down."""
        return (2 * trials + self.reduction_factor - 1) // (2 * self.reduction_factor)
