"""Confirmation: the best configuration of each architecture, trained again with several seeds.

The error of one training may be small by luck of its seed; the mean over seeds tells. The model that is registered is
the best seed of the configuration with the smallest mean error, and its version carries mean and standard deviation.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from mcrnn.config.paths import Values
from mcrnn.config.space import Search
from mcrnn.search.parameters import values_of
from mcrnn.tracking.run_folder import CONFIRMATION_FOLDER, RunFolder, SearchFolder
from mcrnn.training.session import End


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


def planned_retrainings(search: Search, folder: SearchFolder, trials: list[FrozenTrial]) -> list[Retraining]:
    """List the trainings of the confirmation: `search.confirm.seeds` of the best trial of each architecture.

    Args:
        search: the search.
        folder: folder of the search.
        trials: trials that ended well, the best first.
    """
    if search.search.confirm is None:
        return []
    best: dict[str, FrozenTrial] = {}
    for trial in trials:
        best.setdefault(search.configuration(values_of(trial)).model.architecture, trial)
    plan = []
    for trial in best.values():
        values = values_of(trial)
        first = search.configuration(values).train.seed + 1  # the trial's own seed was the lucky one
        plan += [
            Retraining(
                trial.number,
                values | {"train.seed": seed},
                seed,
                folder.retraining(f"trial-{trial.number}-seed-{seed}"),
            )
            for seed in range(first, first + search.search.confirm.seeds)
        ]
    return plan


def summarize_seeds(search: Search, plan: list[Retraining]) -> list[dict[str, Any]]:
    """Summarize the errors of each configuration over its seeds.

    Returns:
        For each configuration with an error a row with mean, standard deviation (0 for one seed), seeds that completed
        and failed, and the folder of the best seed; those without a failed seed first, then by mean error.
    """
    rows = []
    for number in dict.fromkeys(retraining.trial for retraining in plan):
        of_trial = [retraining for retraining in plan if retraining.trial == number]
        errors = {retraining.name: retraining.error for retraining in of_trial}
        good = {name: error for name, error in errors.items() if error is not None}
        if not good:
            continue
        values = {path: value for path, value in of_trial[0].values.items() if path != "train.seed"}
        rows.append(
            {
                "trial": number,
                "architecture": search.configuration(of_trial[0].values).model.architecture,
                "values": values,
                "mean": statistics.fmean(good.values()),
                "std": statistics.stdev(good.values()) if len(good) > 1 else 0.0,
                "seeds": len(good),
                "failed": len(errors) - len(good),
                "best": min(good.values()),
                "folder": f"{CONFIRMATION_FOLDER}/{min(good, key=lambda name: good[name])}",
            }
        )
    return sorted(rows, key=lambda row: (row["failed"], row["mean"]))
