"""How far the trials of a search are: which of them goes on, and what the sampler learns from them.

Everything follows from the study, so that a search that was interrupted goes on as an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Mapping

from optuna.trial import FrozenTrial, TrialState

from mcrnn.config.space import Search
from mcrnn.search.attributes import COPIED_FROM, DECIDED, END, TARGET, VALUES_ATTRIBUTE, TrialEnd
from mcrnn.search.halving import SuccessiveHalving, rungs
from mcrnn.search.learning import ExpectedErrors, as_shown
from mcrnn.search.parameters import values_of
from mcrnn.search.study import ENDED, state_of
from mcrnn.search.trial_index import TrialIndex

BEST, NEWEST, RUNNING = 25, 75, 25
"""Most trials that a sampler with one objective is shown: those of the smallest expected errors, the newest ones, and
the newest of those that run.

TPE takes 25 trials at most for its good ones, and weighs old ones among the others down. Fitting takes time in
proportion to the number of trials, up to two seconds for 10,000."""
BADLY_ENDED = (TrialEnd.DIVERGED, TrialEnd.OUT_OF_MEMORY)
"""Ends of trials whose configuration cannot be used."""


class TrialProgress:
    """Knows how far each trial is.

    Args:
        search: what is searched.
        index: the trials of the study.
    """

    def __init__(self, search: Search, index: TrialIndex) -> None:
        self.search, self.index = search, index
        config = search.search
        self.halving = SuccessiveHalving(config.asha.reduction_factor) if config.early_stopping == "asha" else None
        self.expected_errors = ExpectedErrors()
        self._epochs = None if "train.epochs" in search.space else search.first_configuration().train.epochs
        """Number of epochs of every trial; None where it is searched."""
        self._longest = max(search.space.value("train.epochs", values) for values in search.space.corners())
        for trial in index.trials:
            self.note(trial)

    def steps(self, trial: FrozenTrial) -> list[int]:
        """Return the epochs at which a trial is compared with others, the last of which is its last epoch."""
        config = self.search.search
        epochs = self._epochs or self.search.configuration(values_of(trial)).train.epochs
        if config.early_stopping == "asha":
            return rungs(config.asha, epochs, self._longest)
        return [epochs] if config.early_stopping == "none" else list(range(1, epochs + 1))

    def note(self, trial: FrozenTrial) -> None:
        """Take up what is new of a trial, after the index has.

        Args:
            trial: the trial as it is in the study.
        """
        if trial.state == TrialState.FAIL and self.halving is not None:
            self.halving.complete.discard(trial.number)
        if VALUES_ATTRIBUTE not in trial.user_attrs or trial.state == TrialState.FAIL or len(self.index.directions) > 1:
            return
        steps = self.steps(trial)
        errors = dict(trial.intermediate_values)
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            errors[steps[-1]] = trial.value
        failed = trial.user_attrs.get(END) in BADLY_ENDED
        self.expected_errors.note(trial.number, steps, errors, failed=failed)
        if self.halving is not None and COPIED_FROM not in trial.user_attrs:
            target = _target(trial, steps)
            self.halving.note(trial.number, steps, errors, target, ended=state_of(trial) in ENDED, failed=failed)
            if trial.state == TrialState.PRUNED:  # a user has stopped it on its way
                self.halving.complete.discard(trial.number)

    @property
    def paused(self) -> Mapping[int, int]:
        """For each paused trial, by its number, the epoch to which it goes on."""
        return {} if self.halving is None else self.halving.next_target

    def target(self, number: int) -> int | None:
        """Return the epoch to which a trial is trained before it is compared; None where it runs to its end."""
        if self.halving is None:
            return None
        trial = self.index.trial(number)
        return _target(trial, self.steps(trial))

    def promotion(self) -> int | None:
        """Return the number of the paused trial that goes on next, None where none is among the best of its rung."""
        return None if self.halving is None else self.halving.promotion()

    def last_promotion(self) -> int | None:
        """Return the trial that goes on when all have been started and none is among the best of its rung.

        With few trials none would be trained to its end. So those of the smallest expected errors go on until there are
        as many as the confirmation compares.
        """
        confirm = self.search.search.confirm
        wanted = confirm.configurations if confirm else 1
        if self.halving is None or len(self.halving.complete) >= wanted or not self.paused:
            return None
        return min(self.paused, key=lambda number: (self.expected_errors.expected(number), number))

    def shown(self, hidden: int) -> list[FrozenTrial]:
        """Return the trials that a sampler learns from, as it shall see them, in the order of their numbers.

        Args:
            hidden: number of the trial that is drawn; after an interruption it may have some of its values already.
        """
        index = self.index
        if len(index.directions) > 1:  # NSGA-II looks for the trials of its last generation among all
            return [trial for trial in index.trials if trial.number != hidden]
        numbers = set(self.expected_errors.best(BEST)) | self.expected_errors.newest(NEWEST)
        numbers |= set(sorted(index.running - self.paused.keys() - {hidden})[-RUNNING:])
        return [
            as_shown(index.trial(number), self.expected_errors.expected(number))
            for number in sorted(numbers - {hidden})
        ]


def _target(trial: FrozenTrial, steps: list[int]) -> int:
    """Return the epoch to which a trial is trained.

    Version 0.1.0 did not pause trials. One that it left running, which has its attribute "decided", runs to its end.

    Args:
        trial: the trial as it is in the study.
        steps: the epochs at which it is compared.
    """
    return trial.user_attrs.get(TARGET, steps[-1] if DECIDED in trial.user_attrs else steps[0])
