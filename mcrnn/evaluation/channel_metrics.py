"""Errors of each channel at each lead time, in the units of that channel.

Errors of channels with different units have no mean: z in m2 s-2 would drown t in K. So each channel has figures of its
own, and figures over all channels are of errors that are divided by each channel's standard deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.evaluation.metrics import Scores

if TYPE_CHECKING:
    import xarray as xr

    from mcrnn.evaluation.result import EvaluationResult

LONG_NAMES = {
    "rmse": "root of the mean over windows and grid of the squared error",
    "mae": "mean over windows and grid of the absolute error",
    "bias": "mean over windows and grid of the error, weighted by the area of the cells on a globe",
    "rmse_latitude_weighted": "root of the mean squared error, weighted by the area of the cells",
    "mae_latitude_weighted": "mean absolute error, weighted by the area of the cells",
    "acc": "anomaly correlation with respect to climatology, weighted by the area of the cells, mean over windows",
}
"""Metrics of a channel at a lead time, in the order in which they are shown; the last three only on a globe."""


def by_lead_time(scores: Scores, first: int) -> dict[str, np.ndarray]:
    """Return the metrics of `LONG_NAMES` that the scores have, (lead times, channels) each.

    Args:
        scores: scores of a model or baseline.
        first: first step to take, counted from 0, which has lead time 1.
    """
    found = {
        "rmse": np.sqrt(scores.squared.mean(0)),
        "mae": scores.absolute.mean(0),
        "bias": scores.bias.mean(0),
    }
    if scores.weighted is not None and scores.weighted_absolute is not None and scores.correlation is not None:
        found["rmse_latitude_weighted"] = np.sqrt(scores.weighted.mean(0))
        found["mae_latitude_weighted"] = scores.weighted_absolute.mean(0)
        found["acc"] = scores.correlation.mean(0)
    return {name: values_TC[first:] for name, values_TC in found.items()}


def channel_metrics(
    scores: Scores,
    baselines: dict[str, Scores],
    channels: tuple[str, ...],
    units: list[str],
    std: np.ndarray,
    first: int,
) -> dict[str, Any]:
    """Return the part `channels` of metrics.json: for each channel its units, and its errors beside the baselines'.

    Args:
        scores: scores of the model at all steps.
        baselines: scores of each baseline at lead times 1, 2, ...
        channels: names of the predicted channels.
        units: units of each channel.
        std: standard deviation of each channel over the training split.
        first: first step to take, counted from 0, which has lead time 1.
    """
    model = _errors_by_channel(scores, first)
    others = {name: _errors_by_channel(baseline, 0) for name, baseline in baselines.items()}
    return {
        channel: {
            "units": units[i],
            "std": float(std[i]),
            **model[i],
            "baselines": {name: errors[i] for name, errors in others.items()},
        }
        for i, channel in enumerate(channels)
    }


def _errors_by_channel(scores: Scores, first: int) -> list[dict[str, Any]]:
    """Return the closed-loop errors of each channel, which begin at lead time 2, and those by lead time."""
    errors: list[dict[str, Any]] = [
        {"rmse_closed_loop": float(np.sqrt(value)), "mae_closed_loop": float(absolute)}
        for value, absolute in zip(
            scores.squared[:, first + 1 :].mean((0, 1)), scores.absolute[:, first + 1 :].mean((0, 1)), strict=True
        )
    ]
    if scores.weighted is not None:
        for found, value in zip(errors, scores.weighted[:, first + 1 :].mean((0, 1)), strict=True):
            found["rmse_closed_loop_latitude_weighted"] = float(np.sqrt(value))
    for name, values_TC in by_lead_time(scores, first).items():
        for found, values_T in zip(errors, values_TC.T, strict=True):
            found[f"{name}_by_lead_time"] = values_T.tolist()
    return errors


def as_dataset(results: dict[str, EvaluationResult]) -> xr.Dataset:
    """Return all metrics by channel and lead time, and the errors of every window, as an xarray Dataset.

    Args:
        results: evaluated models by name, all on the same evaluation set.

    Returns:
        Metrics with the dimensions (forecast, lead_time, channel), where the baselines are forecasts beside the models;
        and `mse_by_window`, the mean squared closed-loop error, (forecast, window, channel), with the time of the last
        given frame of each window where frames have dates.
    """
    import xarray as xr

    first = next(iter(results.values()))
    evaluation_set = first.evaluation_set
    scored = {name: (result.scores, evaluation_set.warm_up - 1) for name, result in results.items()}
    scored |= {name: (scores, 0) for name, scores in first.baselines.items()}
    tables = [by_lead_time(scores, skipped) for scores, skipped in scored.values()]
    dims = ("forecast", "lead_time", "channel")
    units = [channel["units"] for channel in first.metrics["channels"].values()]
    common = units[0] if len(set(units)) == 1 else "those of the channel, see channel_units"
    variables: dict[str, Any] = {
        name: (dims, np.stack([table[name] for table in tables]), _attributes(name, common)) for name in tables[0]
    }
    by_window = np.stack([scores.squared[:, skipped + 1 :].mean(1) for scores, skipped in scored.values()])
    variables["mse_by_window"] = (
        ("forecast", "window", "channel"),
        by_window,
        {"long_name": "mean over closed-loop steps and grid of the squared error", "units": f"square of {common}"},
    )
    coordinates: dict[str, Any] = {
        "forecast": list(scored),
        "lead_time": ("lead_time", np.arange(1, evaluation_set.horizon + 2), {"time_step": first.metrics["time_step"]}),
        "channel": list(first.metrics["channels"]),
        "channel_units": ("channel", units),
    }
    starts = (evaluation_set.windows[1] + evaluation_set.warm_up - 1).tolist()
    dates = first.store.dates(first.metrics["split"], starts)
    if dates is not None:
        coordinates["initial_time"] = ("window", dates, {"long_name": "time of the last given frame"})
    named = ("store", "store_digest", "split", "starts", "warm_up", "horizon", "variable")
    attributes = {"Conventions": "CF-1.11", **{name: first.metrics[name] for name in named}}
    return xr.Dataset(variables, coordinates, attributes)


def _attributes(name: str, units: str) -> dict[str, str]:
    return {"long_name": LONG_NAMES[name], "units": "1" if name == "acc" else units}
