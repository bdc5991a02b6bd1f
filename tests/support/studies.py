"""Studies of made-up trials, which end at once: no Ray, and nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import optuna

from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search, Space, SpaceEntry
from mcrnn.search.journal import Journal
from mcrnn.search.search_run import SearchRun
from mcrnn.search.study import open_study
from mcrnn.search.tune_adapter import StudyScheduler, StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import SearchFolder
from mcrnn.training.session import OBJECTIVE

ASHA = {"grace_epochs": 1, "reduction_factor": 2}
"""Early stopping, of four epochs: rungs after 1, 2 and 4."""
ERRORS = [0.5, 0.6, 0.4, 0.45, 0.7, 0.3]
"""Errors of six trials."""
ARCHITECTURES = ["convgru", "convlstm", "minconvgru"]


def search(trials: int = 6, **options: object) -> Search:
    base = {"name": "test", "data": {"store": "s"}, "model": {}, "train": {"epochs": 4}}
    entries = {
        "model.architecture": [SpaceEntry(choice=ARCHITECTURES)],
        "model.hidden_size": [SpaceEntry.model_validate({"int": [4, 16], "step": 4})],
        "train.learning_rate": [SpaceEntry.model_validate({"float": [1e-4, 1e-2], "log": True})],
    }
    return Search(Space(base, entries), SearchConfig.model_validate({"trials": trials, **options}))


def study_in(folder: Path, plan: Search, earlier: Iterable[optuna.Study] = ()) -> optuna.Study:
    return open_study(Journal.open(LocalFolder(folder)), plan, earlier)


def result(error: float, epoch: int = 4, diverged: float = 0.0) -> dict[str, float]:
    return {"epoch": epoch, OBJECTIVE: error, "best": error, "diverged": diverged}


def play(folder: Path, plan: Search, stop_after: int | None = None) -> list[dict]:
    """Run a search's trials in order with made-up errors; returns the values of each."""
    searcher = StudySearcher(study_in(folder, plan), plan)
    values = []
    while len(values) != stop_after and isinstance(proposal := searcher.suggest(str(len(values))), dict):
        trial_id = str(len(values))
        values.append(proposal["values"])
        error = proposal["values"]["train.learning_rate"] * proposal["values"]["model.hidden_size"]
        searcher.on_trial_complete(trial_id, result(error))
    return values


class Told:
    """A Tune trial as far as a scheduler looks at it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def run_part(searcher: StudySearcher, proposal: dict[str, Any], error: float, done: int, epochs: int) -> int:
    """Train a trial of a constant error as far as it was proposed, or until it is stopped; returns its last epoch."""
    scheduler, epoch, last = StudyScheduler(searcher), done, {}
    for epoch in range(done + 1, proposal.get("target", epochs) + 1):
        last = result(error, epoch=epoch) | {"epochs": epochs}
        if scheduler.on_trial_result(None, Told("t"), last) == "STOP":
            break
    searcher.on_trial_complete("t", last)
    searcher.pruned.discard("t")
    return epoch


def epochs_of(folder: Path, plan: Search, errors: list[float], restart: bool) -> list[int]:
    """How far trials of constant errors get; `restart` opens the study anew before each part of a trial."""
    reached = [0] * len(errors)
    searcher = StudySearcher(study_in(folder, plan), plan)
    while isinstance(proposal := searcher.suggest("t"), dict):
        number = proposal["number"]
        reached[number] = run_part(searcher, proposal, errors[number], reached[number], 4)
        if restart:
            searcher = StudySearcher(study_in(folder, plan), plan)
    return reached


def conditional() -> Search:
    entries = {
        "model.architecture": [SpaceEntry(choice=["convgru", "convlstm"])],
        "model.hidden_size": [
            SpaceEntry.model_validate({"int": [4, 8], "step": 4, "when": {"model.architecture": "convgru"}}),
            SpaceEntry.model_validate({"choice": [5], "when": {"model.architecture": "convlstm"}}),
        ],
        "train.teacher_forcing_steps": [SpaceEntry.model_validate({"int": ["model.layers", 3]})],
    }
    base = {"name": "grid", "data": {"store": "s"}, "model": {"layers": 2}, "train": {"epochs": 4}}
    return Search(Space(base, entries), SearchConfig.model_validate({"sampler": "grid"}))


def run_in(folder: SearchFolder, plan: Search, study: optuna.Study) -> SearchRun:
    """A search that is opened without a store, a journal and a lease."""
    nothing = cast(Any, None)
    return SearchRun(plan, nothing, folder, nothing, study, nothing, nothing)
