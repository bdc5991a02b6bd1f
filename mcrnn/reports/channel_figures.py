"""Figures with a panel for each channel, because channels differ in their units.

Errors by lead time and by the date at which a forecast starts, and spectra of circles of latitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.evaluation.channel_metrics import error_by_window, initial_dates
from mcrnn.evaluation.result import EvaluationResult
from mcrnn.reports.evaluation_figures import LINE_COLOURS, save
from mcrnn.reports.evaluation_tables import Group

if TYPE_CHECKING:
    import cftime

COLUMNS = 3
MOST_DATES = 6
"""Dates on the axis of a single panel."""
DAYS_WITH_HOURS = 4
"""Up to so many days, dates are written with their hours."""
STYLES = ("--", ":", "-.")
"""Line styles of the baselines, which are all grey."""


@dataclass(frozen=True)
class Panel:
    """A metric of one channel.

    Attributes:
        title: name of the channel.
        label: name of the metric with its unit.
        curves: the metric of each forecast, by name.
        x: where its values are; None for the lead times 1, 2, ...
    """

    title: str
    label: str
    curves: dict[str, np.ndarray]
    x: np.ndarray | None = None


def draw(folder: Path, groups: Sequence[Group]) -> list[Path]:
    """Draw the RMSE of each channel where there are several, and what there is on a globe, of regions and by date.

    Args:
        folder: where the figures go.
        groups: the evaluated models.

    Returns:
        The files.
    """
    channels = groups[0].best.metrics["channels"]
    on_sphere = "acc_by_lead_time" in next(iter(channels.values()))
    weighted = "_latitude_weighted" if on_sphere else ""
    pictures = []
    if len(channels) > 1:
        pictures += _draw_panels(folder / "rmse_by_channel.png", _panels(groups, f"rmse{weighted}", "RMSE"))
    if on_sphere:
        pictures += _draw_panels(folder / "acc.png", _panels(groups, "acc", "anomaly correlation"))
    in_regions = []
    for region in groups[0].best.metrics.get("regions", {}):
        in_regions += _panels(groups, f"rmse{weighted}", "RMSE", region)
    if in_regions:
        per_row = COLUMNS // len(channels) * len(channels) or COLUMNS  # so that a region does not go on in a second row
        pictures += _draw_panels(folder / "rmse_by_region.png", in_regions, most_columns=per_row)
    if groups[0].best.evaluation_set.measures.zonal:
        pictures += _draw_zonal_spectra(folder / "zonal_spectra.png", groups)
    dates = initial_dates(groups[0].best)
    if dates is not None and len(dates) > 1:
        pictures += _draw_by_date(folder / "rmse_by_date.png", groups, dates)
    return pictures


def _draw_by_date(path: Path, groups: Sequence[Group], dates: Sequence[cftime.datetime]) -> list[Path]:
    """Draw the closed-loop RMSE of each window over the date at which its forecast starts."""
    import cftime

    units, calendar = f"days since {dates[0].isoformat(' ')}", dates[0].calendar
    days = np.asarray(cftime.date2num(list(dates), units, calendar=calendar))
    first = groups[0].best
    given = first.evaluation_set.warm_up - 1
    forecasts = {g.name: [(result.scores, given) for result in g.members] for g in groups}
    forecasts |= {name: [(scores, 0)] for name, scores in first.baselines.items()}
    errors = {
        name: np.sqrt(np.mean([error_by_window(*each) for each in members], axis=0))
        for name, members in forecasts.items()
    }
    panels = [
        Panel(channel, f"RMSE{_unit(known)}", {name: error_NC[:, i] for name, error_NC in errors.items()}, days)
        for i, (channel, known) in enumerate(first.metrics["channels"].items())
    ]
    pattern = "%Y-%m-%d" if days[-1] > DAYS_WITH_HOURS else "%m-%d %H:%M"

    def date(day: float, _: int) -> str:
        return cftime.num2date(day, units, calendar=calendar).strftime(pattern)

    return _draw_panels(path, panels, "start of the forecast", date)


def _draw_zonal_spectra(path: Path, groups: Sequence[Group]) -> list[Path]:
    """Draw the power of truth, forecasts and their errors at the last lead time by zonal wavenumber."""
    from matplotlib import pyplot as plt

    channels = groups[0].best.metrics["channels"]
    columns = min(COLUMNS, len(channels))
    rows = math.ceil(len(channels) / columns)
    size = (3.4 * columns + 0.4, 2.7 * rows + 0.8) if len(channels) > 1 else (7.6, 4.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for i, (axes, (channel, known)) in enumerate(zip(grid.flat, channels.items(), strict=False)):
        truth_K = np.asarray(groups[0].best.scores.power)[1, -1, i]
        waves = np.arange(1, len(truth_K))  # wavenumber 0, the mean of each circle, would hide the others
        axes.loglog(waves, truth_K[1:], color="0.2", linewidth=3, alpha=0.5, label="truth")
        for j, group in enumerate(groups):
            power_3K, colour = np.asarray(group.best.scores.power)[:, -1, i, 1:], LINE_COLOURS[j % len(LINE_COLOURS)]
            axes.loglog(waves, power_3K[0], color=colour, linewidth=1.8, label=group.name)
            axes.loglog(waves, power_3K[2], "--", color=colour, linewidth=1.4)
        axes.plot([], [], "--", color="0.4", linewidth=1.4, label="error, in the colour of its forecast")
        axes.set_title(channel, fontsize=10)
        unit = known["units"] if known["units"].isalpha() else f"({known['units']})"
        axes.set_ylabel("mean square" + ("" if known["units"] == "1" else f" [{unit}²]"), fontsize=9)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(channels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("zonal wavenumber")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    return save(figure, path)


def _unit(channel: dict[str, Any]) -> str:
    return "" if channel["units"] == "1" else f" [{channel['units']}]"


def _panels(groups: Sequence[Group], metric: str, label: str, region: str | None = None) -> list[Panel]:
    """Return a panel for each channel, with a curve for each group and each baseline.

    Climatology has no anomalies to correlate, so it has no curve of the anomaly correlation.
    """

    def channels(result: EvaluationResult) -> dict[str, Any]:
        return (result.metrics if region is None else result.metrics["regions"][region])["channels"]

    panels = []
    key = f"{metric}_by_lead_time"
    for channel, errors in channels(groups[0].best).items():
        curves = {}
        for group in groups:
            by_member = [channels(result)[channel][key] for result in group.members]
            curves[group.name] = np.mean(by_member, axis=0)
        for name, baseline in errors["baselines"].items():
            if (metric, name) != ("acc", "climatology"):
                curves[name] = np.array(baseline[key])
        unit = "" if metric == "acc" else _unit(errors)
        title = channel if region is None else f"{channel}, {region}"
        panels.append(Panel(title, label + unit, curves))
    return panels


def _draw_panels(
    path: Path,
    panels: Sequence[Panel],
    x_label: str = "lead time in steps",
    date: Callable[[float, int], str] | None = None,
    most_columns: int = COLUMNS,
) -> list[Path]:
    """Draw panels with a common legend; `date` formats positions on the x axis, which are whole numbers without it."""
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    columns = min(most_columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (3.2 * columns + 0.4, 2.5 * rows + 0.6) if len(panels) > 1 else (7.6, 4.0)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:  # the lowest one of each column
        axes.set_xlabel(x_label)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[: len(panels)]:
        if date is None:
            axes.xaxis.get_major_locator().set_params(integer=True)
        else:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(MOST_DATES if len(panels) == 1 else 3))
            axes.xaxis.set_major_formatter(date)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    return save(figure, path)


def _draw_panel(axes: Any, panel: Panel) -> None:
    """Draw the curves; the axis ends at 4 times the baselines, so that a model that has blown up hides no other.

    A curve that lies above the end of the axis is named there.
    """
    styles = iter(STYLES)
    baselines = ("persistence", "climatology")
    limit = 4 * max(float(np.nanmax(panel.curves[name])) for name in baselines if name in panel.curves)
    colours = iter(LINE_COLOURS * len(panel.curves))
    for name, values_T in panel.curves.items():
        is_baseline = name in baselines
        style, colour = (next(styles), "0.4") if is_baseline else ("-", next(colours))
        x = np.arange(1, len(values_T) + 1) if panel.x is None else panel.x
        axes.plot(x, values_T, style, color=colour, linewidth=1.4 if is_baseline else 2.0, label=name)
    if panel.label.startswith("RMSE"):
        highest = max(float(values[np.isfinite(values)].max(initial=0)) for values in panel.curves.values())
        top = max(min(highest, limit) * 1.08, 1e-30)
        axes.set_ylim(0, top)
        if above := [name for name, values in panel.curves.items() if not np.nanmin(values) < top]:
            axes.text(
                0.98, 0.96, f"above: {', '.join(above)}", ha="right", va="top", transform=axes.transAxes, fontsize=8
            )
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylabel(panel.label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
