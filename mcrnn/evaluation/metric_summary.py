"""The content of metrics.json: the errors of a model, over all channels and by channel, beside the baselines."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcrnn.config.sections import ValidationConfig
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.channel_metrics import channel_metrics
from mcrnn.evaluation.compatibility import store_differences
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.metrics import (
    Scores,
    instability,
    rmse,
    rmse_by_step,
    rmse_mean_of_steps,
    rmse_normalized,
    skill_horizon,
    spectrum_error,
)
from mcrnn.evaluation.uncertainty import rmse_interval
from mcrnn.models.trained_model import TrainedModel


def summarize(
    uri: str,
    model: TrainedModel,
    store: FieldStore,
    evaluation_set: EvaluationSet,
    scores: Scores,
    baselines: dict[str, Scores],
    weighting: ValidationConfig,
) -> dict[str, Any]:
    """Return the content of metrics.json but for the speed.

    Errors are in the field's units unless normalised. Those over all channels are None where the units of channels
    differ, because they have no mean then. Normalised ones have the weights of channels that `weighting` gives.
    """
    channels = model.field.channels[: model.network.channels_out]
    units = store.units_of(channels)
    std = np.array(store.statistic("std", model.config.data.variables))[: len(channels)]
    scales = np.array(weighting.error_scales(channels, std.tolist()))
    has_one_unit = len(channels) == 1 or (len(set(units)) == 1 and ", " not in units[0])
    warm_up, steps = evaluation_set.warm_up, evaluation_set.steps
    costs = model.cost
    by_step, by_step_normalized = rmse_by_step(scores.squared), rmse_by_step(scores.squared / scales**2)
    by_window_NC = scores.squared[:, warm_up:].mean(1)
    overlap = evaluation_set.overlap
    metrics: dict[str, Any] = {
        "model": uri,
        "architecture": model.architecture,
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
        "time_step": model.field.time_step,
        "std": std.tolist(),
        "channel_weights": weighting.channel_weights,
        "warm_up": warm_up,
        "horizon": evaluation_set.horizon,
        **_errors(scores, 1, warm_up, scales, "teacher_forced"),
        **_errors(scores, warm_up + 1, steps, scales, "closed_loop"),
        "rmse_closed_loop_interval": rmse_interval(by_window_NC.mean(1), overlap),
        "rmse_closed_loop_normalized_interval": rmse_interval((by_window_NC / scales**2).mean(1), overlap),
        "rmse_teacher_forced_by_step": by_step[:warm_up].tolist(),
        "rmse_by_lead_time": by_step[warm_up - 1 :].tolist(),
        "rmse_by_lead_time_normalized": by_step_normalized[warm_up - 1 :].tolist(),
        "mae_by_lead_time": scores.absolute.mean((0, 2))[warm_up - 1 :].tolist(),
        "trouble": instability(scores.variance, warm_up + 1),
    }
    if scores.correlation is not None:
        metrics["acc_by_lead_time"] = scores.correlation.mean((0, 2))[warm_up - 1 :].tolist()
    if scores.power is not None and evaluation_set.measures.spectra:
        metrics["spectrum_error_closed_loop"] = spectrum_error(scores.power[:, warm_up:])
    metrics["baselines"], metrics["skill_horizon"] = {}, {}
    for name, baseline_scores in baselines.items():
        normalized = rmse_by_step(baseline_scores.squared / scales**2)
        metrics["baselines"][name] = _errors(baseline_scores, 2, evaluation_set.horizon + 1, scales, "closed_loop") | {
            "rmse_by_lead_time": rmse_by_step(baseline_scores.squared).tolist(),
            "rmse_by_lead_time_normalized": normalized.tolist(),
        }
        metrics["skill_horizon"][name] = skill_horizon(by_step_normalized[warm_up - 1 :], normalized)
    better = min(errors["rmse_closed_loop_normalized"] for errors in metrics["baselines"].values())
    metrics["ratio_to_better_baseline"] = metrics["rmse_closed_loop_normalized"] / better
    if not has_one_unit:
        for errors in (metrics, *metrics["baselines"].values()):
            _leave_out_means(errors)
    metrics["channels"] = channel_metrics(scores, baselines, channels, units, std, warm_up - 1)
    if evaluation_set.regions:
        metrics["regions"] = {}
    for name, region in evaluation_set.regions.items():
        inside = scores.regions[name]
        others = {baseline: each.regions[name] for baseline, each in baselines.items()}
        assert inside.weighted is not None
        metrics["regions"][name] = {
            "edges": str(region),
            "grid_points": evaluation_set.measures.regions[name].size,
            "rmse_closed_loop_normalized_latitude_weighted": rmse_normalized(
                inside.weighted, warm_up + 1, steps, scales
            ),
            "channels": channel_metrics(inside, others, channels, units, std, warm_up - 1),
        }
    return metrics


def _errors(scores: Scores, first: int, last: int, scales: np.ndarray, name: str) -> dict[str, float]:
    """Return the errors over steps first .. last (counted from 1), with `name` in their keys."""
    errors = {
        f"rmse_{name}": rmse(scores.squared, first, last),
        f"rmse_{name}_normalized": rmse_normalized(scores.squared, first, last, scales),
        f"rmse_{name}_mean_of_steps": rmse_mean_of_steps(scores.squared, first, last),
        f"mae_{name}": float(scores.absolute[:, first - 1 : last].mean()),
    }
    if scores.weighted is not None and scores.correlation is not None:
        errors[f"rmse_{name}_latitude_weighted"] = rmse(scores.weighted, first, last)
        errors[f"rmse_{name}_normalized_latitude_weighted"] = rmse_normalized(scores.weighted, first, last, scales)
        errors[f"acc_{name}"] = float(scores.correlation[:, first - 1 : last].mean())
    return errors


def _leave_out_means(errors: dict[str, Any]) -> None:
    """Replace the errors over channels of different units by None."""
    for key in errors:
        if key.startswith(("rmse_", "mae_")) and "_normalized" not in key:
            errors[key] = None
