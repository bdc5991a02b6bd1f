"""The searches that are compared, each driven through its own classes.

random: random configurations, all trained to the end.
ray-tune: plain Ray Tune as its documentation has it, `OptunaSearch` with `ASHAScheduler`.
optuna: plain Optuna, `TPESampler` with `HyperbandPruner`.
bohb, mobster: BOHB and MOBSTER as the documentation of Syne Tune has them, where it is installed.
mcrnn: the searcher of this version, with its defaults.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import optuna

from benchmarks.curves.simulation import Job, Player
from benchmarks.curves.syne_tune_peers import SyneTune
from mcrnn.config.paths import Values
from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search, Space
from mcrnn.search.study import open_study
from mcrnn.search.tune_adapter import StudyScheduler, StudySearcher
from mcrnn.training.session import OBJECTIVE, PENALTY


def draw_plainly(trial: optuna.Trial, search: Search) -> Values:
    """Draw the values of a trial as a user of Optuna would: a bound that names another field is its value."""
    values: Values = {}
    for path in search.space:
        entry = search.space.active_entry(path, values)
        if entry is None:
            continue
        if entry.choice is not None:
            values[path] = trial.suggest_categorical(path, entry.choice)
            continue
        low, high = entry.bounds or (0, 0)
        if entry.int_range is not None:
            values[path] = trial.suggest_int(path, int(low), int(high), log=entry.log, step=int(entry.step or 1))
        else:
            values[path] = trial.suggest_float(path, float(low), float(high), log=entry.log, step=entry.step)
    return values


class FakeTrial:
    """A Ray Tune trial as far as searchers and schedulers look at it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class RayTune:
    """Plain Ray Tune: a searcher and a scheduler of its own."""

    def __init__(self, search: Search, seed: int, epochs: int, workers: int) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        self.drawn: dict[str, Values] = {}

        def space(trial: optuna.Trial) -> dict[str, Any]:
            return {"values": draw_plainly(trial, search)}

        np.random.seed(seed)
        self.searcher = OptunaSearch(space, metric=OBJECTIVE, mode="min", seed=seed)
        self.scheduler: Any = ASHAScheduler(metric=OBJECTIVE, mode="min", max_t=epochs)
        self.numbers = itertools.count()

    def next_job(self) -> Job:
        trial_id = str(next(self.numbers))
        proposal: Any = self.searcher.suggest(trial_id)
        self.scheduler.on_trial_add(None, FakeTrial(trial_id))
        return Job(trial_id, proposal["values"])

    def epoch_ended(self, job: Job, epoch: int, error: float, epochs: int) -> bool:
        result = {OBJECTIVE: error, "training_iteration": epoch}
        self.searcher.on_trial_result(job.trial, result)
        return self.scheduler.on_trial_result(None, FakeTrial(job.trial), result) == "STOP"

    def job_ended(self, job: Job, epoch: int, error: float, *, diverged: bool, epochs: int) -> None:
        result = {OBJECTIVE: error, "training_iteration": epoch}
        self.scheduler.on_trial_complete(None, FakeTrial(job.trial), result)
        self.searcher.on_trial_complete(job.trial, result)


class PlainOptuna:
    """Plain Optuna: TPE and Hyperband, or random without a pruner."""

    def __init__(self, search: Search, seed: int, epochs: int, workers: int, *, random: bool = False) -> None:
        sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=seed)
        pruner: optuna.pruners.BasePruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs)
        if random:
            sampler, pruner = optuna.samplers.RandomSampler(seed=seed), optuna.pruners.NopPruner()
        self.search = search
        self.study = optuna.create_study(sampler=sampler, pruner=pruner, study_name="plain")
        self.running: dict[str, optuna.Trial] = {}
        self.pruned: set[str] = set()

    def next_job(self) -> Job:
        trial = self.study.ask()
        self.running[str(trial.number)] = trial
        return Job(str(trial.number), draw_plainly(trial, self.search))

    def epoch_ended(self, job: Job, epoch: int, error: float, epochs: int) -> bool:
        trial = self.running[job.trial]
        trial.report(error, epoch)
        if epoch < epochs and trial.should_prune():
            self.pruned.add(job.trial)
            return True
        return False

    def job_ended(self, job: Job, epoch: int, error: float, *, diverged: bool, epochs: int) -> None:
        trial = self.running.pop(job.trial)
        if job.trial in self.pruned:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, error)


class Ours:
    """The searcher and the scheduler of a live search of mcrnn, on a study in memory."""

    def __init__(self, search: Search, seed: int, epochs: int, workers: int, **changes: Any) -> None:
        content = search.search.model_dump(exclude_unset=True) | {"trials": 100_000, "seed": seed, "confirm": None}
        base = search.space.base | {"train": search.space.base["train"] | {"epochs": epochs}}
        search = Search(Space(base, search.space.entries), SearchConfig.model_validate(content | changes))
        self.searcher = StudySearcher(open_study(None, search), search)
        self.scheduler = StudyScheduler(self.searcher)
        self.numbers = itertools.count()
        self.best: dict[int, float] = {}
        self.epochs: dict[int, int] = {}
        """Epochs that each trial has been trained for, by its number."""
        self.trials: dict[str, int] = {}
        """Number of the trial by the id that stands for a trial of Ray Tune."""

    def next_job(self) -> Job | None:
        trial_id = str(next(self.numbers))
        proposal = self.searcher.suggest(trial_id)
        if not isinstance(proposal, dict):
            return None
        number = self.trials[trial_id] = proposal["number"]
        return Job(
            str(number), proposal["values"], self.epochs.get(number, 0) + 1, proposal.get("target"), leg=trial_id
        )

    def _result(self, job: Job, epoch: int, error: float, epochs: int) -> dict[str, Any]:
        number = int(job.trial)
        best = self.best[number] = min(error, self.best.get(number, PENALTY))
        self.epochs[number] = epoch
        return {OBJECTIVE: error, "best": best, "epoch": epoch, "epochs": epochs, "diverged": 0.0}

    def epoch_ended(self, job: Job, epoch: int, error: float, epochs: int) -> bool:
        result = self._result(job, epoch, error, epochs)
        return self.scheduler.on_trial_result(None, FakeTrial(job.leg), result) == "STOP"

    def job_ended(self, job: Job, epoch: int, error: float, *, diverged: bool, epochs: int) -> None:
        result = self._result(job, epoch, error, epochs) | {"diverged": float(diverged)}
        self.searcher.on_trial_complete(job.leg, result)


PEERS: dict[str, Callable[..., Player]] = {
    "random": lambda *arguments: PlainOptuna(*arguments, random=True),
    "ray-tune": RayTune,
    "optuna": PlainOptuna,
    "bohb": partial(SyneTune, baseline="BOHB"),
    "mobster": partial(SyneTune, baseline="MOBSTER"),
    "mcrnn": Ours,
}
"""Makes the searcher of each name from the search, a seed, the number of epochs and the number of workers."""
