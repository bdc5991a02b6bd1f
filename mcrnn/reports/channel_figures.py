"""Errors by lead time, one panel for each channel, because channels differ in their units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcrnn.reports.evaluation_figures import LINE_COLOURS, save
from mcrnn.reports.evaluation_tables import Group

COLUMNS = 3
STYLES = ("--", ":", "-.")
"""Line styles of the baselines, which are all grey."""


@dataclass(frozen=True)
class Panel:
    """A metric of one channel.

    Attributes:
        title: name of the channel.
        label: name of the metric with its unit.
        curves: the metric at lead times 1, 2, ... of each forecast, by name.
    """

    title: str
    label: str
    curves: dict[str, np.ndarray]


def draw(folder: Path, groups: Sequence[Group]) -> list[Path]:
    """Draw the RMSE of each channel where there are several, and their anomaly correlation on a globe.

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
    return pictures


def _panels(groups: Sequence[Group], metric: str, label: str) -> list[Panel]:
    """Return a panel for each channel, with a curve for each group and each baseline.

    Climatology has no anomalies to correlate, so it has no curve of the anomaly correlation.
    """
    panels = []
    key = f"{metric}_by_lead_time"
    for channel, errors in groups[0].best.metrics["channels"].items():
        curves = {}
        for group in groups:
            by_member = [result.metrics["channels"][channel][key] for result in group.members]
            curves[group.name] = np.mean(by_member, axis=0)
        for name, baseline in errors["baselines"].items():
            if (metric, name) != ("acc", "climatology"):
                curves[name] = np.array(baseline[key])
        unit = "" if metric == "acc" or errors["units"] == "1" else f" [{errors['units']}]"
        panels.append(Panel(channel, label + unit, curves))
    return panels


def _draw_panels(path: Path, panels: Sequence[Panel]) -> list[Path]:
    from matplotlib import pyplot as plt

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (3.2 * columns + 0.4, 2.5 * rows + 0.6) if len(panels) > 1 else (7.6, 4.0)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("lead time in steps")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)), frameon=False, fontsize=9)
    return save(figure, path)


def _draw_panel(axes: Any, panel: Panel) -> None:
    """Draw the curves; the axis ends at 4 times the baselines, so that a model that has blown up hides no other."""
    styles = iter(STYLES)
    baselines = ("persistence", "climatology")
    limit = 4 * max(float(np.nanmax(panel.curves[name])) for name in baselines if name in panel.curves)
    colours = iter(LINE_COLOURS * len(panel.curves))
    for name, values_T in panel.curves.items():
        is_baseline = name in baselines
        style, colour = (next(styles), "0.4") if is_baseline else ("-", next(colours))
        leads = np.arange(1, len(values_T) + 1)
        axes.plot(leads, values_T, style, color=colour, linewidth=1.4 if is_baseline else 2.0, label=name)
    if panel.label.startswith("RMSE"):
        highest = max(float(values[np.isfinite(values)].max(initial=0)) for values in panel.curves.values())
        axes.set_ylim(0, max(min(highest, limit) * 1.08, 1e-30))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylabel(panel.label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
