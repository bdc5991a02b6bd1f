"""The trials of a search as the process that runs it knows them, so that no step has to read the whole study.

Proposing a trial, counting the budgets and deleting superseded files need to know how many trials have ended, which
of them are the best, which are running. Reading all trials for that costs more with every trial. `TrialIndex` reads
them once, when a search is started, and then one trial whenever something has happened to it.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mcrnn.search.attributes import COPIED_FROM, END, RESULT, TrialEnd
from mcrnn.search.study import ENDED, state_of


def rank(trial: FrozenTrial) -> tuple[bool, float, int]:
    """Return the key by which trials that ended well are ordered, the best first.

    Trials that were stopped early come after all that ran to their end.
    """
    return trial.state != TrialState.COMPLETE, trial.user_attrs[RESULT]["best"], trial.number


class TrialIndex:
    """Knows the trials of a study, and is told which trial has changed.

    Only the process that runs a search may use it, because it does not see what another process writes until it is
    told. Creating it reads all trials; `refresh` reads one, and costs the same however many there are, apart from an
    insertion into a sorted list. All other members only look up what is known.

    Every member leaves out trials that were copied from an earlier search (`search.warm_start`), except `trial` and
    `trials`, from which a sampler learns.

    Args:
        study: the study of the search.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._storage, self._study_id, self.directions = study._storage, study._study_id, study.directions
        self._trials: list[FrozenTrial] = []
        """All trials; the index in the list is the number."""
        self._states: dict[TrialState, set[int]] = {state: set() for state in TrialState}
        self._waiting: list[int] = []
        """Heap of the numbers of waiting trials; numbers of trials that wait no more may still be in it."""
        self._attributes: dict[str, dict[int, Any]] = {}
        """Values of each user attribute of the trials that have not ended, by number."""
        self._ranked: list[tuple[bool, float, int]] = []
        """Keys of the trials that ended well, the best first."""
        self._stopped: dict[int, tuple[bool, float, int]] = {}
        """The same keys of those that were stopped while they were paused, by number."""
        self._front: list[FrozenTrial] = []
        self._seconds: dict[int, float] = {}
        """Seconds that each trial took until it ended or was paused, by number."""
        self.failures = 0
        """Number of trials whose processes were lost too often."""
        self.trial_seconds = 0.0
        """Seconds that the trials took together that have ended or are paused."""
        self.best_value = math.inf
        """Smallest error of a trial that has ended; infinite where there is none, and with several objectives."""
        trials = study.get_trials(deepcopy=False)
        self._trials += trials
        for trial in trials:
            self._enter(trial)

    def refresh(self, number: int) -> FrozenTrial:
        """Read a trial that is new or has changed, and return it.

        It has to be called when a trial was created, has got its values or an attribute, was paused, has ended, and was
        taken up after the end of the search had stopped it.

        Args:
            number: number of the trial.
        """
        known = len(self._trials)
        while len(self._trials) <= number:  # trials that were enqueued meanwhile come before a new one
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, len(self._trials))
            self._trials.append(self._storage.get_trial(trial_id))
            self._enter(self._trials[-1])
        before = self._trials[number]
        if number >= known or before.state in ENDED:  # it was just read, or nothing of it changes any more
            return before
        trial = self._storage.get_trial(before._trial_id)
        self._leave(before)
        self._trials[number] = trial
        self._enter(trial)
        return trial

    def _leave(self, trial: FrozenTrial) -> None:
        """Forget what is known of a trial that has not ended, or was only stopped while it was paused."""
        for of_state in self._states.values():  # the trial may be the same object as before, with new attributes
            of_state.discard(trial.number)
        if (rank_before := self._stopped.pop(trial.number, None)) is not None:
            self._ranked.pop(bisect.bisect_left(self._ranked, rank_before))
        self.trial_seconds -= self._seconds.pop(trial.number, 0.0)
        for key in trial.user_attrs:
            self._attributes.get(key, {}).pop(trial.number, None)

    def _enter(self, trial: FrozenTrial) -> None:
        """Take up what is to be known of a trial."""
        if COPIED_FROM in trial.user_attrs:
            return
        state = state_of(trial)
        self._states[state].add(trial.number)
        self._seconds[trial.number] = trial.user_attrs.get(RESULT, {}).get("time_total_s", 0.0)
        self.trial_seconds += self._seconds[trial.number]
        if state not in ENDED:
            if state == TrialState.WAITING:
                heapq.heappush(self._waiting, trial.number)
            for key, value in trial.user_attrs.items():
                self._attributes.setdefault(key, {})[trial.number] = value
            return
        end = trial.user_attrs.get(END)
        self.failures += end == TrialEnd.FAILED
        if end in (TrialEnd.FINISHED, TrialEnd.STOPPED) and "best" in trial.user_attrs[RESULT]:
            bisect.insort(self._ranked, rank(trial))
        if trial.state not in ENDED:
            self._stopped[trial.number] = rank(trial)
        if len(self.directions) > 1:
            self._extend_front(trial)
        elif trial.values is not None:
            self.best_value = min(self.best_value, trial.values[0])

    def _extend_front(self, trial: FrozenTrial) -> None:
        """Add a trial to the Pareto front, unless another one is better in every objective."""
        if trial.state != TrialState.COMPLETE or any(excess > 0 for excess in trial.constraints.values()):
            return
        if any(self._dominates(other, trial) for other in self._front):
            return
        self._front = [other for other in self._front if not self._dominates(trial, other)] + [trial]

    def _dominates(self, trial: FrozenTrial, other: FrozenTrial) -> bool:
        ours, theirs = _losses(trial, self.directions), _losses(other, self.directions)
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    def __len__(self) -> int:
        """Return the number of trials, whatever their state."""
        return sum(len(numbers) for numbers in self._states.values())

    @property
    def ended(self) -> int:
        """Number of trials that ended, in whatever way."""
        return sum(len(self._states[state]) for state in ENDED)

    @property
    def running(self) -> frozenset[int]:
        """Numbers of the trials that run, or that an interrupted search has left running."""
        return frozenset(self._states[TrialState.RUNNING])

    @property
    def first_waiting(self) -> int | None:
        """The smallest number of a trial that waits to be started, None where there is none."""
        while self._waiting and self._waiting[0] not in self._states[TrialState.WAITING]:
            heapq.heappop(self._waiting)
        return self._waiting[0] if self._waiting else None

    @property
    def next_number(self) -> int:
        """The number that a new trial of the study will have."""
        return len(self._trials)

    def having(self, attribute: str) -> Mapping[int, Any]:
        """Return the values of a user attribute of the trials that have not ended, by number.

        Trials without it are not in the mapping. An attribute cannot be removed from a trial in Optuna, so one that
        holds no more is set to None, and is in the mapping with this value.

        Args:
            attribute: name of the attribute, such as "paused".
        """
        return self._attributes.get(attribute, {})

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial as it was when it was read last."""
        return self._trials[number]

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers, those copied from earlier searches too. Not to be changed."""
        return self._trials

    def ranked(self, count: int | None = None) -> list[FrozenTrial]:
        """Return the trials that ended well, the best first.

        Args:
            count: how many of them; None for all.
        """
        return [self._trials[number] for *_, number in self._ranked[:count]]

    def smallest_error(self) -> float:
        """Return the smallest error of all trials that ended well or are paused; infinite where there is none."""
        results = [*(trial.user_attrs[RESULT] for trial in self.ranked()), *self.having(RESULT).values()]
        return min((result["best"] for result in results if result and "best" in result), default=math.inf)

    @property
    def front(self) -> list[FrozenTrial]:
        """The Pareto front with several objectives; empty with one."""
        return self._front


def _losses(trial: FrozenTrial, directions: list[StudyDirection]) -> list[float]:
    """Return the values of a trial with the signs that make smaller ones better."""
    signs = (-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in directions)
    return [sign * value for sign, value in zip(signs, trial.values or [], strict=True)]
