"""The result of evaluating one model: its metrics and scores, ready for tables, figures and files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mcrnn.data.store import FieldStore
from mcrnn.evaluation.compatibility import check_store, store_differences
from mcrnn.evaluation.evaluation_set import BATCH_SIZE, EvaluationSet
from mcrnn.evaluation.metrics import (
    Scores,
    bootstrap,
    instability,
    rmse,
    rmse_by_step,
    rmse_mean_of_steps,
    rmse_normalized,
    skill_horizon,
    spectrum_error,
)
from mcrnn.evaluation.scoring import score, score_baselines
from mcrnn.models import model_cost
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.location import Location
from mcrnn.storage.root import Storage

VERSION = 1
"""of what is kept of an evaluation"""
ARRAYS = ("squared", "absolute", "variance", "weighted", "correlation", "power")


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics and scores of one model on one evaluation set."""

    uri: str
    model: TrainedModel
    store: FieldStore
    evaluation_set: EvaluationSet
    scores: Scores
    baselines: dict[str, Scores]
    """of lead times 1 .. horizon + 1"""
    metrics: dict[str, Any]
    is_own_exam: bool
    """whether it is the one that the model's configuration names, on the store of its training"""


def evaluate_model(
    uri: str,
    model: TrainedModel,
    storage: Storage,
    *,
    store: str | None = None,
    warm_up: int | None = None,
    horizon: int | None = None,
    starts: str | None = None,
    other_data: bool = False,
    cache: Location | None = None,
    on_batch: Callable[[int, int], None] = lambda done, windows: None,
) -> EvaluationResult:
    """Judge a model on a test split.

    Args:
        uri: what it is called.
        model: on the device where it is to run.
        storage: the root.
        store: name of the store; the one of its training by default.
        warm_up: frames given; those of its validation by default.
        horizon: closed-loop steps; those of its validation by default.
        starts: where windows of a series start; see `Exam.of`.
        other_data: allow another store, units or grid than the training's; said in the metrics.
        cache: where scores are kept, and found again.
        on_batch: told the number of windows done, and of all.

    Raises:
        UserError: the store cannot be used or is another, or its samples are too short.
    """
    own = model.config.validation
    opened = FieldStore.open(storage.location(store or model.config.data.store))
    if not other_data:
        check_store(model, opened, uri)
    evaluation_set = EvaluationSet.of(
        opened, model.config.data, warm_up=warm_up or own.warm_up, horizon=horizon or own.horizon, starts=starts
    )
    key = _key(model, opened, evaluation_set)
    kept = _kept(cache, key)
    if kept is None:
        scores, frames_per_second = score(
            model, evaluation_set, on_batch=lambda done: on_batch(done, len(evaluation_set))
        )
        if cache is not None:
            cache.write(f"{key}.npz", _packed(scores, frames_per_second))
    else:
        scores, frames_per_second = kept
    baselines = score_baselines(evaluation_set, model.network.channels_out, batch_size=BATCH_SIZE)
    metrics = _metrics(uri, model, opened, evaluation_set, scores, baselines) | {"frames_per_second": frames_per_second}
    is_own = starts is None and (evaluation_set.warm_up, evaluation_set.horizon) == (own.warm_up, own.horizon)
    is_own = is_own and not store_differences(model, opened)
    return EvaluationResult(uri, model, opened, evaluation_set, scores, baselines, metrics, is_own)


