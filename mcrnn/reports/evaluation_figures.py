"""Figures of an evaluation: errors by step, fields, spectra, costs. Each is written as PNG and as PDF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mcrnn.reports.animation import fix_layout, write_animation

FIELD_COLOURS = "viridis"
ERROR_COLOURS = "RdBu_r"
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of Okabe and Ito (2008), which people with any colour vision can tell apart."""
SMALLEST_GAP = 0.045
"""Smallest distance between the names of two lines, as a share of the figure's height."""


@dataclass(frozen=True)
class Curve:
    """An error by step, drawn as a line with its name beside its end.

    Attributes:
        name: name of the model or baseline.
        first_step: step of the first value, counted from 1.
        rmse: error at each step.
        baseline: whether it is a baseline, which is drawn in grey.
        low: lower bound of a shaded band, such as the smallest error of several seeds; None for no band.
        high: upper bound of the band.
    """

    name: str
    first_step: int
    rmse: np.ndarray
    baseline: bool = False
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def save(figure: Any, path: Path) -> list[Path]:
    """Write a figure as PNG and PDF, and close it."""
    paths = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    fix_layout(figure)
    for each in paths:
        # without the date, the same figure is the same file
        metadata = {"CreationDate": None} if each.suffix == ".pdf" else None
        figure.savefig(each, dpi=150, metadata=metadata)
    plt.close(figure)
    return paths


