"""The Optuna study of a search: the only record of what was tried and how it ended.

Ray Tune gets its trials from the study, which says how far each of them goes; see `mcrnn.search.tune_adapter`. A search
that is run again finds in the study which trials are done, and goes on with those that were running. The study is a
journal file in the folder of the search, or in a database (`search.storage`). optuna-dashboard opens both.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, cast

import optuna
from optuna.storages import BaseStorage, get_storage
from optuna.trial import FrozenTrial, TrialState

from mcrnn.config.paths import Values
from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search
from mcrnn.errors import UserError, first_line
from mcrnn.passwords import mask_passwords
from mcrnn.search.attributes import COPIED_FROM, END, STOPPED_PAUSED, VALUES_ATTRIBUTE
from mcrnn.search.database import Database, PatientStorage
from mcrnn.search.journal import Journal
from mcrnn.search.learning import ExpectedErrors
from mcrnn.search.parameters import distribution, parameter_name, parameters_of, values_of
from mcrnn.storage.location import Location
from mcrnn.storage.retry import print_warning
from mcrnn.tracking.run_folder import SearchFolder
from mcrnn.training.session import PENALTY

STUDY = "search"
"""Name of the study in the journal of a search, which holds no other."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
"""Optuna's states of the trials that do not go on."""
NUMBER_BEFORE = "number before"
"""User attribute of a trial that was copied from an earlier study: its number there."""
LARGEST_GRID = 10_000
"""Most trials of a grid. All of them are written into the study before the first one starts."""
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "error": "minimize",
    "parameters": "minimize",
    "frames_per_second": "maximize",
}
"""Optuna's direction for each objective of `search.objectives`."""


def open_study(journal: Journal | None, search: Search, earlier: Iterable[optuna.Study] = ()) -> optuna.Study:
    """Open the study of a search, or create it with the trials that come before the sampler decides.

    Args:
        journal: journal of the search; not used where `search.storage` names a database. None for a study in memory.
        search: what is searched.
        earlier: studies of other searches (`search.warm_start`), whose trials a new study learns from as far as this
            search could have drawn them.

    Raises:
        UserError: the database cannot be used, or a grid is too large.
    """
    name = STUDY
    if journal is not None and search.search.storage is not None:
        name = SearchFolder(journal.folder).study_name(search.name)
    study = optuna.create_study(
        study_name=name,
        storage=None if journal is None else _storage(journal, search.search),
        directions=[DIRECTIONS[objective] for objective in search.search.objectives],
        load_if_exists=True,
    )
    if len(search.search.objectives) == 1:  # Optuna's pruners do not support several
        study.pruner = pruner(search.search)
    # Until the first trial starts, a process that was killed may have left some of these out.
    has_started = _has_started(study)
    if not has_started or search.search.sampler == "grid":  # the budget of a grid may have been raised
        for values in _fixed_trials(search)[len(search_trials(study)) :]:
            study.enqueue_trial(values)
    if not has_started:
        for other in earlier:
            study.add_trials(_missing_copies(study, other, search))
    return study


def _has_started(study: optuna.Study) -> bool:
    """Return whether a trial of the search has been started.

    The trials that come before the sampler decides are the first ones, and are started in their order. So where the
    first trial is one of the search's own, it tells, and no other has to be read.
    """
    try:
        first = study._storage.get_trial(study._storage.get_trial_id_from_study_id_trial_number(study._study_id, 0))
    except KeyError:
        return False
    if COPIED_FROM in first.user_attrs:
        return any(t.state != TrialState.WAITING for t in search_trials(study))
    return first.state != TrialState.WAITING


def study_in_database(url: str, folder: Location) -> optuna.Study | None:
    """Return the study of a search in a database, None where it is not there.

    Args:
        url: URL of the database.
        folder: folder of the search.

    Raises:
        UserError: the database cannot be used.
    """
    storage = _database(url)
    usual, known = SearchFolder(folder).usual_study_name(""), SearchFolder(folder).study_name("")
    names = [
        each
        for each in optuna.get_all_study_names(storage)
        if each == known or (known == usual and each.endswith(usual))
    ]
    return optuna.load_study(study_name=names[0], storage=storage) if names else None


def leave_old_study(search: Search, folder: SearchFolder) -> None:
    """Let a search whose folder is new use a study that is new as well.

    A database still has the study of a search whose folder was deleted. It stays there, and is not this search's, which
    has none of the models that belong to it.

    Raises:
        UserError: the database cannot be used.
    """
    if search.search.storage is None:
        return
    usual = chosen = folder.usual_study_name(search.name)
    names, number = set(optuna.get_all_study_names(_database(search.search.storage))), 1
    while chosen in names:
        number += 1
        chosen = f"{usual} ({number})"
    if chosen != usual:
        folder.write_study_name(chosen)
        print_warning(
            f"the folder of the search '{search.name}' was deleted, but the database has its study '{usual}'; the "
            f"search starts anew with the study '{chosen}', and the old one is left alone"
        )


def _storage(journal: Journal, config: SearchConfig) -> BaseStorage:
    """Return Optuna's storage: the journal, or the database that `search.storage` names."""
    if config.storage is None:
        return journal.storage()
    return cast("BaseStorage", PatientStorage(get_storage(_database(config.storage))))


