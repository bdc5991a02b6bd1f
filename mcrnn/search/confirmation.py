"""The best configuration of each architecture, trained again with several seeds.

A trial is good by its configuration or by luck; the mean over seeds tells which. The champion is the best seed of the
configuration with the best mean, and carries mean and spread of all of them.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from mcrnn.config.paths import Values
from mcrnn.config.space import Search
from mcrnn.storage.location import Location
from mcrnn.tracking.run_folder import END_FILE, read_json, read_metrics
from mcrnn.training.session import End

FOLDER = "confirmation"


@dataclass(frozen=True)
class Retraining:
    """One training of a configuration that was found."""

    trial: int
    """where it was found"""
    values: Values
    seed: int

    @property
    def name(self) -> str:
        """Of its run, and of its folder below the search's."""
        return f"trial-{self.trial}-seed-{self.seed}"

    def folder(self, search_folder: Location) -> Location:
        """Where it keeps its checkpoints and its model."""
        return search_folder.child(f"{FOLDER}/{self.name}")

    def finished(self, search_folder: Location) -> bool:
        """Whether it has come to its end."""
        return read_json(self.folder(search_folder), END_FILE) is not None

    def error(self, search_folder: Location) -> float | None:
        """Its best, where it has ended well."""
        ended = read_json(self.folder(search_folder), END_FILE)
        if ended is None or ended["end"] not in (End.FINISHED, End.STOPPED_EARLY):
            return None
        return read_metrics(self.folder(search_folder))[-1]["best"]


def planned_retrainings(search: Search, trials: list[FrozenTrial]) -> list[Retraining]:
    """The trainings of the best trial of each architecture, of trials that are sorted, the best first."""
    if search.search.confirm is None:
        return []
    best: dict[str, FrozenTrial] = {}
    for trial in trials:
        best.setdefault(_architecture(search, trial), trial)
    plan = []
    for trial in best.values():
        values = search.values(trial.params)
        first = search.configuration(values).train.seed
        plan += [
            Retraining(trial.number, values | {"train.seed": seed}, seed)
            for seed in range(first + 1, first + 1 + search.search.confirm.seeds)  # the trial's own was the lucky one
        ]
    return plan


def _architecture(search: Search, trial: FrozenTrial) -> str:
    return search.configuration(search.values(trial.params)).model.architecture


def summarize_seeds(search: Search, folder: Location, plan: list[Retraining]) -> list[dict[str, Any]]:
    """A row for each configuration with mean, deviation and seeds, the best mean first."""
    rows = []
    for number in dict.fromkeys(retraining.trial for retraining in plan):
        mine = [retraining for retraining in plan if retraining.trial == number]
        errors = {retraining.name: retraining.error(folder) for retraining in mine}
        good = {name: error for name, error in errors.items() if error is not None}
        if not good:
            continue
        values = {path: value for path, value in mine[0].values.items() if path != "train.seed"}
        rows.append(
            {
                "trial": number,
                "architecture": search.configuration(mine[0].values).model.architecture,
                "values": values,
                "mean": statistics.fmean(good.values()),
                "std": statistics.stdev(good.values()) if len(good) > 1 else 0.0,
                "seeds": len(good),
                "failed": len(errors) - len(good),
                "best": min(good.values()),
                "folder": f"{FOLDER}/{min(good, key=lambda name: good[name])}",
            }
        )
    # a configuration with a seed that failed comes after those without
    return sorted(rows, key=lambda row: (row["failed"], row["mean"]))
