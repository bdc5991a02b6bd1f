"""Confirmation: the best configurations of a search are trained again with other seeds.

The error of one training may be small by luck of its seed, and the trial with the smallest of many errors was the
luckiest. So the best `search.confirm.configurations` of all trials compete once more, with new seeds only. Seeds are
given by sequential halving (Karnin et al. 2013): in each round the configurations that are left get further seeds, and
the better half of them goes on, until the last two have `search.confirm.seeds` each. The model that is registered is
the best seed of the configuration with the smallest mean error, and its version carries mean and confidence interval.

Which training comes next follows from those that have ended, so a confirmation that was killed goes on as if it had not
been.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from mcrnn.config.paths import Values
from mcrnn.config.search import ConfirmConfig
from mcrnn.config.space import Search
from mcrnn.search.parameters import values_of
from mcrnn.tracking.run_folder import CONFIRMATION_FOLDER, RunFolder, SearchFolder
from mcrnn.training.session import End

SEED = "train.seed"
CONFIDENCE = 0.95
"""Confidence level of the intervals of mean errors."""


def competitors(search: Search, confirm: ConfirmConfig, ranked: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials whose configurations compete: the best ones, each configuration once.

    Args:
        search: the search.
        confirm: section `search.confirm`.
        ranked: trials that ended well, the best first.
    """
    found: dict[str, FrozenTrial] = {}
    for trial in ranked:
        values = {path: value for path, value in values_of(trial).items() if path != SEED}
        found.setdefault(json.dumps(values, sort_keys=True), trial)
    return list(found.values())[: confirm.configurations]


