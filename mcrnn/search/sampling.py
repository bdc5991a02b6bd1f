"""The search space in Optuna's terms, and the sampler that draws from it."""

from __future__ import annotations

import warnings
from typing import Any

import optuna

from mcrnn.config.paths import Values
from mcrnn.config.search import DEFAULT_TRIALS, SearchConfig
from mcrnn.config.space import Search
from mcrnn.search.attributes import VALUES_ATTRIBUTE
from mcrnn.search.parameters import is_relative, parameter_name, value_at

optuna.logging.set_verbosity(optuna.logging.WARNING)

STARTUP = 20
"""Most trials that are drawn at random before a sampler learns. Fewer leave some searches in the first good region."""


def suggest(trial: optuna.Trial, search: Search) -> Values:
    """Draw a value for every entry of the space whose conditions hold.

    Each value is drawn with a seed of its own, so that a trial whose driver was killed between two draws gets the same
    values when it is taken up again.

    Returns:
        The values by dotted path.
    """
    values: Values = {}
    trial.study.sampler = sampler(search.search, trial.number)
    trial.relative_params  # noqa: B018  Optuna draws the values that depend on each other at the first access
    for position, path in enumerate(search.space, start=1):
        trial.study.sampler = sampler(search.search, trial.number, position)
        index = search.space.active_index(path, values)
        if index is not None:
            values[path] = _draw(trial, search, path, index, values)
    trial.set_user_attr(VALUES_ATTRIBUTE, values)
    return values


def _draw(trial: optuna.Trial, search: Search, path: str, index: int, values: Values) -> Any:
    """Draw the value of an entry whose alternative with this index is active."""
    name, entry = parameter_name(search, path, index), search.space.entries[path][index]
    if entry.choice is not None:
        return trial.suggest_categorical(name, entry.choice)
    if is_relative(entry):
        active = search.space.active_entry(path, values)
        assert active is not None
        return value_at(active, trial.suggest_float(name, 0.0, 1.0))
    low, high = entry.bounds or (0, 0)
    if entry.int_range is not None:
        return trial.suggest_int(name, int(low), int(high), log=entry.log, step=int(entry.step or 1))
    return trial.suggest_float(name, float(low), float(high), log=entry.log, step=entry.step)


def sampler(config: SearchConfig, trial_number: int, position: int = 0) -> optuna.samplers.BaseSampler:
    """Return a sampler for one value of one trial.

    Its seed follows from the seed of the search, the trial and the position only, so a search that was interrupted
    anywhere draws what an uninterrupted one does.

    Args:
        config: section `search` of the configuration.
        trial_number: number of the trial.
        position: position of the value in the space, from 1; 0 for the values that are drawn together.
    """
    seed = ((config.seed * 1_000_003 + trial_number) * 1009 + position) % 2**32
    name = config.sampler
    if name == "auto":
        name = "nsga2" if len(config.objectives) > 1 else "tpe"
    trials = config.trials or DEFAULT_TRIALS
    startup = min(STARTUP, max(trials // 4, min(10, trials // 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name in ("random", "grid"):
            return optuna.samplers.RandomSampler(seed=seed)
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        # Every other trial has its values drawn together, which learns what goes well together but keeps to the first
        # good region; the others have each value drawn by itself, which finds other regions.
        together = trial_number % 2 == 0
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=together, group=together, constant_liar=True, n_startup_trials=startup
        )
