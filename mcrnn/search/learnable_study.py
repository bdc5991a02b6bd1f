"""A study as a sampler sees it: with the trials that are worth learning from, and without the trial that it draws."""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mcrnn.search.trial_index import TrialIndex

BEST, NEWEST, RUNNING = 25, 75, 25
"""Most trials that TPE is fitted to: the best ones, those that ended last, and the newest of those that run.

TPE takes 25 trials at most for its good ones, and weighs old ones among the others down. Fitting takes time in
proportion to the number of trials, up to two seconds for 10,000."""


class LearnableStudy:
    """A study of which a sampler sees some trials only; everything else goes to the study itself.

    A trial that is drawn for after a restart is hidden, because it may have some of its values already, from which the
    sampler must not learn. With fewer trials than the limits, a sampler sees all others that it could learn from.

    Args:
        study: the study.
        index: its trials, kept up to date by whoever changes them.
        hidden: number of the trial that is drawn for.
        limited: whether the numbers of trials are limited; False for samplers that need all of them, such as NSGA-II,
            which looks for the trials of its last generation.
    """

    def __init__(self, study: optuna.Study, index: TrialIndex, hidden: int, *, limited: bool) -> None:
        self._study, self._index, self._hidden, self._limited = study, index, hidden, limited

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """Return the trials that the sampler sees, in the order of their numbers, as `optuna.Study.get_trials` does."""
        trials = self._trials() if self._limited else self._index.trials
        seen = [t for t in trials if t.number != self._hidden and (states is None or t.state in states)]
        return copy.deepcopy(seen) if deepcopy else seen

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return self.get_trials(deepcopy, states)

    def _trials(self) -> list[FrozenTrial]:
        running = sorted(self._index.running - {self._hidden})[-RUNNING:]
        trials = self._index.learnable(BEST, NEWEST) + [self._index.trial(number) for number in running]
        return sorted(trials, key=lambda trial: trial.number)
