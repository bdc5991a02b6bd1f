"""Errors of each channel at each lead time, in the units of that channel.

Errors of channels with different units have no mean: z in m2 s-2 would drown t in K. So each channel has figures of its
own, and figures over all channels are of errors that are divided by each channel's standard deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.evaluation.metrics import Scores

if TYPE_CHECKING:
    import cftime
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
        those of regions, (forecast, region, lead_time, channel); and `mse_by_window`, the mean squared closed-loop
        error, (forecast, window, channel), with the time of the last given frame of each window where frames have
        dates; and, of periodic fields and globes, power spectra by wavenumber.
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
    regions = evaluation_set.regions
    if regions:
        inside = [[by_lead_time(scores.regions[r], skipped) for r in regions] for scores, skipped in scored.values()]
        for name in inside[0][0]:
            values = np.array([[table[name] for table in tables_of_regions] for tables_of_regions in inside])
            in_region = _attributes(name, common)
            in_region["long_name"] += ", in a region"
            variables[f"{name}_by_region"] = (("forecast", "region", "lead_time", "channel"), values, in_region)
    variables |= _by_window(list(scored.values()), f"square of {common}")
    variables |= _spectra(list(scored.values()), f"square of {common}", zonal=evaluation_set.measures.zonal)
    coordinates: dict[str, Any] = {
        "forecast": list(scored),
        "lead_time": ("lead_time", np.arange(1, evaluation_set.horizon + 2), {"time_step": first.metrics["time_step"]}),
        "channel": list(first.metrics["channels"]),
        "channel_units": ("channel", units),
    }
    if regions:
        coordinates["region"] = list(regions)
        words = {"long_name": "northern, western, southern and eastern edge in degrees"}
        coordinates["region_edges"] = ("region", [str(region) for region in regions.values()], words)
    if "power" in variables:
        coordinates["wavenumber"] = np.arange(variables["power"][1].shape[-1])
    dates = initial_dates(first)
    if dates is not None:
        coordinates["initial_time"] = ("window", dates, {"long_name": "time of the last given frame"})
    named = ("store", "store_digest", "split", "starts", "warm_up", "horizon", "variable")
    attributes = {"Conventions": "CF-1.11", **{name: first.metrics[name] for name in named}}
    return xr.Dataset(variables, coordinates, attributes)


def initial_dates(result: EvaluationResult) -> list[cftime.datetime] | None:
    """Return the time of the last given frame of each window; None where frames have no dates."""
    evaluation_set = result.evaluation_set
    starts = (evaluation_set.windows[1] + evaluation_set.warm_up - 1).tolist()
    return result.store.dates(result.metrics["split"], starts)


def error_by_window(scores: Scores, first: int) -> np.ndarray:
    """Return the mean squared closed-loop error of each window, weighted by area on a globe; (windows, channels).

    Args:
        scores: scores of a model or baseline.
        first: position of lead time 1 in them, counted from 0.
    """
    return (scores.squared if scores.weighted is None else scores.weighted)[:, first + 1 :].mean(1)


def _by_window(scored: list[tuple[Scores, int]], units: str) -> dict[str, Any]:
    """Return the variables of errors by window, from scores and the position of lead time 1 in them."""
    dims = ("forecast", "window", "channel")
    words = "mean over closed-loop steps and grid of the squared error"
    plain = np.stack([scores.squared[:, first + 1 :].mean(1) for scores, first in scored])
    found: dict[str, Any] = {"mse_by_window": (dims, plain, {"long_name": words, "units": units})}
    if scored[0][0].weighted is not None:
        by_area = np.stack([error_by_window(scores, first) for scores, first in scored])
        attributes = {"long_name": f"{words}, weighted by the area of the cells", "units": units}
        found["mse_by_window_latitude_weighted"] = (dims, by_area, attributes)
    return found


def _spectra(scored: list[tuple[Scores, int]], units: str, *, zonal: bool) -> dict[str, Any]:
    """Return the variables of power spectra, from scores and the position of lead time 1 in them; none without."""
    powers = [scores.power[:, first:] for scores, first in scored if scores.power is not None]
    if not powers:
        return {}
    dims = ("forecast", "lead_time", "channel", "wavenumber")
    kind = "zonal wavenumber, the mean over latitudes by area" if zonal else "wavenumber"
    words = "mean square of the {} by " + kind + ", mean over windows"
    return {
        name: (dims, np.stack([power[i] for power in powers]), {"long_name": words.format(what), "units": units})
        for i, name, what in ((0, "power", "forecast"), (2, "power_of_error", "error"))
    } | {"power_of_truth": (dims[1:], powers[0][1], {"long_name": words.format("truth"), "units": units})}


def _attributes(name: str, units: str) -> dict[str, str]:
    return {"long_name": LONG_NAMES[name], "units": "1" if name == "acc" else units}
