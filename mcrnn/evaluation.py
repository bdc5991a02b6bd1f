"""An exam and its marks: forecasts of models and baselines on the windows of a split."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mcrnn.baselines import Climatology, persistence
from mcrnn.config.sections import Configuration, DataConfig
from mcrnn.data.splits import Split, open_split
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import Starts, check_length, evaluation_windows
from mcrnn.errors import UserError
from mcrnn.models.trained_model import TrainedModel
from mcrnn.scores import Measures, Scores, latitude_weights

BATCH_SIZE = 32
WEEKDAYS = (0, 3)
"""Mondays and Thursdays, on which the weather centres start their reforecasts"""


@dataclass(frozen=True)
class Batch:
    """Some windows of an exam."""

    first: int
    start_B: torch.Tensor
    frames_BTCHW: torch.Tensor


@dataclass(frozen=True)
class Exam:
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
    ) -> Exam:
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
    def of_validation(cls, store: FieldStore, config: Configuration) -> Exam:
        """The exam of a training's validation."""
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
    ) -> Exam:
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


def check_store(model: TrainedModel, store: FieldStore, name: str) -> None:
    """Refuse a store that is not the one that a model was trained on.

    Raises:
        UserError: its digest, units or grid are others; says both.
    """
    differences = store_differences(model, store)
    if differences:
        raise UserError(
            f"'{name}' was trained on other data than '{store.name}': {'; '.join(differences)}. Build the store anew "
            "with its old parameters, or evaluate it with --other-data"
        )


def store_differences(model: TrainedModel, store: FieldStore) -> list[str]:
    """In what a store differs from the one that a model was trained on."""
    field, data = model.field, model.config.data
    found = []
    if field.store_digest and store.digest != field.store_digest:
        found.append(f"its digest is {store.digest[:12]}, that of the training {field.store_digest[:12]}")
    if store.attributes["units"] != field.units:
        found.append(f"its units are {store.attributes['units']}, those of the training {field.units}")
    grid = store.grid(data.coarsen)
    if grid != field.frame_shape[1:] and not model.network.takes_any_grid:
        shown = [" x ".join(map(str, each)) for each in (grid, field.frame_shape[1:])]
        found.append(f"its grid is {shown[0]} after coarsening, that of the training {shown[1]}")
    return found


@torch.no_grad()
def score(
    model: TrainedModel,
    exam: Exam,
    *,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> tuple[Scores, float]:
    """The scores of a model at steps 1 .. warm_up + horizon, and the frames a second of its inference alone.

    Args:
        model: on the device where it is to run.
        exam: what is asked.
        batch_size: windows at a time; changes nothing but memory and speed.
        on_batch: told the number of windows that are done.
    """
    network, scaling = model.network.eval(), model.scaling
    like = next(network.parameters())
    scores = exam.empty_scores(exam.steps, network.channels_out)
    seconds = 0.0
    for batch in exam.batches(batch_size):
        started = time.perf_counter()
        frames_BTCHW = batch.frames_BTCHW.to(like)
        given_BTCHW = scaling.to_model(frames_BTCHW[:, : exam.warm_up])
        prediction_BTCHW = scaling.to_physical(network(given_BTCHW, exam.warm_up, exam.steps))
        if prediction_BTCHW.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
        climatology_BTCHW = None
        if exam.measures.weights is not None:
            climatology_BTCHW = exam.climatology.at(batch.start_B, slice(1, exam.steps + 1))[
                :, :, : network.channels_out
            ]
        truth_BTCHW = frames_BTCHW[:, 1:, : network.channels_out]
        scores.update(prediction_BTCHW, truth_BTCHW, exam.measures, climatology_BTCHW)
        on_batch(scores.filled)
    return scores, len(exam) * exam.steps / seconds


def score_baselines(exam: Exam, channels: int, *, batch_size: int = BATCH_SIZE) -> dict[str, Scores]:
    """The scores of persistence and climatology at lead times 1 .. horizon + 1, by name.

    Args:
        exam: what is asked.
        channels: that are predicted, the first ones.
        batch_size: windows at a time.
    """
    steps = exam.horizon + 1
    found = {name: exam.empty_scores(steps, channels) for name in ("persistence", "climatology")}
    for batch in exam.batches(batch_size):
        frames_BTCHW = batch.frames_BTCHW[:, :, :channels]
        climatology_BTCHW = exam.climatology.at(batch.start_B, slice(exam.warm_up, exam.steps + 1))[:, :, :channels]
        forecasts = {
            "persistence": persistence(frames_BTCHW[:, : exam.warm_up], steps),
            "climatology": climatology_BTCHW,
        }
        for name, forecast_BTCHW in forecasts.items():
            found[name].update(forecast_BTCHW, frames_BTCHW[:, exam.warm_up :], exam.measures, climatology_BTCHW)
    return found