def _spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights up where two are closer than a gap, so that names beside them do not overlap."""
    moved: dict[int, float] = {}
    last = -np.inf
    for index in np.argsort(heights):
        last = max(float(heights[index]), last + gap)
        moved[int(index)] = last
    return [moved[index] for index in range(len(heights))]


def error_curves(path: Path, curves: list[Curve], *, warm_up: int, quantity: str) -> list[Path]:
    """Draw the RMSE at the steps of an evaluation, teacher-forced up to `warm_up` and in closed loop after it.

    Args:
        path: file to write; its suffix is replaced by .png and .pdf.
        curves: the errors of the models, then those of the baselines.
        warm_up: last teacher-forced step.
        quantity: name and unit of the field.

    Returns:
        The files.
    """
    figure, axes = plt.subplots(figsize=(7.6, 4.4), layout="constrained")
    last = max(c.first_step + len(c.rmse) - 1 for c in curves)
    styles = iter(("--", ":", "-."))
    # the axis ends at 4 times the largest error of a baseline: a model that has blown up must not flatten the others
    finite = [c.rmse[np.isfinite(c.rmse)] for c in curves]
    limit = 4 * max((float(c.rmse.max()) for c in curves if c.baseline and np.isfinite(c.rmse).all()), default=np.inf)
    top = max(min(float(values.max(initial=0)), limit) for values in finite) or 1.0
    models = 0
    names: list[tuple[str, float, str]] = []
    for curve in curves:
        steps = np.arange(curve.first_step, curve.first_step + len(curve.rmse))
        style = next(styles) if curve.baseline else "-"
        colour = "0.4" if curve.baseline else LINE_COLOURS[models % len(LINE_COLOURS)]
        models += not curve.baseline
        axes.plot(steps, curve.rmse, style, color=colour, linewidth=1.6 if curve.baseline else 2.0)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        end = float(curve.rmse[-1])
        names.append((curve.name, min(end, top) if np.isfinite(end) else top, colour))
    heights = _spread_out([height for _, height, _ in names], SMALLEST_GAP * 1.15 * top)
    for (name, _, colour), height in zip(names, heights, strict=True):
        axes.annotate(name, (last, height), xytext=(6, 0), textcoords="offset points", va="center", color=colour)
    axes.axvline(warm_up + 0.5, color="0.75", linewidth=1)
    axes.text(warm_up + 0.2, top * 1.06, "given frames", ha="right", va="bottom", color="0.45", fontsize=9)
    axes.text(warm_up + 0.8, top * 1.06, "closed loop", ha="left", va="bottom", color="0.45", fontsize=9)
    axes.set(
        xlim=(1, last),
        ylim=(0, max(top * 1.15, *(height * 1.02 for height in heights))),
        xlabel=f"step (lead time = step − {warm_up - 1})",
        ylabel=f"RMSE of {quantity}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def spread_skill(path: Path, spread: np.ndarray, rmse: np.ndarray, *, name: str) -> list[Path]:
    """Draw the spread of an ensemble and the error of its mean by lead time, and their ratio.

    Args:
        path: file to write; its suffix is replaced by .png and .pdf.
        spread: spread at lead times 1, 2, ...; see `mcrnn.evaluation.spread`.
        rmse: error of the ensemble's mean at the same lead times, normalised as the spread is.
        name: name of the ensemble.

    Returns:
        The files.
    """
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.6, 5.2), layout="constrained", sharex=True, height_ratios=(2, 1)
    )
    leads = np.arange(1, len(rmse) + 1)
    above.plot(leads, rmse, color=LINE_COLOURS[0], linewidth=2, label="error of the mean")
    above.plot(leads, spread, "--", color=LINE_COLOURS[1], linewidth=2, label="spread of the members")
    above.legend(frameon=False)
    above.set(ylim=(0, None), ylabel="over the standard deviation", title=name)
    below.axhline(1, color="0.75", linewidth=1)
    below.plot(leads, spread / rmse, color="0.3", linewidth=1.8)
    below.set(ylim=(0, None), xlim=(1, len(rmse)), xlabel="lead time", ylabel="spread / error")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def spectra(
    path: Path, truth_K: np.ndarray, forecasts: dict[str, np.ndarray], *, quantity: str, lead: int
) -> list[Path]:
    """Draw the power spectra of truth and forecasts.

    Args:
        path: file to write; its suffix is replaced by .png and .pdf.
        truth_K: mean square of the truth at wavenumbers 0 .. K.
        forecasts: mean square of each model's forecast at the same wavenumbers, by name.
        quantity: name and unit of the field.
        lead: the lead time.

    Returns:
        The files.
    """
    figure, axes = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
    k = np.arange(1, len(truth_K))
    axes.loglog(k, truth_K[1:], color="0.2", linewidth=3, alpha=0.5)
    ends = [("truth", float(truth_K[-1]), "0.2")]
    for i, (name, power_K) in enumerate(forecasts.items()):
        colour = LINE_COLOURS[i % len(LINE_COLOURS)]
        axes.loglog(k, power_K[1:], color=colour, linewidth=1.8)
        ends.append((name, float(power_K[-1]), colour))
    low, high = (np.log10(limit) for limit in axes.get_ylim())
    heights = _spread_out([np.log10(max(value, 10**low)) for _, value, _ in ends], SMALLEST_GAP * (high - low))
    for (name, _, colour), height in zip(ends, heights, strict=True):
        axes.annotate(name, (k[-1], 10**height), xytext=(6, 0), textcoords="offset points", va="center", color=colour)
    axes.set(xlabel="wavenumber", ylabel=f"mean square of {quantity}", xlim=(1, k[-1]))
    axes.set_title(f"power spectrum at lead time {lead}", fontsize=10)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def costs(path: Path, points: dict[str, tuple[float, float]], *, cost: str, quantity: str) -> list[Path]:
    """Draw error against cost; a line joins the models that no other beats in both.

    Args:
        path: file to write; its suffix is replaced by .png and .pdf.
        points: cost and error of each model, by name.
        cost: label of the cost, with its unit.
        quantity: name and unit of the field.

    Returns:
        The files.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    best, front = np.inf, []
    for x, y in sorted(points.values()):
        if y < best:
            front.append((x, y))
            best = y
    axes.step(*zip(*front, strict=True), where="post", color="0.75", linewidth=1.2, zorder=1)
    for i, (name, (x, y)) in enumerate(points.items()):
        colour = LINE_COLOURS[i % len(LINE_COLOURS)]
        axes.scatter(x, y, color=colour, s=42, zorder=2)
        axes.annotate(name, (x, y), xytext=(7, 4), textcoords="offset points", color=colour, fontsize=9)
    largest, smallest = (f(x for x, _ in points.values()) for f in (max, min))
    if largest > 8 * smallest:
        axes.set_xscale("log")
    axes.margins(x=0.25, y=0.15)
    axes.set(xlabel=cost, ylabel=f"closed-loop RMSE of {quantity}")
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def field_series(
    path: Path,
    truth_THW: np.ndarray,
    prediction_THW: np.ndarray,
    lead_times: list[int],
    *,
    quantity: str,
    title: str,
) -> list[Path]:
    """Draw truth, forecast and error in three rows, with a column for each lead time.

    Args:
        path: file to write; its suffix is replaced by .png and .pdf.
        truth_THW: truth at `lead_times`, first row at the bottom.
        prediction_THW: forecast at `lead_times`.
        lead_times: lead times of the columns.
        quantity: name and unit of the field.
        title: title of the figure.

    Returns:
        The files.
    """
    columns = len(lead_times)
    height, width = truth_THW.shape[1:]
    size = 1.5
    figure, grid = plt.subplots(
        3,
        columns,
        figsize=(size * columns * max(1.0, width / height) + 1.6, size * 3 + 0.8),
        layout="constrained",
    )
    grid = np.asarray(grid).reshape(3, columns)
    rows = _panels(truth_THW, prediction_THW)
    for row, (name, values_THW, colours, smallest, greatest) in enumerate(rows):
        for column, lead_time in enumerate(lead_times):
            axes = grid[row, column]
            image = axes.imshow(values_THW[column], cmap=colours, vmin=smallest, vmax=greatest, origin="lower")
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(f"lead time {lead_time}", fontsize=10)
            if column == 0:
                axes.set_ylabel(name, fontsize=11)
        if row == 1:
            figure.colorbar(image, ax=grid[:2, :], label=quantity, shrink=0.8)
        if row == 2:
            figure.colorbar(image, ax=grid[2, :], label="error", shrink=0.9)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def field_animation(
    path: Path, truth_THW: np.ndarray, prediction_THW: np.ndarray, *, quantity: str, title: str
) -> None:
    """Animate truth, forecast and error side by side, one frame per lead time.

    Args:
        path: file to write, which ends with .mp4 or .gif.
        truth_THW: truth at lead times 1, 2, ..., first row at the bottom.
        prediction_THW: forecast at the same lead times.
        quantity: name and unit of the field.
        title: title above the panels.
    """
    height, width = truth_THW.shape[1:]
    side = 2.6
    figure, grid = plt.subplots(
        1, 3, figsize=(3 * side * max(1.0, width / height) + 1.4, side + 0.9), layout="constrained"
    )
    images = []
    rows = _panels(truth_THW, prediction_THW)
    for axes, (name, values_THW, colours, smallest, greatest) in zip(grid, rows, strict=True):
        images.append(axes.imshow(values_THW[0], cmap=colours, vmin=smallest, vmax=greatest, origin="lower"))
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=10)
    figure.colorbar(images[1], ax=grid[:2], label=quantity, shrink=0.85)
    figure.colorbar(images[2], ax=grid[2], label="error", shrink=0.85)
    heading = figure.suptitle(title, fontsize=10)

    def draw(t: int) -> None:
        for image, (_, values_THW, *_rest) in zip(images, rows, strict=True):
            image.set_data(values_THW[t])
        heading.set_text(f"{title}, lead time {t + 1}")

    write_animation(path, figure, len(truth_THW), draw, frames_per_second=6)
    plt.close(figure)


def _panels(truth_THW: np.ndarray, prediction_THW: np.ndarray) -> tuple[tuple[str, np.ndarray, str, float, float], ...]:
    """Return name, values, colour map and its bounds of each panel; truth and forecast share their bounds."""
    low, high = float(np.nanmin(truth_THW)), float(np.nanmax(truth_THW))  # a mask has no values
    error_THW = prediction_THW - truth_THW
    largest = float(np.abs(error_THW[np.isfinite(error_THW)]).max(initial=1e-12))
    return (
        ("truth", truth_THW, FIELD_COLOURS, low, high),
        ("forecast", prediction_THW, FIELD_COLOURS, low, high),
        ("error", error_THW, ERROR_COLOURS, -largest, largest),
    )
