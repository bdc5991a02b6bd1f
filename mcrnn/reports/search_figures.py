"""Figures of a search: its course, and how the error depends on each hyperparameter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator, NullFormatter

from mcrnn.console import field_label, format_value
from mcrnn.reports.evaluation_figures import LINE_COLOURS

ARCHITECTURE = "model.architecture"
LOGARITHMIC = 20.0
"""An axis is logarithmic where its largest value is at least so many times its smallest."""
Row = dict[str, Any]
"""A trial in the search's summary: number, how it ended, values of the searched fields, best validation error."""


def draw(folder: Path, trials: Sequence[Row], fields: Sequence[str], importance: dict[str, float]) -> list[Path]:
    """Draw the figures of a search.

    Args:
        folder: an existing folder to write to.
        trials: the trials of the search's summary, in their order.
        fields: dotted paths of the searched fields.
        importance: importance of each field as a share of 1, the largest first; empty after too few trials.

    Returns:
        The PNG files; none where no trial has a result.
    """
    good = [row for row in trials if "best" in row and row["end"] in ("finished", "stopped")]
    if not good:
        return []
    fields = _fields_with_values(fields, good)
    pictures = {"history": _history, "slices": _slices, "parallel_coordinates": _parallel_coordinates}
    paths = []
    for name, picture in pictures.items():
        paths.append(_save(picture(good, fields), folder / f"{name}.png"))
    if importance:
        paths.append(_save(_importance(importance), folder / "importance.png"))
    return paths


def _fields_with_values(fields: Sequence[str], trials: Sequence[Row]) -> list[str]:
    """Leave out the fields that none of the trials has, the conditions of which never held."""
    return [path for path in fields if any(path in row["values"] for row in trials)]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _colours(trials: Sequence[Row]) -> dict[Any, str]:
    """Return a colour for each architecture, or one for all where architectures are not searched."""
    names = sorted({row["values"].get(ARCHITECTURE, "") for row in trials})
    return {name: LINE_COLOURS[i % len(LINE_COLOURS)] for i, name in enumerate(names)}


def _top(trials: Sequence[Row]) -> float:
    """Return the upper end of the error axis, so that a few very bad trials do not flatten the others."""
    errors = np.array([row["best"] for row in trials])
    return float(min(errors.max(), 2.5 * np.median(errors)) * 1.06)


def _scatter(axes: Any, x: Sequence[float], trials: Sequence[Row], top: float) -> None:
    """Draw trials as dots: hollow where a trial was stopped early, a triangle where its error is above the axis."""
    colours = _colours(trials)
    for position, row in zip(x, trials, strict=True):
        colour = colours[row["values"].get(ARCHITECTURE, "")]
        above = row["best"] > top
        filled = row["end"] == "finished"
        axes.scatter(
            position,
            min(row["best"], top * 0.985),
            s=34 if filled else 22,
            marker="^" if above else "o",
            facecolors=colour if filled else "white",
            edgecolors=colour,
            linewidths=1.1,
            alpha=0.9,
            zorder=3,
        )


def _history(trials: Sequence[Row], fields: Sequence[str]) -> Any:
    """Draw the error of each trial, and the best so far."""
    figure, axes = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
    top = _top(trials)
    numbers = [row["trial"] for row in trials]
    finished = [row["best"] if row["end"] == "finished" else np.inf for row in trials]
    best = np.minimum.accumulate(finished)
    axes.step([*numbers, numbers[-1] + 0.5], [*best, best[-1]], where="post", color="0.6", linewidth=1.4)
    axes.annotate("best so far", (numbers[-1] + 0.5, best[-1]), xytext=(5, 0), textcoords="offset points", va="center",
                  color="0.45", fontsize=9)  # fmt: skip
    _scatter(axes, numbers, trials, top)
    for name, colour in _colours(trials).items():
        if name:
            axes.scatter([], [], color=colour, s=34, label=name)
    axes.scatter([], [], facecolors="white", edgecolors="0.4", s=22, label="stopped early")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, borderaxespad=0.2)
    axes.set(xlabel="trial", ylabel="validation error (closed loop, normalised)", ylim=(0, top))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _slices(trials: Sequence[Row], fields: Sequence[str]) -> Any:
    """Draw the error against each searched field."""
    across = min(3, len(fields))
    down = -(-len(fields) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(3.4 * across + 0.6, 2.9 * down), sharey=True, squeeze=False, layout="constrained"
    )
    top = _top(trials)
    for axes, path in zip(grid.flat, fields, strict=False):
        rows = [row for row in trials if path in row["values"]]
        positions, labels, logarithmic = _positions([row["values"][path] for row in rows])
        _scatter(axes, positions, rows, top)
        if labels:
            axes.set_xticks(range(len(labels)), labels, rotation=30 if max(map(len, labels)) > 6 else 0)
            axes.set_xlim(-0.6, len(labels) - 0.4)
        elif logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif all(isinstance(row["values"][path], int) for row in rows):
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(xlabel=field_label(path), ylim=(0, top))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(fields) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("validation error")
    return figure