@dataclass(frozen=True)
class Retraining:
    """One training of the confirmation."""

    trial: int
    """Number of the trial that found the configuration."""
    values: Values
    """Value of each searched field by dotted path, and of `train.seed`."""
    seed: int
    folder: RunFolder

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end, whichever it was."""
        return self.folder.read_end() is not None

    @property
    def error(self) -> float | None:
        """The best validation error; None unless the training completed normally."""
        ended = self.folder.read_end()
        if ended is None or ended.end not in (End.FINISHED, End.STOPPED_EARLY):
            return None
        return self.folder.read_metrics()[-1]["best"]

    @property
    def seconds(self) -> float:
        """The seconds that its epochs took so far."""
        return sum(metrics.get("seconds", 0.0) for metrics in self.folder.read_metrics())


@dataclass(frozen=True)
class Competitor:
    """A configuration that competes, with its trainings in the order of their seeds."""

    trial: int
    """Number of the trial that found the configuration."""
    values: Values
    """Value of each searched field by dotted path."""
    retrainings: list[Retraining]
    errors: list[float | None] = field(default_factory=list)
    """Errors of the trainings before the first one that has not ended; None for one that has failed."""

    def rank(self, seeds: int) -> tuple[int, float]:
        """Return a key by which competitors are sorted, the best first: failed seeds, then the mean error.

        Args:
            seeds: number of seeds that count, so that all competitors are compared by the same number.
        """
        errors = self.errors[:seeds]
        good = [error for error in errors if error is not None]
        return len(errors) - len(good), statistics.fmean(good) if good else math.inf


@dataclass(frozen=True)
class Confirmation:
    """The confirmation of a search, as far as it has come on disk. It does not change when trainings end later."""

    competitors: list[Competitor]
    """All configurations that compete, the best of the search first."""
    order: list[Competitor]
    """The same in the order of the confirmation, the best first."""
    missing: list[list[Retraining]]
    """Trainings of the current round that have not ended, in one list for each seed; empty where all rounds are
    complete."""
    competing: int
    """Number of configurations in the current round."""
    started: list[Retraining]
    """Trainings of the rounds so far, with those of the current round."""

    @classmethod
    def of(cls, search: Search, folder: SearchFolder, ranked: list[FrozenTrial]) -> Confirmation:
        """Read from disk how far a confirmation has come.

        Args:
            search: the search.
            folder: folder of the search.
            ranked: trials that ended well, the best first.
        """
        confirm = search.search.confirm
        if confirm is None or not ranked:
            return cls([], [], [], 0, [])
        all_of_them = [
            _competitor(search, folder, trial, confirm.seeds) for trial in competitors(search, confirm, ranked)
        ]
        left, seeds = all_of_them, 0
        out: list[Competitor] = []
        started: list[Retraining] = []
        missing: list[list[Retraining]] = []
        for each in confirm.rounds(len(all_of_them)):
            ranked_so_far = _ranked(left, seeds)
            left, out = ranked_so_far[: each.configurations], ranked_so_far[each.configurations :] + out
            due = [[competitor.retrainings[seed] for competitor in left] for seed in range(seeds, each.seeds)]
            started += itertools.chain.from_iterable(due)
            unfinished = ([retraining for retraining in of_seed if not retraining.finished] for of_seed in due)
            missing = [of_seed for of_seed in unfinished if of_seed]
            if missing:
                break
            seeds = each.seeds
        left = _ranked(left, min(len(competitor.errors) for competitor in left))
        return cls(all_of_them, left + out, missing, len(left), started)

    @property
    def is_valid(self) -> bool:
        """Whether each configuration has had one seed, because the best of some of them would say nothing."""
        return bool(self.competitors) and all(competitor.errors for competitor in self.competitors)

    def rows(self, search: Search) -> list[dict[str, Any]]:
        """Summarize the errors of each configuration over its seeds, the best configuration first.

        Returns:
            For each configuration with an error a row with mean, standard deviation (0 for one seed), confidence
            interval of the mean (None for one seed), seeds that completed and failed, and the folder of the best seed.
            Empty while the confirmation is not valid.
        """
        if not self.is_valid:
            return []
        return [_row(search, each) for each in self.order if any(error is not None for error in each.errors)]


def _ranked(competitors: list[Competitor], seeds: int) -> list[Competitor]:
    """Sort competitors by their first seeds, the best first; those that are alike stay in their order."""
    return sorted(competitors, key=lambda competitor: competitor.rank(seeds))


def _competitor(search: Search, folder: SearchFolder, trial: FrozenTrial, seeds: int) -> Competitor:
    values = values_of(trial)
    first = search.configuration(values).train.seed + 1  # the trial's own seed was the lucky one
    retrainings = [
        Retraining(trial.number, values | {SEED: seed}, seed, folder.retraining(f"trial-{trial.number}-seed-{seed}"))
        for seed in range(first, first + seeds)
    ]
    errors = []
    for retraining in retrainings:
        if not retraining.finished:
            break
        errors.append(retraining.error)
    return Competitor(trial.number, {path: v for path, v in values.items() if path != SEED}, retrainings, errors)


def statement(row: dict[str, Any], configurations: int, trials: int) -> str:
    """Say what is known of the error of a confirmed configuration, and what it was chosen from.

    Args:
        row: the configuration; see `Confirmation.rows`.
        configurations: number of configurations that competed.
        trials: number of trials of the search.
    """
    seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
    bounds = "no interval, as there is one value only"
    if row["interval"] is not None:
        bounds = f"{100 * CONFIDENCE:.0f} % interval {row['interval'][0]:.4f} to {row['interval'][1]:.4f}"
    best = "the only configuration" if configurations == 1 else f"the best of {configurations} configurations"
    of = "1 trial" if trials == 1 else f"{trials} trials"
    return f"mean error {row['mean']:.4f}, {bounds}, over {seeds}; {best} that competed, of {of}"


def _row(search: Search, competitor: Competitor) -> dict[str, Any]:
    good = {r.name: e for r, e in zip(competitor.retrainings, competitor.errors, strict=False) if e is not None}
    mean = statistics.fmean(good.values())
    std = statistics.stdev(good.values()) if len(good) > 1 else 0.0
    return {
        "trial": competitor.trial,
        "architecture": search.configuration(competitor.values).model.architecture,
        "values": competitor.values,
        "mean": mean,
        "std": std,
        "interval": confidence_interval(mean, std, len(good)),
        "seeds": len(good),
        "failed": len(competitor.errors) - len(good),
        "best": min(good.values()),
        "folder": f"{CONFIRMATION_FOLDER}/{min(good, key=lambda name: good[name])}",
    }


def confidence_interval(mean: float, std: float, count: int) -> tuple[float, float] | None:
    """Return the confidence interval of the mean of positive values, by Student's t distribution of its logarithm.

    The standard error of the logarithm is that of the mean divided by the mean (delta method). So the bounds are the
    mean divided and multiplied by the same factor, and the lower one is positive for any sample.

    Args:
        mean: mean of the sample.
        std: its standard deviation, with `count` - 1 degrees of freedom.
        count: size of the sample.

    Returns:
        The bounds; None for a sample of one value, which says nothing about its spread.
    """
    if count < 2:
        return None
    if std == 0:
        return mean, mean
    from scipy.special import stdtrit

    factor = math.exp(float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * std / mean / math.sqrt(count))
    return mean / factor, mean * factor
