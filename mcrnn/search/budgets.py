"""The budgets of a search: how many trials it runs, and how much time they and the confirmation may take.

`search.hours` and `search.trial_hours` are budgets of the search and of its confirmation together. So no more trials
are proposed once what is left is what the confirmation is expected to take, or a third of the budget if that is less,
and trainings of the confirmation start only if they are expected to end in time. Everything that is spent is written
down in the study or in the folders of trainings, so that it is counted once, however often a search is started.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial

from mcrnn.config.search import DEFAULT_TRIALS, SearchConfig
from mcrnn.config.space import Search
from mcrnn.search.attributes import END, ERROR, HOURS, RESULT, TrialEnd
from mcrnn.search.confirmation import Confirmation, Retraining, competitors
from mcrnn.search.parameters import values_of
from mcrnn.search.trial_index import TrialIndex, rank

TIME_IS_UP = "time is up"
"""Attribute of the study: that no time is left for another trial, as a sentence and the limits for which it holds."""
FEWEST_AT_A_TIME = 8
"""Trials at a time that are always allowed, however few trials a search has."""
CONFIRMATION_SHARE = 1 / 3
"""Largest share of a limit of time that trials leave to the confirmation. Where that is not enough for all of its
seeds, it has fewer. Where it is not enough for one seed of each configuration, trials get all the time."""
TOLERANCE = 1e-9
"""Hours by which a sum may exceed its limit, for rounding."""


def budget(index: TrialIndex, config: SearchConfig) -> int:
    """Return the number of trials of a search: `search.trials`, by default a whole grid, or `DEFAULT_TRIALS`.

    A grid has no more trials than combinations: they are all in the study when it is opened.
    """
    if config.sampler == "grid":
        return len(index) if config.trials is None else min(config.trials, len(index))
    return DEFAULT_TRIALS if config.trials is None else config.trials


def useful_concurrency(config: SearchConfig, room: int) -> int:
    """Return how many trials should run at a time, where the configuration does not say.

    A sampler that learns proposes at random until the first trials have been compared. If all trials of a search ran at
    the same time, it would never propose anything else. So no more than a quarter of the trials run at a time, but at
    least `FEWEST_AT_A_TIME`.

    Args:
        config: section `search` of the configuration.
        room: trials at a time for which the cluster has room.
    """
    if config.concurrency is not None or config.sampler in ("random", "grid"):
        return min(config.concurrency or room, room)
    return min(room, max(FEWEST_AT_A_TIME, (config.trials or DEFAULT_TRIALS) // 4))


def stop_reason(study: optuna.Study, config: SearchConfig, index: TrialIndex | None = None) -> str | None:
    """Return why a search has come to its end, as far as the study tells; None where it goes on.

    Args:
        study: study of the search.
        config: section `search` of the configuration, with the budgets.
        index: the trials of the study; None to read them.
    """
    index = TrialIndex(study) if index is None else index
    if index.ended >= budget(index, config):
        return "all trials are done"
    attributes = study.user_attrs
    recorded = attributes.get(TIME_IS_UP)
    if recorded is not None and recorded["limits"] == time_limits(config):
        return recorded["reason"]
    if config.hours is not None and attributes.get(HOURS, 0.0) >= config.hours:
        return f"its {config.hours:g} hours are spent"
    if config.trial_hours is not None and index.trial_seconds / 3600 >= config.trial_hours:
        return f"its {config.trial_hours:g} trial hours are spent"
    if config.goal is not None and index.best_value <= config.goal:
        return f"the goal of {config.goal:g} is reached"
    return f"{index.failures} trials failed{_last_error(index)}" if index.failures >= config.failures else None


def _last_error(index: TrialIndex) -> str:
    """Return what ended the last trial that failed, as the end of a sentence; empty where that is not known."""
    failed = [t for t in index.trials if t.user_attrs.get(END) == TrialEnd.FAILED and ERROR in t.user_attrs]
    if not failed:
        return ""
    last = max(failed, key=lambda t: (t.datetime_complete is not None and t.datetime_complete.timestamp(), t.number))
    return f"; the last was trial {last.number}: {last.user_attrs[ERROR]}"


def time_limits(config: SearchConfig) -> dict[str, Any]:
    """Return the fields on which it depends whether there is time for another trial or training."""
    confirm = None if config.confirm is None else config.confirm.model_dump()
    return {"hours": config.hours, "trial_hours": config.trial_hours, "confirm": confirm}


class ConfirmationTime(NamedTuple):
    """The time that trainings of a confirmation take."""

    hours: float
    """Hours, with as many of them at a time as the search runs."""
    trial_hours: float
    """Hours that they take together."""


class Budgets:
    """Counts what a search and its confirmation have spent, and says what they still may start.

    Args:
        study: study of the search.
        search: what is searched.
        index: the trials of the study, kept up to date by whoever changes them; None to read them.
        clock: gives the time in seconds.
        concurrency: trainings at a time.
    """

    def __init__(
        self,
        study: optuna.Study,
        search: Search,
        index: TrialIndex | None = None,
        clock: Callable[[], float] = time.monotonic,
        concurrency: int = 1,
    ) -> None:
        self.study, self.search, self.config = study, search, search.search
        self.index = TrialIndex(study) if index is None else index
        self.clock, self.concurrency = clock, concurrency
        self.confirmation_seconds = 0.0
        """Seconds that the trainings of the confirmation took together."""
        self._started_at, self._noted_at = clock(), clock()
        self._hours_before = study.user_attrs.get(HOURS, 0.0)

    @property
    def hours(self) -> float:
        """Hours that the search and its confirmation have run, over all their starts."""
        return self._hours_before + (self.clock() - self._started_at) / 3600

    @property
    def trial_hours(self) -> float:
        """Hours that all trials and all trainings of the confirmation took, added up."""
        return (self.index.trial_seconds + self.confirmation_seconds) / 3600

    @property
    def _limited(self) -> bool:
        return self.config.hours is not None or self.config.trial_hours is not None

    def note_hours(self, every: float = 0.0) -> None:
        """Write the hours into the study, so that the next start of the search goes on from there.

        Args:
            every: seconds since they were written before which they are not written again.
        """
        if self.clock() - self._noted_at >= every:
            self.study.set_user_attr(HOURS, self.hours)
            self._noted_at = self.clock()

    def stop_reason(self, running: int = 0) -> str | None:
        """Return why no further trial is to be proposed; None where one is.

        Whether there is time for another trial depends on what is expected of it and of the confirmation, which changes
        from trial to trial. So a decision that there is none is written into the study and holds until a limit changes.

        Args:
            running: number of the trials that run.
        """
        reason = stop_reason(self.study, self.config, self.index)
        if reason is None and (reason := self._time_is_up(running)) is not None:
            self.study.set_user_attr(TIME_IS_UP, {"reason": reason, "limits": time_limits(self.config)})
        if reason is not None:
            self.note_hours()
        return reason

    def _time_is_up(self, running: int) -> str | None:
        if not self._limited:
            return None
        tried = self.index.ended + len(self.index.having(RESULT))
        trial = self.index.trial_seconds / 3600 / tried if tried else 0.0
        whole, least = self.expected_confirmation()
        return _over(self.config.hours, "hours", self.hours, trial, whole.hours, least.hours) or _over(
            self.config.trial_hours,
            "trial hours",
            self.trial_hours,
            trial * (running + 1),
            whole.trial_hours,
            least.trial_hours,
        )

    def expected_confirmation(self) -> tuple[ConfirmationTime, ConfirmationTime]:
        """Return the time that a confirmation of the best trials so far would take: in all, and with one seed of each.

        Paused trials count as far as they are needed: the end of the search stops them, and they compete where too few
        trials were trained to their end.
        """
        confirm, nothing = self.config.confirm, ConfirmationTime(0.0, 0.0)
        if confirm is None:
            return nothing, nothing
        # among a few more trials than configurations there are enough that differ
        enough = 2 * confirm.configurations
        best = self.index.ranked(enough)
        if len(best) < enough:
            results = self.index.having(RESULT)
            paused = [self.index.trial(number) for number, result in results.items() if "best" in result]
            best += heapq.nsmallest(enough - len(best), paused, key=rank)
        trials = competitors(self.search, confirm, best)
        if not trials:
            return nothing, nothing
        training = statistics.fmean(training_seconds(self.search, trial) for trial in trials) / 3600

        def time_of(rounds: list[int]) -> ConfirmationTime:
            in_turn = sum(math.ceil(trainings / self.concurrency) for trainings in rounds)
            return ConfirmationTime(training * in_turn, training * sum(rounds))

        return time_of([each.trainings for each in confirm.rounds(len(trials))]), time_of([len(trials)])

    def affordable_trainings(self, confirmation: Confirmation) -> list[Retraining]:
        """Return the missing trainings of the confirmation's current round for which there is time.

        Args:
            confirmation: how far the confirmation is.

        Returns:
            All of them where there is no limit of time. Otherwise those of the first seeds, each for all configurations
            of the round: only about as many trainings as run at a time, because how long these take tells what there
            is time for afterwards. Empty where there is no time for one seed of each.
        """
        seeds, spent = len(confirmation.missing), self.trial_hours
        if self._limited and seeds:
            seeds = min(seeds, math.ceil(self.concurrency / confirmation.competing))
        for count in range(seeds, 0, -1):
            trainings = list(itertools.chain.from_iterable(confirmation.missing[:count]))
            each = statistics.fmean(self._expected_seconds(confirmation, training) for training in trainings) / 3600
            needs = (
                (self.hours + math.ceil(len(trainings) / self.concurrency) * each, self.config.hours),
                (spent + len(trainings) * each, self.config.trial_hours),
            )
            if all(limit is None or needed <= limit + TOLERANCE for needed, limit in needs):
                return trainings
        return []

    def _expected_seconds(self, confirmation: Confirmation, training: Retraining) -> float:
        """Return what a training is expected to take: as long as those of its configuration so far, or as its trial."""
        of_trial = next(each for each in confirmation.competitors if each.trial == training.trial)
        measured = [each.seconds for each in of_trial.retrainings[: len(of_trial.errors)]]
        if measured:
            return statistics.fmean(measured)
        return training_seconds(self.search, self.index.trial(training.trial))


def _over(
    limit: float | None, name: str, spent: float, trials: float, confirmation: float, least_confirmation: float
) -> str | None:
    """Return why one more trial would exceed a limit of time; None where it would not. All times are in hours.

    Args:
        limit: the limit; None for none.
        name: its name.
        spent: what is spent.
        trials: what the trials that run and one more are expected to take.
        confirmation: what the confirmation is expected to take.
        least_confirmation: what it would take with one seed of each configuration.
    """
    if limit is None:
        return None
    if spent >= limit:
        return f"its {limit:g} {name} are spent"
    share = CONFIRMATION_SHARE * limit
    reserved = min(confirmation, share) if least_confirmation <= share else 0.0
    if spent + trials + reserved <= limit + TOLERANCE:
        return None
    before = " before the confirmation" if reserved else ""
    return f"its {limit:g} {name} leave no time for another trial{before}"


def training_seconds(search: Search, trial: FrozenTrial) -> float:
    """Return the seconds that a trial would have taken if it had not been stopped early; 0 where they are not known."""
    result = trial.user_attrs.get(RESULT, {})
    seconds, epoch = result.get("time_total_s", 0.0), result.get("epoch", 0)
    if trial.user_attrs.get(END) == TrialEnd.FINISHED or not epoch:
        return seconds
    return seconds / epoch * search.configuration(values_of(trial)).train.epochs
