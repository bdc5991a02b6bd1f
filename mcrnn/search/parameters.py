"""The values of a trial as parameters of the Optuna study, and back.

Each alternative of an entry is a parameter of its own, because it has a range of its own. Optuna's samplers learn what
values of a parameter are good across trials, and those that draw values together keep the distribution of the first
trial that ended. So a range that depends on another field cannot be a distribution. Such an entry is drawn as a share
of its range instead, a number from 0 to 1 that is mapped to the range of the trial.
"""

from __future__ import annotations

import math

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from mcrnn.config.paths import Values
from mcrnn.config.space import Search, SpaceEntry
from mcrnn.search.attributes import VALUES_ATTRIBUTE

SHARE_SUFFIX = " (share of its range)"
"""Ends the name of a parameter that is a share of a range."""


def parameter_name(search: Search, path: str, index: int) -> str:
    """Return the name of an alternative in the Optuna study.

    Args:
        search: what is searched.
        path: dotted path of the entry's field.
        index: index of the alternative.
    """
    alternatives = search.space.entries[path]
    name = path if len(alternatives) == 1 else f"{path} ({index + 1})"
    return name + SHARE_SUFFIX if is_relative(alternatives[index]) else name


def field_of(name: str) -> str:
    """Return the dotted path of the field that a parameter of the study belongs to; see `parameter_name`."""
    return name.split(" ")[0]


def values_of(trial: FrozenTrial) -> Values:
    """Return the value of each field of a trial by its dotted path.

    Trials of version 0.1.0, which drew no shares, have the values as their parameters.
    """
    recorded = trial.user_attrs.get(VALUES_ATTRIBUTE)
    return recorded if recorded is not None else {field_of(name): value for name, value in trial.params.items()}


def parameters_of(search: Search, values: Values) -> Values:
    """Return the parameters of the study that give some values; the inverse of drawing.

    Args:
        search: what is searched.
        values: value of each active entry by the dotted path of its field.

    Raises:
        ValueError: a value is outside the range that the other values leave it.
    """
    parameters: Values = {}
    for path, value in values.items():
        index, entry = search.space.active_index(path, values), search.space.active_entry(path, values)
        if index is None or entry is None:
            continue
        relative = is_relative(search.space.entries[path][index])
        parameters[parameter_name(search, path, index)] = _share_of(entry, value) if relative else value
    return parameters


def distribution(entry: SpaceEntry) -> BaseDistribution:
    """Return the distribution of an alternative's parameter."""
    if entry.choice is not None:
        return CategoricalDistribution(entry.choice)
    if is_relative(entry):
        return FloatDistribution(0.0, 1.0)
    low, high = _numbers(entry)
    if entry.int_range is not None:
        return IntDistribution(int(low), int(high), log=entry.log, step=int(entry.step or 1))
    return FloatDistribution(low, high, log=entry.log, step=entry.step)


def is_relative(entry: SpaceEntry) -> bool:
    """Whether a bound of the entry is another field, so that its range differs from trial to trial."""
    return any(isinstance(bound, str) for bound in entry.bounds or ())


def _numbers(entry: SpaceEntry) -> tuple[float, float]:
    """Return the bounds of an entry whose bounds are numbers."""
    assert entry.bounds is not None
    low, high = entry.bounds
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    return low, high


def value_at(entry: SpaceEntry, share: float) -> int | float:
    """Return the value at a share of a range.

    Args:
        entry: int or float entry whose bounds are numbers.
        share: from 0 (the smallest value) to 1 (the largest). Where the range has a step, all its values have equal
            parts of the interval from 0 to 1.
    """
    low, high = _numbers(entry)
    step = _step(entry)
    if step is not None:
        count = int((high - low) / step + 1e-9) + 1
        value = low + step * min(int(share * count), count - 1)
    elif entry.log:
        value = low * (high / low) ** share
    else:
        value = low + share * (high - low)
    return min(max(round(value), int(low)), int(high)) if entry.int_range is not None else float(value)


def _share_of(entry: SpaceEntry, value: float) -> float:
    """Return a share of a range at which `value_at` gives a value.

    Raises:
        ValueError: the value is outside the range.
    """
    low, high = _numbers(entry)
    if not low <= value <= high:
        raise ValueError(f"{value} is not between {low} and {high}")
    step = _step(entry)
    if step is not None:
        count = int((high - low) / step + 1e-9) + 1
        return (round((value - low) / step) + 0.5) / count
    if high == low:
        return 0.5
    return math.log(value / low) / math.log(high / low) if entry.log else (value - low) / (high - low)


def _step(entry: SpaceEntry) -> float | None:
    """Return the distance between the values of a range; None where its values are not evenly spaced."""
    if entry.step is not None:
        return entry.step
    return 1.0 if entry.int_range is not None and not entry.log else None
