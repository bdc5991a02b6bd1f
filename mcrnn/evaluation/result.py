"""Evaluate one model: its scores and metrics beside those of the baselines, ready for tables, figures and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcrnn.config.sections import ValidationConfig
from mcrnn.data.region import Region
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.compatibility import check_store
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.kept_scores import MODEL, Scored, key_of_baselines, key_of_model
from mcrnn.evaluation.metric_summary import summarize
from mcrnn.evaluation.metrics import Scores
from mcrnn.evaluation.parts import PartScorer, Scoring, score_here, score_in_parts
from mcrnn.evaluation.spread import spread_metrics
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.location import Location
from mcrnn.storage.root import Storage


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics and scores of one model on one evaluation set.

    Attributes:
        uri: name of the model: a registry or run URI, or a folder.
        model: the model.
        store: the store that it was evaluated on.
        evaluation_set: the windows.
        scores: scores of the model at steps 1 .. warm_up + horizon.
        baselines: scores of each baseline at lead times 1 .. horizon + 1.
        metrics: the content of metrics.json.
        scales: what the error of each predicted channel is divided by in normalised errors; their standard deviations,
            and with `validation.channel_weights` also weights.
        as_configured: whether warm-up and horizon are those that the model's configuration validates with, on the
            store that it was trained on; only then the test errors are recorded in the model's own run.
    """

    uri: str
    model: TrainedModel
    store: FieldStore
    evaluation_set: EvaluationSet
    scores: Scores
    baselines: dict[str, Scores]
    metrics: dict[str, Any]
    scales: np.ndarray
    as_configured: bool


def evaluate_model(
    uri: str,
    model: TrainedModel,
    storage: Storage,
    *,
    store: str | None = None,
    warm_up: int | None = None,
    horizon: int | None = None,
    starts: str | None = None,
    regions: Mapping[str, Region] | None = None,
    other_data: bool = False,
    cache: Location | None = None,
    beside: EvaluationResult | None = None,
    score_parts: PartScorer = score_here,
    title: str | None = None,
) -> EvaluationResult:
    """Evaluate a model on the test split of a store.

    Args:
        uri: name of the model, for messages and metrics.
        model: the model, on the device where it is to run.
        storage: the storage root.
        store: name of the store; by default the one that the model was trained on, with the frames that it had then.
        warm_up: number of given frames; by default that of the model's validation.
        horizon: number of closed-loop steps; by default that of the model's validation.
        starts: where windows of a series start; see `EvaluationSet.of`.
        regions: regions that are also measured by themselves, by name.
        other_data: allow another store, units or grid than those of the training; the metrics name the differences.
        cache: folder where scores are kept, and found by a later evaluation of the same model on the same windows.
            While an evaluation is not finished, the scores of the windows that are done are there, too.
        beside: another model, evaluated with the same `starts` and `regions`. Its windows and baselines are taken
            where they would be the same, so that they are not computed again, and the weights of its channels.
        score_parts: scores the windows, in this process or on workers.
        title: title of a progress bar; None for no bar.

    Raises:
        UserError: the store cannot be used, is not the one of the training, or its samples are too short; or memory
            was not enough.
    """
    configured = model.config.validation
    field_store = FieldStore.open(storage.location(store or model.config.data.store))
    if store is None:
        field_store = field_store.as_of(model.field.store_digest)
    if not other_data:
        check_store(model, field_store, uri)
    warm_up, horizon = warm_up or configured.warm_up, horizon or configured.horizon
    weighting = (model if beside is None else beside.model).config.validation
    if beside is not None and not _has_same_windows(beside, model, field_store, warm_up, horizon):
        beside = None
    evaluation_set = (
        beside.evaluation_set
        if beside
        else EvaluationSet.of(
            field_store,
            model.config.data,
            warm_up=warm_up,
            horizon=horizon,
            starts=starts,
            regions=regions,
            predicted=model.network.channels_out,
            elsewhere=cache,
        )
    )
    predicted = model.network.channels_out
    scales = error_scales(model, field_store, weighting)
    scored = score_model(
        model, field_store, evaluation_set, weighting, cache=cache, score_parts=score_parts, title=title
    )
    if beside:
        baselines = beside.baselines
    else:
        of_baselines = score_in_parts(
            Scoring(predicted),
            evaluation_set,
            key_of_baselines(field_store, evaluation_set, predicted),
            cache=cache,
            score_parts=score_parts,
            title=None if title is None else "persistence and climatology",
        )
        baselines = {name: each.scores for name, each in of_baselines.items()}
    metrics = summarize(uri, model, field_store, evaluation_set, scored.scores, baselines, weighting)
    metrics["frames_per_second"] = scored.frames_per_second
    if isinstance(model, Ensemble) and scored.spread_T is not None:
        metrics |= spread_metrics(model, scored.spread_T, warm_up)
    as_configured = (
        starts is None
        and model.field.store_digest in ("", field_store.digest)
        and (evaluation_set.warm_up, evaluation_set.horizon) == (configured.warm_up, configured.horizon)
        and weighting.channel_weights == configured.channel_weights
        and not metrics["other_data"]
    )
    return EvaluationResult(
        uri, model, field_store, evaluation_set, scored.scores, baselines, metrics, scales, as_configured
    )


def score_model(
    model: TrainedModel,
    store: FieldStore,
    evaluation_set: EvaluationSet,
    weighting: ValidationConfig,
    *,
    cache: Location | None = None,
    score_parts: PartScorer = score_here,
    title: str | None = None,
) -> Scored:
    """Score a model, or take up its scores that are kept.

    Args:
        model: the model, on the device where it is to run.
        store: the store of the windows.
        evaluation_set: the windows.
        weighting: the weights of the channels.
        cache: see `evaluate_model`, as for the other arguments.
        score_parts: scores the windows.
        title: title of a progress bar; None for no bar.

    Raises:
        UserError: the store cannot be read, or memory was not enough.
    """
    scales = error_scales(model, store, weighting)
    key = key_of_model(model, store, evaluation_set, weighting)
    scoring = Scoring(model.network.channels_out, model, scales)
    return score_in_parts(scoring, evaluation_set, key, cache=cache, score_parts=score_parts, title=title)[MODEL]


def error_scales(model: TrainedModel, store: FieldStore, weighting: ValidationConfig) -> np.ndarray:
    """Return what the error of each predicted channel is divided by in normalised errors; see `EvaluationResult`."""
    predicted = model.network.channels_out
    std = store.statistic("std", model.config.data.variables)[:predicted]
    return np.array(weighting.error_scales(model.field.channels[:predicted], std))


def _has_same_windows(
    beside: EvaluationResult, model: TrainedModel, store: FieldStore, warm_up: int, horizon: int
) -> bool:
    """Say whether a model is evaluated on the windows of another, whose starts follow the same rule."""

    def windows(model: TrainedModel, store: FieldStore) -> tuple[Any, ...]:
        data = model.config.data
        return store.digest, data.variables or store.channels, data.coarsen, model.network.channels_out

    lengths = beside.evaluation_set.warm_up, beside.evaluation_set.horizon
    return lengths == (warm_up, horizon) and windows(beside.model, beside.store) == windows(model, store)
