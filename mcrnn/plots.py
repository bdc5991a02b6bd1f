"""Pictures of an evaluation: the fields over lead times, the error over lead times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIELD_COLOURS = "viridis"
ERROR_COLOURS = "RdBu_r"
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""of Okabe and Ito (2008), told apart with any colour vision"""


@dataclass(frozen=True)
class Curve:
    """An error by step, to be drawn with its name beside its end."""

    name: str
    first_step: int
    rmse: np.ndarray
    baseline: bool = False


def error_curves(path: Path, curves: list[Curve], *, warm_up: int, quantity: str) -> None:
    """RMSE over the steps of an evaluation, teacher-forced up to `warm_up`, in closed loop after it.

    Args:
        path: PNG file to write.
        curves: models first, then baselines, which are drawn in grey.
        warm_up: last teacher-forced step.
        quantity: what the error is of, with its unit.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    last = max(c.first_step + len(c.rmse) - 1 for c in curves)
    styles = iter(("--", ":", "-."))
    colours = iter(LINE_COLOURS)
    top = max(float(c.rmse[np.isfinite(c.rmse)].max(initial=0)) for c in curves)
    ends: list[float] = []
    for curve in curves:
        steps = np.arange(curve.first_step, curve.first_step + len(curve.rmse))
        style = next(styles) if curve.baseline else "-"
        colour = "0.4" if curve.baseline else next(colours)
        axes.plot(steps, curve.rmse, style, color=colour, linewidth=1.6 if curve.baseline else 2.2)
        height = float(curve.rmse[-1])
        while any(abs(height - other) < 0.05 * top for other in ends):
            height += 0.01 * top  # keep the names apart where the lines end close to each other
        ends.append(height)
        axes.annotate(curve.name, (last, height), xytext=(6, 0), textcoords="offset points", va="center", color=colour)
    axes.axvline(warm_up + 0.5, color="0.75", linewidth=1)
    axes.text(warm_up + 0.2, top * 1.06, "given frames", ha="right", va="bottom", color="0.45", fontsize=9)
    axes.text(warm_up + 0.8, top * 1.06, "closed loop", ha="left", va="bottom", color="0.45", fontsize=9)
    axes.set(
        xlim=(1, last),
        ylim=(0, top * 1.15),
        xlabel=f"step (lead time = step − {warm_up - 1})",
        ylabel=f"RMSE of {quantity}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def field_series(
    path: Path,
    truth_THW: np.ndarray,
    prediction_THW: np.ndarray,
    lead_times: list[int],
    *,
    quantity: str,
    title: str,
) -> None:
    """Truth, prediction and error of one sample, a column a lead time.

    Args:
        path: PNG file to write.
        truth_THW: truth at `lead_times`.
        prediction_THW: forecast at `lead_times`.
        lead_times: of the columns.
        quantity: what the field is, with its unit.
        title: of the figure.
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
    low, high = float(truth_THW.min()), float(truth_THW.max())
    error_THW = prediction_THW - truth_THW
    largest = float(np.abs(error_THW[np.isfinite(error_THW)]).max(initial=1e-12))
    rows = (
        ("truth", truth_THW, FIELD_COLOURS, low, high),
        ("forecast", prediction_THW, FIELD_COLOURS, low, high),
        ("error", error_THW, ERROR_COLOURS, -largest, largest),
    )
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
    figure.savefig(path, dpi=150)
    plt.close(figure)
