"""The fixed windows of a split on which models and baselines are evaluated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mcrnn.config.sections import Configuration, DataConfig
from mcrnn.data.splits import Split, open_split
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import Starts, check_length, evaluation_windows
from mcrnn.errors import UserError
from mcrnn.evaluation.baselines import Climatology
from mcrnn.evaluation.metrics import Measures, Scores, latitude_weights

BATCH_SIZE = 32
WEEKDAYS = (0, 3)
"""Mondays and Thursdays, on which the weather centres start their reforecasts"""


@dataclass(frozen=True)
class Batch:
    """Some windows of an evaluation set."""

    first: int
    start_B: torch.Tensor
    frames_BTCHW: torch.Tensor


@dataclass(frozen=True)
class EvaluationSet:
    """What is asked: frames given, steps in closed loop after them, and where the windows start."""

    split: Split
    windows: Starts
    """sample and first frame of each"""
    warm_up: int
    horizon: int
    measures: Measures
    climatology: Climatology
    starts: str
    """the rule by which windows were chosen"""

    @classmethod
    def of(
        cls,
        store: FieldStore,
        data: DataConfig,
        *,
        warm_up: int,
        horizon: int,
        split: str = "test",
        starts: str | None = None,
    ) -> EvaluationSet:
        """On a split of a store.

        Args:
            store: it.
            data: which channels, and how coarse.
            warm_up: frames given.
            horizon: steps in closed loop.
            split: of the store.
            starts: of a series, `all`, `every N`, `biweekly`, or `apart`, one after the other without overlap, by
                default biweekly where frames have dates, else apart. Of samples, always their first frames.

        Raises:
            UserError: the samples are too short, or the rule does not fit the store.
        """
        opened = open_split(store, split, data)
        steps = warm_up + horizon
        check_length(opened.shape[1], steps + 1, f"a warm-up of {warm_up} and a horizon of {horizon}")
        windows, rule = _starts(store, split, opened.shape, steps, warm_up, starts)
        return cls._with(store, data, opened, split, windows, warm_up, horizon, rule)

    @classmethod
    def of_validation(cls, store: FieldStore, config: Configuration) -> EvaluationSet:
        """The evaluation set that a training is validated on."""
        asked = config.validation
        opened = open_split(store, "val", config.data)
        windows = evaluation_windows(opened.shape, store.is_series, asked.warm_up + asked.horizon, asked.windows)
        rule = "as in training"
        return cls._with(store, config.data, opened, "val", windows, asked.warm_up, asked.horizon, rule)

    @classmethod
    def _with(
        cls,
        store: FieldStore,
        data: DataConfig,
        opened: Split,
        split: str,
        windows: Starts,
        warm_up: int,
        horizon: int,
        rule: str,
    ) -> EvaluationSet:
        latitude = store.latitude
        weights = None
        if latitude is not None:
            weights = latitude_weights(latitude.reshape(-1, data.coarsen).mean(1))
        measures = Measures(weights, spectra=store.padding == "circular")
        return cls(opened, windows, warm_up, horizon, measures, Climatology.of(store, split, data), rule)

    @property
    def steps(self) -> int:
        """Forced and in closed loop."""
        return self.warm_up + self.horizon

    def __len__(self) -> int:
        return len(self.windows[0])

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """All windows, in order."""
        first = 0
        for sample_B, start_B in zip(*(part.split(batch_size) for part in self.windows), strict=True):
            yield Batch(first, start_B, self.split.windows(sample_B, start_B, self.steps + 1))
            first += len(sample_B)

    def empty_scores(self, steps: int, channels: int) -> Scores:
        """Of forecasts of so many steps."""
        return Scores.empty(len(self), steps, channels, self.measures, min(self.split.shape[-2:]))


def _starts(
    store: FieldStore, split: str, shape: tuple[int, ...], steps: int, warm_up: int, rule: str | None
) -> tuple[Starts, str]:
    if not store.is_series:
        if rule is not None:
            raise UserError(f"--starts is for series; '{store.name}' has samples, each judged from its first frame")
        return evaluation_windows(shape, False, steps), "every sample from its first frame"
    dates = store.dates(split)
    rule = rule or ("biweekly" if dates is not None else "apart")
    last = shape[1] - steps - 1
    if rule == "apart":
        return evaluation_windows(shape, True, steps), "one after the other"
    if rule == "all":
        chosen = np.arange(last + 1)
    elif found := re.fullmatch(r"every[ =]?([1-9][0-9]*)", rule):
        chosen = np.arange(0, last + 1, int(found.group(1)))
    elif rule == "biweekly":
        if dates is None:
            raise UserError(f"--starts biweekly needs dates, which the frames of '{store.name}' have not; try all")
        days = [(date.year, date.month, date.day) for date in dates]
        given = range(warm_up - 1, warm_up + last)  # the last given frame begins the forecast
        first_of_day = (t for t in given if t == 0 or days[t] != days[t - 1])
        chosen = np.array([t - warm_up + 1 for t in first_of_day if dates[t].dayofwk in WEEKDAYS], dtype=int)
        if not len(chosen):
            raise UserError(
                f"no Monday or Thursday of the {split} split leaves room for {steps} steps; try --starts all"
            )
    else:
        raise UserError(f"--starts is all, 'every N', biweekly or apart, not '{rule}'")
    start = torch.from_numpy(chosen)
    return (torch.zeros_like(start), start), rule