def _database(url: str) -> Database:
    try:
        return Database(url)
    except Exception as error:
        reason = mask_passwords(first_line(error))
        raise UserError(f"search.storage: the database cannot be used ({type(error).__name__}: {reason})") from None


def _fixed_trials(search: Search) -> list[Values]:
    """Return the parameters of the trials that come before the sampler decides.

    They are a whole grid; or those of `search.first`, and one of each choice of `search.cover` that these lack.
    """
    config, space = search.search, search.space
    if config.sampler == "grid":
        grid = list(itertools.islice(space.grid(), LARGEST_GRID + 1))
        if len(grid) > LARGEST_GRID:
            raise UserError(f"the grid of '{search.name}' has more than {LARGEST_GRID} trials; use another sampler")
        return [parameters_of(search, values) for values in grid[: config.trials]]
    first = [parameters_of(search, values) for values in config.first]
    if config.cover is None or config.cover not in space:
        return first
    tried = [values.get(config.cover) for values in config.first]
    name, choices = parameter_name(search, config.cover, 0), space.entries[config.cover][0].choice or []
    return first + [{name: choice} for choice in choices if choice not in tried]


def _missing_copies(study: optuna.Study, earlier: optuna.Study, search: Search) -> list[FrozenTrial]:
    """Return copies of the fitting trials of an earlier study that are not in this one yet."""
    copied = {
        t.user_attrs.get(NUMBER_BEFORE)
        for t in study.get_trials(deepcopy=False)
        if t.user_attrs.get(COPIED_FROM) == earlier.study_name
    }
    return [trial for trial in _fitting_trials(earlier, search) if trial.user_attrs[NUMBER_BEFORE] not in copied]


def _fitting_trials(earlier: optuna.Study, search: Search) -> list[FrozenTrial]:
    """Return copies of the trials of an earlier study that this space could have drawn, with its distributions.

    The value of a trial that was stopped early is the error that it was expected to end with.
    """
    fitting: list[FrozenTrial] = []
    if earlier.directions != [optuna.study.StudyDirection.MINIMIZE]:
        return fitting
    trials = [t for t in earlier.get_trials(deepcopy=False) if COPIED_FROM not in t.user_attrs]
    errors = _expected_errors(trials)
    for trial in trials:
        if (error := errors.get(trial.number)) is None:
            continue
        values = values_of(trial)
        drawn = {path: search.space.active_index(path, values) for path in search.space}
        active = {path: index for path, index in drawn.items() if index is not None}
        if active.keys() != values.keys():
            continue  # it lacks a value that this space draws, or has one that this space does not search
        with contextlib.suppress(ValueError):  # a value is outside the range that this space has for it
            fitting.append(
                optuna.trial.create_trial(
                    params=parameters_of(search, values),
                    distributions={
                        parameter_name(search, path, index): distribution(search.space.entries[path][index])
                        for path, index in active.items()
                    },
                    value=error,
                    user_attrs={
                        COPIED_FROM: earlier.study_name,
                        NUMBER_BEFORE: trial.number,
                        END: trial.user_attrs.get(END, ""),
                        VALUES_ATTRIBUTE: values,
                    },
                )
            )
    return fitting


def _expected_errors(trials: list[FrozenTrial]) -> dict[int, float]:
    """Return for each trial of a study the error with which it ended or, where it was stopped, was expected to end."""
    last = max((step for trial in trials for step in trial.intermediate_values), default=1)
    steps = sorted({last, *(step for trial in trials for step in trial.intermediate_values)})
    known = ExpectedErrors()
    for trial in trials:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            failed = trial.value >= PENALTY
            known.note(trial.number, steps, dict(trial.intermediate_values) | {last: trial.value}, failed=failed)
        elif state_of(trial) == TrialState.PRUNED:
            known.note(trial.number, steps, trial.intermediate_values)
    expected = {trial.number: known.expected(trial.number) for trial in trials}
    stopped = {number: math.exp(error) for number, error in expected.items() if error is not None}
    return stopped | {t.number: t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None}


def pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner for `search.early_stopping`.

    It has no state but the study, so it decides in the same way after an interruption.
    """
    if config.early_stopping == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=config.median.grace_trials, n_warmup_steps=config.median.grace_epochs
        )
    return optuna.pruners.NopPruner()


def state_of(trial: FrozenTrial) -> TrialState:
    """Return the state of a trial; that of a pruned one if it was paused and the end of the search has stopped it.

    In the study such a trial still runs, because Optuna lets no trial go on that has ended.
    """
    stopped = trial.state == TrialState.RUNNING and trial.user_attrs.get(STOPPED_PAUSED)
    return TrialState.PRUNED if stopped else trial.state


def search_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of this search, without those that were copied from an earlier one."""
    return [t for t in study.get_trials(deepcopy=False) if COPIED_FROM not in t.user_attrs]


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of this search that ended, in the order of their numbers."""
    return [t for t in search_trials(study) if state_of(t) in ENDED]


@contextmanager
def optuna_quiet() -> Iterator[None]:
    """Keep Optuna's warnings about experimental features off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
