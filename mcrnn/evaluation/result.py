"""Evaluate one model: its scores and metrics beside those of the baselines, ready for tables, figures and files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mcrnn.config.sections import ValidationConfig
from mcrnn.data.region import Region
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.compatibility import check_store
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.metric_summary import summarize
from mcrnn.evaluation.metrics import Scores
from mcrnn.evaluation.scoring import score, score_baselines
from mcrnn.evaluation.spread import spread_by_step, spread_metrics
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.location import Location
from mcrnn.storage.root import Storage

VERSION = 2
"""Version of the cached scores; another one makes evaluations compute them anew."""
ARRAYS = ("squared", "absolute", "bias", "variance", "weighted", "weighted_absolute", "correlation", "power")
"""Fields of `Scores` that are cached."""


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
    on_batch: Callable[[int, int], None] = lambda done, windows: None,
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
        beside: another model, evaluated with the same `starts` and `regions`. Its windows and baselines are taken
            where they would be the same, so that they are not computed again, and the weights of its channels.
        on_batch: called after each batch with the number of windows done and the number of all.

    Raises:
        UserError: the store cannot be used, is not the one of the training, or its samples are too short.
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
            elsewhere=cache,
        )
    )
    predicted = model.network.channels_out
    std = field_store.statistic("std", model.config.data.variables)[:predicted]
    scales = np.array(weighting.error_scales(model.field.channels[:predicted], std))
    key = _cache_key(model, field_store, evaluation_set, weighting)
    cached = _read_cache(cache, key, evaluation_set.regions)
    if cached is None:
        scores, frames_per_second = score(
            model, evaluation_set, on_batch=lambda done: on_batch(done, len(evaluation_set))
        )
        spread_T = spread_by_step(model, evaluation_set, scales) if isinstance(model, Ensemble) else None
        if cache is not None:
            cache.write(f"{key}.npz", _serialize(scores, frames_per_second, spread_T))
    else:
        scores, frames_per_second, spread_T = cached
    baselines = beside.baselines if beside else score_baselines(evaluation_set, predicted)
    metrics = summarize(uri, model, field_store, evaluation_set, scores, baselines, weighting)
    metrics["frames_per_second"] = frames_per_second
    if isinstance(model, Ensemble) and spread_T is not None:
        metrics |= spread_metrics(model, spread_T, warm_up)
    as_configured = (
        starts is None
        and model.field.store_digest in ("", field_store.digest)
        and (evaluation_set.warm_up, evaluation_set.horizon) == (configured.warm_up, configured.horizon)
        and weighting.channel_weights == configured.channel_weights
        and not metrics["other_data"]
    )
    return EvaluationResult(uri, model, field_store, evaluation_set, scores, baselines, metrics, scales, as_configured)


def _has_same_windows(
    beside: EvaluationResult, model: TrainedModel, store: FieldStore, warm_up: int, horizon: int
) -> bool:
    """Say whether a model is evaluated on the windows of another, whose starts follow the same rule."""

    def windows(model: TrainedModel, store: FieldStore) -> tuple[Any, ...]:
        data = model.config.data
        return store.digest, data.variables or store.channels, data.coarsen, model.network.channels_out

    lengths = beside.evaluation_set.warm_up, beside.evaluation_set.horizon
    return lengths == (warm_up, horizon) and windows(beside.model, beside.store) == windows(model, store)


def _cache_key(
    model: TrainedModel, store: FieldStore, evaluation_set: EvaluationSet, weighting: ValidationConfig
) -> str:
    """Return a hash of all that the scores depend on."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.network.state_dict().items()):
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    settings = [
        VERSION,
        store.digest,
        model.config.data.model_dump(),
        # a field without a mask has the key that it had before there were masks
        {key: value for key, value in asdict(model.field).items() if key != "mask" or value},
        evaluation_set.warm_up,
        evaluation_set.horizon,
        model.config.model.model_dump(),
        evaluation_set.starts,
    ]
    if evaluation_set.regions:  # without any, the key is that of scores which an earlier version has kept
        # a list, because the scores of regions are kept by their position
        settings.append([[name, str(region)] for name, region in evaluation_set.regions.items()])
    if isinstance(model, Ensemble) and weighting.channel_weights is not None:
        settings.append({"channel_weights": weighting.channel_weights})  # which the spread depends on
    if evaluation_set.measures.zonal:
        settings.append("zonal spectra")
    if isinstance(model, Ensemble):
        settings += [each.config.model_dump() for each in model.members]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _serialize(scores: Scores, frames_per_second: float, spread_T: np.ndarray | None) -> bytes:
    content = io.BytesIO()
    arrays = _arrays(scores)
    for number, each in enumerate(scores.regions.values()):
        arrays |= {f"{name}.{number}": array for name, array in _arrays(each).items()}
    arrays |= {} if spread_T is None else {"spread": spread_T}
    np.savez(content, frames_per_second=np.float64(frames_per_second), **arrays)
    return content.getvalue()


def _arrays(scores: Scores) -> dict[str, Any]:
    return {name: getattr(scores, name) for name in ARRAYS if getattr(scores, name) is not None}


def _read_cache(
    cache: Location | None, key: str, regions: Iterable[str]
) -> tuple[Scores, float, np.ndarray | None] | None:
    """Return cached scores, frames per second, and the spread of an ensemble; None where there are none to be read."""
    if cache is None:
        return None
    try:
        content = np.load(io.BytesIO(cache.read(f"{key}.npz")), allow_pickle=False)

        def read(suffix: str) -> Scores:
            arrays = {name: content.get(name + suffix) for name in ARRAYS}
            return Scores(**arrays, filled=len(content["squared"]))

        scores = read("")
        scores.regions = {name: read(f".{number}") for number, name in enumerate(regions)}
        return scores, float(content["frames_per_second"]), content.get("spread")
    except (FileNotFoundError, ValueError, KeyError, EOFError, OSError):
        return None
