"""The Optuna study of a search: the only record of what was tried and how it ended.

Tune asks it for trials through `StudySearcher`, stops them as `StudyScheduler` finds in it, and tells it how they
went. A search that is run again looks here for what is done, and takes up the trials that were running where they
are. It lives in a journal beside the results or in a database, which optuna-dashboard opens too.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mcrnn.config.paths import Values
from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search
from mcrnn.errors import UserError
from mcrnn.search.sampling import distribution
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.retry import ServiceUnavailableError
from mcrnn.training.session import OBJECTIVE

JOURNAL = "study.journal"
STUDY = "search"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
LARGEST_GRID = 10_000
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "error": "minimize",
    "parameters": "minimize",
    "frames_per_second": "maximize",
}
REPORTED_METRICS = (
    "epoch",
    "rmse_closed_loop",
    "rmse_teacher_forced",
    OBJECTIVE,
    "best",
    "frames_per_second",
    "parameters",
)
"""of a trial's last result"""


class TrialEnd(StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


@dataclass(frozen=True)
class Journal:
    """The study of a search folder as a file; of a folder on object storage, a copy that follows this one."""

    folder: Location
    file: Path

    @classmethod
    def open(cls, folder: Location) -> Journal:
        """Where the file is, fetched if it must be."""
        if isinstance(folder, LocalFolder):
            folder.path.mkdir(parents=True, exist_ok=True)
            return cls(folder, folder.path / JOURNAL)
        file = Path(tempfile.mkdtemp(prefix="mcrnn-study-")) / JOURNAL
        with contextlib.suppress(FileNotFoundError):
            file.write_bytes(folder.read(JOURNAL))
        return cls(folder, file)

    @property
    def is_copied(self) -> bool:
        """Whether it is to be copied to its folder."""
        return not isinstance(self.folder, LocalFolder)

    def storage(self) -> JournalStorage:
        """For Optuna."""
        return JournalStorage(JournalFileBackend(str(self.file)))

    def copy(self) -> None:
        """Copy it to its folder.

        Raises:
            ServiceUnavailableError: the folder cannot be reached.
        """
        content = self.file.read_bytes()
        content = content[: content.rfind(b"\n") + 1]  # another thread may be writing a line
        try:
            self.folder.write(JOURNAL, content)
        except (UserError, OSError) as error:
            raise ServiceUnavailableError(str(error)) from None


def open_study(journal: Journal, search: Search, earlier: Iterable[optuna.Study] = ()) -> optuna.Study:
    """The study of a search folder, created where there is none.

    Args:
        journal: where it lives, unless it is in a database.
        search: what is searched.
        earlier: studies whose trials a new one learns from, as far as they fit the space.

    Raises:
        UserError: the database cannot be used, or a grid is too large.
    """
    several = len(search.search.objectives) > 1
    name = STUDY if search.search.storage is None else f"{search.name}:{journal.folder.url}"
    study = optuna.create_study(
        study_name=name,
        storage=_storage(journal, search.search),
        directions=[DIRECTIONS[objective] for objective in search.search.objectives],
        load_if_exists=True,
    )
    if not several:
        study.pruner = pruner(search.search)
    if not study.trials:
        for values in _first(search):
            study.enqueue_trial(values)
        for before in earlier:
            study.add_trials(_fitting(before, search))
    return study


def _storage(journal: Journal, config: SearchConfig) -> BaseStorage:
    if config.storage is None:
        return journal.storage()
    try:
        return RDBStorage(config.storage)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"search.storage: the database cannot be used ({type(error).__name__}: {reason})") from None


def _first(search: Search) -> list[Values]:
    """Parameters of the trials that come before the sampler decides: a whole grid, or one of each choice."""
    config, space = search.search, search.space
    if config.sampler == "grid":
        grid = list(itertools.islice(space.grid(), LARGEST_GRID + 1))
        if len(grid) > LARGEST_GRID:
            raise UserError(f"the grid of '{search.name}' has more than {LARGEST_GRID} trials; use another sampler")
        return [search.parameters(values) for values in grid[: config.trials]]
    if config.cover is None or config.cover not in space:
        return []
    return [{search.parameter(config.cover, 0): choice} for choice in space.entries[config.cover][0].choice or []]


def _fitting(before: optuna.Study, search: Search) -> list[FrozenTrial]:
    """Trials of an earlier study that this space could have drawn, with its distributions."""
    fitting = []
    for trial in before.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if before.directions != [optuna.study.StudyDirection.MINIMIZE] or "from" in trial.user_attrs:
            continue
        values = search.values(trial.params)
        distributions = {}
        for path in search.space:
            index, entry = search.space.active_index(path, values), search.space.active_entry(path, values)
            if index is not None and entry is not None:
                distributions[search.parameter(path, index)] = distribution(entry)
        parameters = search.parameters({path: value for path, value in values.items() if path in search.space})
        if parameters.keys() != distributions.keys() or len(values) != len(parameters):
            continue
        with contextlib.suppress(ValueError):  # a value that this space could not have drawn
            fitting.append(
                optuna.trial.create_trial(
                    params=parameters,
                    distributions=distributions,
                    value=trial.value,
                    user_attrs={"from": before.study_name, "end": trial.user_attrs.get("end", "")},
                )
            )
    return fitting


def pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    """What stops trials early. What it has decided is in the study, so that it goes on where it was."""
    if config.early_stopping == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=config.asha.grace_epochs, reduction_factor=config.asha.reduction_factor
        )
    if config.early_stopping == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=config.median.grace_trials, n_warmup_steps=config.median.grace_epochs
        )
    return optuna.pruners.NopPruner()


def search_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of this search, those learnt from left out."""
    return [t for t in study.get_trials(deepcopy=False) if "from" not in t.user_attrs]


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended."""
    return [t for t in search_trials(study) if t.state in ENDED]


def budget(study: optuna.Study, config: SearchConfig) -> int:
    """The number of trials of a search."""
    if config.trials is not None:
        return config.trials
    return len(search_trials(study)) if config.sampler == "grid" else 20


def stop_reason(study: optuna.Study, config: SearchConfig, hours: float = 0.0) -> str | None:
    """Why a search has come to its end, None where it goes on.

    Args:
        study: its study.
        config: its budgets.
        hours: since it was started this time.
    """
    ended = finished_trials(study)
    failed = sum(t.user_attrs.get("end") == TrialEnd.FAILED for t in ended)
    if len(ended) >= budget(study, config):
        return "all trials are done"
    if config.hours is not None and study.user_attrs.get("hours", 0.0) + hours >= config.hours:
        return f"its {config.hours:g} hours are spent"
    if config.trial_hours is not None and sum(_seconds(t) for t in ended) / 3600 >= config.trial_hours:
        return f"its {config.trial_hours:g} trial hours are spent"
    if config.goal is not None and any(t.value is not None and t.value <= config.goal for t in ended):
        return f"the goal of {config.goal:g} is reached"
    return f"{failed} trials failed" if failed >= config.failures else None


def _seconds(trial: FrozenTrial) -> float:
    return trial.user_attrs.get("result", {}).get("time_total_s", 0.0)


@contextmanager
def optuna_quiet() -> Iterator[None]:
    """Without warnings of what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