def _positions(values: Sequence[Any]) -> tuple[list[float], list[str], bool]:
    """Return the positions of values on an axis.

    Returns:
        The position of each value; the labels 0, 1, ... of an axis that is not of numbers, with positions spread a
        little around them so that dots do not hide each other; whether the axis is logarithmic.
    """
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values) and len(set(values)) > 1:
        smallest, largest = min(numbers), max(numbers)
        return [float(value) for value in values], [], smallest > 0 and largest / smallest >= LOGARITHMIC
    names = sorted({format_value(value) for value in values})
    spread = np.random.default_rng(0).uniform(-0.16, 0.16, len(values))
    return [names.index(format_value(value)) + float(s) for value, s in zip(values, spread, strict=True)], names, False


def _parallel_coordinates(trials: Sequence[Row], fields: Sequence[str]) -> Any:
    """Draw each finished trial as a line across one axis per searched field and one for the error."""
    rows = sorted((row for row in trials if row["end"] == "finished"), key=lambda row: -row["best"]) or list(trials)
    fields = _fields_with_values(fields, rows)
    figure, axes = plt.subplots(figsize=(1.5 * (len(fields) + 1) + 1.5, 4.6), layout="constrained")
    heights = np.full((len(rows), len(fields) + 1), np.nan)
    for column, path in enumerate([*fields, None]):
        known = [i for i, row in enumerate(rows) if path is None or path in row["values"]]
        values = [rows[i]["best"] if path is None else rows[i]["values"][path] for i in known]
        ticks, heights[known, column] = _axis(values)
        for height, label in ticks:
            axes.annotate(label, (column, height), xytext=(-6, 0), textcoords="offset points", ha="right", va="center",
                          fontsize=8, color="0.35", zorder=4,
                          bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5})  # fmt: skip
    best_first = np.linspace(0, 1, len(rows))
    for share, line in zip(best_first, heights, strict=True):
        known = ~np.isnan(line)
        colour = plt.get_cmap("viridis_r")(share)
        columns = np.arange(len(line))[known]
        axes.plot(columns, line[known], color=colour, linewidth=1.1 + share, alpha=0.35 + 0.6 * share)
    for column in range(len(fields) + 1):
        axes.axvline(column, color="0.3", linewidth=0.8)
    names = [field_label(path).replace(" ", "\n") for path in fields]
    axes.set_xticks(range(len(fields) + 1), [*names, "validation\nerror"], fontsize=9)
    axes.set(yticks=[], xlim=(-0.75, len(fields) + 0.1), ylim=(-0.05, 1.05))
    axes.set_title("finished trials, the best darkest", fontsize=10)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _axis(values: Sequence[Any]) -> tuple[list[tuple[float, str]], np.ndarray]:
    """Return ticks (height and label) of a vertical axis from 0 to 1, and the heights of values on it."""
    positions, labels, logarithmic = _positions(values)
    if labels:
        share = {label: (i + 0.5) / len(labels) for i, label in enumerate(labels)}
        return [(height, label) for label, height in share.items()], np.array(
            [share[format_value(value)] for value in values]
        )
    numbers = np.log10(positions) if logarithmic else np.array(positions)
    low, high = float(numbers.min()), float(numbers.max())
    span = (high - low) or 1.0
    shown = np.linspace(low, high, 4)
    ticks = [((n - low) / span, f"{10**n if logarithmic else n:.3g}") for n in shown]
    return ticks, (numbers - low) / span


def _importance(importance: dict[str, float]) -> Any:
    """Draw the importance of each field as a bar."""
    figure, axes = plt.subplots(figsize=(6.4, 0.42 * len(importance) + 1.1), layout="constrained")
    names = [field_label(path) for path in importance][::-1]
    shares = 100 * np.array(list(importance.values()))[::-1]
    axes.barh(names, shares, color=LINE_COLOURS[0], height=0.62)
    for row, share in enumerate(shares):
        axes.annotate(
            f"{share:.0f} %", (share, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set(xlabel="importance for the validation error (PED-ANOVA)", xticks=[], xlim=(0, shares.max() * 1.15))
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure
