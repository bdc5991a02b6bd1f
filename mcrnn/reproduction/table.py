"""A table of the paper: mean and standard deviation over seeds of each architecture, beside baselines and champions."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from mcrnn.console import new_table
from mcrnn.reports.evaluation_tables import (
    Group,
    as_latex,
    as_markdown,
    format_duration,
    format_with_deviation,
    variables,
)
from mcrnn.storage.location import Location

CLOSED_LOOP = "rmse_closed_loop_mean_of_steps"
"""The paper's error: the root of the mean at each step, then the mean over the steps."""
HEADERS = ["", "params", "seeds", "teacher forced", "closed loop", "ratio to best", "training"]
CSV_HEADERS = [
    "table",
    "row",
    "parameters",
    "seeds",
    "diverged",
    "rmse_teacher_forced",
    "rmse_teacher_forced_std",
    "rmse_closed_loop",
    "rmse_closed_loop_std",
    "training_seconds",
]
Metrics = dict[str, Any]
"""The metrics of one model, as an evaluation writes them."""
Deviating = tuple[float, float | None]
"""A mean, and the standard deviation over seeds, None where there is but one."""
EQUAL = 1.05
"""Ratio of parameters up to which two networks count as equally large."""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: an architecture, a baseline or the name of a model.
        teacher_forced: mean and standard deviation over seeds of the error at the given frames; None for baselines.
        closed_loop: the same of the error in closed loop; None where all trainings diverged.
        parameters: number of parameters; None for baselines.
        seeds: number of trainings in the mean.
        diverged: number of further trainings, which diverged.
        training_seconds: mean time of a training.
    """

    name: str
    teacher_forced: Deviating | None
    closed_loop: Deviating | None
    parameters: int | None = None
    seeds: int = 0
    diverged: int = 0
    training_seconds: float | None = None

    @classmethod
    def of(cls, group: Group, diverged: int = 0) -> Row:
        """Return the row of models that differ in their seed only."""
        return cls(
            group.name,
            *_errors([result.metrics for result in group.members]),
            group.best.metrics["parameters"],
            len(group.members),
            diverged,
            group.training_seconds,
        )

    def cells(self, best: float) -> list[str]:
        """Return the row as text, in the order of `HEADERS`.

        Args:
            best: the smallest closed-loop error of the table's own trainings.
        """
        seeds = f"{self.seeds or ''}" + (f" ({self.diverged} diverged)" if self.diverged else "")
        ratio = "" if self.closed_loop is None else f"{self.closed_loop[0] / best:.2f}"
        parameters = "" if self.parameters is None else f"{self.parameters:,}"
        return [
            self.name,
            parameters,
            seeds.strip(),
            _with_deviation(self.teacher_forced),
            _with_deviation(self.closed_loop),
            ratio,
            format_duration(self.training_seconds),
        ]

    def figures(self) -> list[str | int | float | None]:
        """Return the row's numbers, in the order of `CSV_HEADERS` without the first."""
        teacher_forced, closed_loop = self.teacher_forced or (None, None), self.closed_loop or (None, None)
        counts = [self.parameters, self.seeds or None, self.diverged or None]
        return [self.name, *counts, *teacher_forced, *closed_loop, self.training_seconds]


def _errors(models: Sequence[Metrics]) -> tuple[Deviating, Deviating]:
    """Return mean and standard deviation of the teacher-forced and the closed-loop error, as the paper's code has them.

    The root of the mean at each step is averaged over the seeds, and then over the steps. The deviation is that of the
    seeds at each step (of the population: over n, not n - 1), then the mean over the steps.
    """
    rmse_NT = np.array([[*each["rmse_teacher_forced_by_step"], *each["rmse_by_lead_time"][1:]] for each in models])
    deviation_T = rmse_NT.std(0) if len(models) > 1 else None

    def over(steps: slice) -> Deviating:
        deviation = None if deviation_T is None else float(deviation_T[steps].mean())
        return float(rmse_NT[:, steps].mean()), deviation

    warm_up = models[0]["warm_up"]
    return over(slice(0, warm_up)), over(slice(warm_up, None))


