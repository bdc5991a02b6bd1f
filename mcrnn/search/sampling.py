"""The space of a search in Optuna's terms, and the sampler that draws from it."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search, SpaceEntry

optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest(trial: optuna.Trial, search: Search) -> dict[str, Any]:
    """Draw a value for every entry of the space that holds, keyed by its dotted path.

    Each is drawn with a seed of its own, so that a trial whose driver was killed between two of them gets the same.
    """
    values: dict[str, Any] = {}
    trial.study.sampler = sampler(search.search, trial.number)
    trial.relative_params  # noqa: B018  Optuna draws them when they are first asked for
    for place, path in enumerate(search.space, start=1):
        trial.study.sampler = sampler(search.search, trial.number, place)
        index, entry = search.space.active_index(path, values), search.space.active_entry(path, values)
        if index is not None and entry is not None:
            values[path] = _suggest(trial, search.parameter(path, index), entry)
    return values


def _suggest(trial: optuna.Trial, name: str, entry: SpaceEntry) -> Any:
    if entry.choice is not None:
        return trial.suggest_categorical(name, entry.choice)
    assert entry.bounds is not None
    low, high = entry.bounds
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if entry.int_range is not None:
        return trial.suggest_int(name, int(low), int(high), log=entry.log, step=int(entry.step or 1))
    return trial.suggest_float(name, low, high, log=entry.log, step=entry.step)


def distribution(entry: SpaceEntry) -> BaseDistribution:
    """What `suggest` draws from, for an entry whose bounds are numbers."""
    if entry.choice is not None:
        return CategoricalDistribution(entry.choice)
    assert entry.bounds is not None
    low, high = entry.bounds
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if entry.int_range is not None:
        return IntDistribution(int(low), int(high), log=entry.log, step=int(entry.step or 1))
    return FloatDistribution(low, high, log=entry.log, step=entry.step)


def sampler(config: SearchConfig, trial_number: int, place: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler of one value, seeded by (seed, number of the trial, place): a search can stop and go on anywhere.

    Args:
        config: of the search.
        trial_number: of the trial.
        place: of the value in the space, from 1; 0 for values that are drawn together.
    """
    seed = ((config.seed * 1_000_003 + trial_number) * 1009 + place) % 2**32
    if config.sampler in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed=seed)
    if config.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=min(10, (config.trials or 20) // 2),
        )
