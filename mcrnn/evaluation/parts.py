"""Score the windows of an evaluation set part by part, so that an evaluation may be killed and continued.

The parts are consecutive windows and follow from the number of windows alone. Each is scored by itself, in this process
or by a worker, and its scores are kept as soon as they are there. All are then joined in the order of the windows: the
result is the same to the bit in whatever order, in however many processes and in however many tries they were scored,
as long as a batch has as many windows and the processors are of one kind.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mcrnn.console import Bar
from mcrnn.data.manifest import map_ahead
from mcrnn.data.memory import memory_budget
from mcrnn.device import is_out_of_memory
from mcrnn.errors import NotEnoughMemoryError
from mcrnn.evaluation.evaluation_set import BATCH_SIZE, EvaluationSet
from mcrnn.evaluation.kept_scores import MODEL, Forecasts, Scored, read_scores, serialize
from mcrnn.evaluation.scoring import BASELINES, score, score_baselines
from mcrnn.evaluation.spread import spread_by_step
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.location import Location

WINDOWS_OF_PART = BATCH_SIZE
"""Fewest windows of a part, of which no batch is cut short."""
MOST_PARTS = 256
"""Most parts; of many windows, each part has more of them."""


@dataclass(frozen=True)
class Scoring:
    """What is scored: a model, or persistence and climatology. It is sent to workers.

    Attributes:
        channels: number of predicted channels, the first ones.
        model: the model, on the device where it is to run; None for the baselines.
        scales: what the spread of each predicted channel of an ensemble is divided by; None for the baselines.
    """

    channels: int
    model: TrainedModel | None = None
    scales: np.ndarray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the forecasts."""
        return BASELINES if self.model is None else (MODEL,)

    def on_processor(self) -> Scoring:
        """Return the same with the model in the host's memory."""
        if self.model is None:
            return self
        model = copy.deepcopy(self.model)
        model.network.cpu()
        return replace(self, model=model)

    def score(self, windows: EvaluationSet, on_windows: Callable[[int], None] = lambda count: None) -> Forecasts:
        """Score all windows of an evaluation set.

        Args:
            windows: the windows.
            on_windows: called after each batch with its number of windows.

        Raises:
            UserError: the store is damaged or out of reach.
            NotEnoughMemoryError: the message says what to try.
        """
        try:
            if self.model is None:
                found = score_baselines(windows, self.channels, on_windows)
                return {name: Scored(scores) for name, scores in found.items()}
            scores, frames_per_second = score(self.model, windows, on_batch=on_windows)
            spread_T = None
            if isinstance(self.model, Ensemble):
                assert self.scales is not None
                spread_T = spread_by_step(self.model, windows, self.scales)
            return {MODEL: Scored(scores, frames_per_second, spread_T)}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            networks = [] if self.model is None else [self.model.network]
            raise NotEnoughMemoryError(
                f"out of memory with {windows.batch_size(*networks)} windows at a time, for which a budget of "
                f"{memory_budget() / 1e9:.3g} GB has room: set MCRNN_MEMORY to fewer GB, and fewer are taken at a "
                "time; what has been scored is kept"
            ) from None


class PartScorer(Protocol):
    """Scores parts, wherever: `score_here`, or on workers `mcrnn.runners.evaluation_workers`."""

    def __call__(
        self,
        scoring: Scoring,
        evaluation_set: EvaluationSet,
        parts: Sequence[range],
        on_windows: Callable[[int], None],
    ) -> Iterator[tuple[range, Forecasts]]:
        """Score some parts of the windows, and yield each with its scores when it is done, in any order.

        Args:
            scoring: what is scored.
            evaluation_set: all windows.
            parts: positions of the windows of each part.
            on_windows: called with the number of windows that have just been scored.

        Raises:
            UserError: a part cannot be scored; those that were yielded can.
        """


def score_here(
    scoring: Scoring, evaluation_set: EvaluationSet, parts: Sequence[range], on_windows: Callable[[int], None]
) -> Iterator[tuple[range, Forecasts]]:
    """Score parts in this process, one after the other; see `PartScorer`."""
    for part in parts:
        yield part, scoring.score(evaluation_set.part(part), on_windows)


def parts_of(windows: int) -> list[range]:
    """Return the parts of so many windows: consecutive positions, the same number in each but the last."""
    size = WINDOWS_OF_PART * max(1, math.ceil(windows / (WINDOWS_OF_PART * MOST_PARTS)))
    return [range(first, min(first + size, windows)) for first in range(0, windows, size)]


def score_in_parts(
    scoring: Scoring,
    evaluation_set: EvaluationSet,
    key: str,
    *,
    cache: Location | None = None,
    score_parts: PartScorer = score_here,
    title: str | None = None,
) -> Forecasts:
    """Score all windows, or take up scores that are kept.

    Args:
        scoring: what is scored.
        evaluation_set: the windows.
        key: name of the scores, which depends on all that they depend on.
        cache: folder where scores are kept: while parts are left, those of each part that is done in a file of its own.
        score_parts: scores the parts that are not kept.
        title: title of a progress bar; None for no bar.

    Raises:
        UserError: see `PartScorer`. The parts that were scored are kept.
    """
    names, regions = scoring.names, list(evaluation_set.regions)
    parts = parts_of(len(evaluation_set))
    keys = _keys(key, parts if len(parts) > 1 else [])
    if cache is not None and (kept := read_scores(cache, f"{key}.npz", names, regions)) is not None:
        if cache.sizes_of(list(keys.values())[:1]):  # its process was killed before it had deleted them
            _delete(cache, keys)
        return kept
    found = {} if cache is None else _kept_parts(cache, keys, scoring, evaluation_set)
    with ExitStack() as until_end:
        bar = None if title is None else until_end.enter_context(Bar(title, len(evaluation_set), "windows"))
        if bar:
            bar.skip(sum(len(part) for part in found))
        missing = [part for part in parts if part not in found]
        for part, forecasts in score_parts(scoring, evaluation_set, missing, bar.advance if bar else lambda _: None):
            found[part] = forecasts
            if cache is not None and part in keys:
                cache.write(keys[part], serialize(forecasts))
    whole = {name: Scored.joined([found[part][name] for part in parts]) for name in names}
    if cache is not None:
        cache.write(f"{key}.npz", serialize(whole))
        _delete(cache, keys)
    return whole


def _delete(cache: Location, keys: dict[range, str]) -> None:
    """Delete the scores of parts; the first part last, so that it is there while any other is."""
    files = list(keys.values())
    for _ in map_ahead(cache.delete, files[1:]):
        pass
    for file in files[:1]:
        cache.delete(file)


def _keys(key: str, parts: Sequence[range]) -> dict[range, str]:
    """Return the names of the files in which the scores of parts are kept until all are there."""
    return {part: f"{key}-{part.start:08d}-{part.stop:08d}.npz" for part in parts}


def _kept_parts(
    cache: Location, keys: dict[range, str], scoring: Scoring, evaluation_set: EvaluationSet
) -> dict[range, Forecasts]:
    """Return the scores of parts that an evaluation has kept which was not finished."""
    there = cache.sizes_of(keys.values()) if keys else {}
    kept = {part: key for part, key in keys.items() if key in there}

    def read(key: str) -> Forecasts | None:
        return read_scores(cache, key, scoring.names, evaluation_set.regions)

    read_parts = zip(kept, map_ahead(read, kept.values()), strict=True)
    return {part: forecasts for part, forecasts in read_parts if forecasts is not None}