def _with_deviation(value: Deviating | None) -> str:
    if value is None:
        return ""
    return format_with_deviation(*value)


@dataclass(frozen=True)
class PaperTable:
    """The table of one setting.

    Attributes:
        name: name of the setting.
        rows: the rows of its trainings.
        beside: the rows of other models.
        baselines: the rows of persistence and climatology.
        title: what the errors are of.
        notes: sentences that a reader has to know, such as of trainings that diverged.
        metrics: the metrics of every model, as an evaluation writes them.
    """

    name: str
    rows: list[Row]
    beside: list[Row]
    baselines: list[Row]
    title: str
    notes: list[str]
    metrics: list[Metrics]

    @classmethod
    def of(cls, name: str, rows: list[Row], groups: Sequence[Group], beside: Sequence[Group]) -> PaperTable:
        """Return the table of evaluated models.

        Args:
            name: name of the setting.
            rows: rows of its trainings.
            groups: their models, at least one.
            beside: other models on the same windows.
        """
        first = groups[0].best.metrics
        unit = "" if first["units"] == "1" else f" in {first['units']}"
        title = (
            f"{name}: test RMSE of {variables(groups[0].best)}{unit}, root of the mean at each step, then mean over "
            f"the steps; {first['warm_up']} frames given, {first['horizon']} steps in closed loop, {first['windows']} "
            f"windows: {first['starts']}"
        )
        notes = [
            f"{result.uri} {result.metrics['trouble']}"
            for group in [*groups, *beside]
            for result in group.members
            if result.metrics["trouble"]
        ]
        largest = max(row.parameters or 0 for row in rows)
        for group in beside:
            ratio = group.best.metrics["parameters"] / largest
            if ratio > EQUAL:
                notes.append(f"{group.name} has {ratio:.2f} times the parameters of the largest network of this table")
        baselines = [Row(key, None, (errors[CLOSED_LOOP], None)) for key, errors in first["baselines"].items()]
        metrics = [result.metrics for group in [*groups, *beside] for result in group.members]
        return cls(name, rows, [Row.of(group) for group in beside], baselines, title, notes, metrics)

    @property
    def best(self) -> float:
        """The smallest closed-loop error of the table's own trainings."""
        errors = [row.closed_loop[0] for row in self.rows if row.closed_loop is not None]
        return min(filter(math.isfinite, errors), default=math.nan)

    def for_terminal(self) -> Table:
        """Return the table as it is printed."""
        table = new_table(HEADERS, title=self.title, caption="\n".join(self.notes) or None)
        for row in self.rows:
            is_best = row.closed_loop is not None and row.closed_loop[0] == self.best
            table.add_row(*row.cells(self.best), style="bold" if is_best else None)
        for row in self.beside:
            table.add_row(*row.cells(self.best))
        for row in self.baselines:
            table.add_row(*row.cells(self.best), style="dim")
        return table

    def markdown(self) -> str:
        """Return the table as a section of a Markdown file."""
        rows = [row.cells(self.best) for row in [*self.rows, *self.beside, *self.baselines]]
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"{self.title}\n\n{as_markdown(HEADERS, rows)}{notes}"

    def latex(self) -> str:
        """Return the table for LaTeX with booktabs."""
        rows, others = ([row.cells(self.best) for row in part] for part in (self.rows, [*self.beside, *self.baselines]))
        return as_latex(HEADERS, rows, others, self.title)


def write(tables: Sequence[PaperTable], folder: Location) -> None:
    """Write table.csv, table.md, table.tex and metrics.json, each with all tables.

    Args:
        tables: the tables.
        folder: the folder of the report.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(CSV_HEADERS)
    for table in tables:
        for row in [*table.rows, *table.beside, *table.baselines]:
            rows.writerow([table.name, *(f"{x:.8g}" if isinstance(x, float) else x for x in row.figures())])
    folder.write("table.csv", text.getvalue().encode())
    folder.write("table.md", "\n".join(table.markdown() for table in tables).encode())
    folder.write("table.tex", "\n".join(table.latex() for table in tables).encode())
    metrics = [each for table in tables for each in table.metrics]
    folder.write("metrics.json", json.dumps(metrics, indent=1).encode())