def _key(model: TrainedModel, store: FieldStore, evaluation_set: EvaluationSet) -> str:
    """Of all that the scores depend on."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.network.state_dict().items()):
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    of = [
        VERSION,
        store.digest,
        model.config.data.model_dump(),
        asdict(model.field),
        evaluation_set.warm_up,
        evaluation_set.horizon,
    ]
    digest.update(json.dumps([*of, model.config.model.model_dump(), evaluation_set.starts], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _packed(scores: Scores, frames_per_second: float) -> bytes:
    content = io.BytesIO()
    arrays = {name: getattr(scores, name) for name in ARRAYS if getattr(scores, name) is not None}
    np.savez(content, frames_per_second=np.float64(frames_per_second), **arrays)
    return content.getvalue()


def _kept(cache: Location | None, key: str) -> tuple[Scores, float] | None:
    if cache is None:
        return None
    try:
        content = np.load(io.BytesIO(cache.read(f"{key}.npz")), allow_pickle=False)
        arrays = {name: content.get(name) for name in ARRAYS}
        return Scores(**arrays, filled=len(content["squared"])), float(content["frames_per_second"])
    except (FileNotFoundError, ValueError, KeyError, EOFError, OSError):
        return None


def _metrics(
    uri: str,
    model: TrainedModel,
    store: FieldStore,
    evaluation_set: EvaluationSet,
    scores: Scores,
    baselines: dict[str, Scores],
) -> dict[str, Any]:
    predicted = model.network.channels_out
    std = np.array(store.statistic("std", model.config.data.variables))[:predicted]
    warm_up, steps = evaluation_set.warm_up, evaluation_set.steps
    costs = model_cost(model.config.model, model.field.frame_shape)
    by_step = rmse_by_step(scores.squared)
    found: dict[str, Any] = {
        "model": uri,
        "architecture": model.config.model.architecture,
        "parameters": costs.parameters,
        "multiply_adds": costs.multiply_adds,
        "store": store.name,
        "store_digest": store.digest,
        "other_data": store_differences(model, store),
        "split": "test",
        "windows": len(evaluation_set),
        "starts": evaluation_set.starts,
        "variable": model.field.variable,
        "units": model.field.units,
        "std": std.tolist(),
        "warm_up": warm_up,
        "horizon": evaluation_set.horizon,
        **_errors(scores, 1, warm_up, std, "teacher_forced"),
        **_errors(scores, warm_up + 1, steps, std, "closed_loop"),
        "rmse_closed_loop_interval": bootstrap(scores.squared, warm_up + 1, steps),
        "rmse_teacher_forced_by_step": by_step[:warm_up].tolist(),
        "rmse_by_lead_time": by_step[warm_up - 1 :].tolist(),
        "mae_by_lead_time": scores.absolute.mean((0, 2))[warm_up - 1 :].tolist(),
        "trouble": instability(scores.variance, warm_up + 1),
    }
    if scores.correlation is not None:
        found["acc_by_lead_time"] = scores.correlation.mean((0, 2))[warm_up - 1 :].tolist()
    if scores.power is not None:
        found["spectrum_error_closed_loop"] = spectrum_error(scores.power[:, warm_up:])
    found["baselines"] = {}
    for name, of in baselines.items():
        by_lead = rmse_by_step(of.squared)
        errors = _errors(of, 2, evaluation_set.horizon + 1, std, "closed_loop")
        found["baselines"][name] = errors | {"rmse_by_lead_time": by_lead.tolist()}
    found["skill_horizon"] = {
        name: skill_horizon(by_step[warm_up - 1 :], rmse_by_step(of.squared)) for name, of in baselines.items()
    }
    better = min(of["rmse_closed_loop_normalized"] for of in found["baselines"].values())
    found["ratio_to_better_baseline"] = found["rmse_closed_loop_normalized"] / better
    return found


def _errors(scores: Scores, first: int, last: int, std: np.ndarray, name: str) -> dict[str, float]:
    found = {
        f"rmse_{name}": rmse(scores.squared, first, last),
        f"rmse_{name}_normalized": rmse_normalized(scores.squared, first, last, std),
        f"rmse_{name}_mean_of_steps": rmse_mean_of_steps(scores.squared, first, last),
        f"mae_{name}": float(scores.absolute[:, first - 1 : last].mean()),
    }
    if scores.weighted is not None and scores.correlation is not None:
        found[f"rmse_{name}_latitude_weighted"] = rmse(scores.weighted, first, last)
        found[f"acc_{name}"] = float(scores.correlation[:, first - 1 : last].mean())
    return found
