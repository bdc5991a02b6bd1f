"""What was found about models, in rows and columns: for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from mcrnn.console import new_table
from mcrnn.evaluation.result import EvaluationResult
from mcrnn.evaluation.selection import Chosen

LEADS = (1, 5, 10, 20, 50, 100, 200)
"""lead times of the table, as far as the horizon goes"""


COSTS = 4
"""columns of the table that are no errors"""


@dataclass(frozen=True)
class Group:
    """Models that differ in their seed only, and what was found about each."""

    name: str
    members: list[EvaluationResult]
    chosen: list[Chosen]

    @property
    def best(self) -> EvaluationResult:
        """The member with the smallest closed-loop error."""
        return min(self.members, key=lambda judged: judged.metrics["rmse_closed_loop_normalized"])

    def mean(self, key: str) -> float:
        """Of a metric over the members."""
        return float(np.mean([judged.metrics[key] for judged in self.members]))

    def std(self, key: str) -> float | None:
        """Deviation of a metric over the members, where there are several."""
        values = [judged.metrics[key] for judged in self.members]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def by_lead(self) -> np.ndarray:
        """Mean RMSE at lead times 1 .. horizon + 1."""
        return np.mean([judged.metrics["rmse_by_lead_time"] for judged in self.members], axis=0)

    @property
    def training_seconds(self) -> float | None:
        """Mean of the members."""
        known = [chosen.training_seconds for chosen in self.chosen if chosen.training_seconds is not None]
        return float(np.mean(known)) if known else None


def notes(groups: list[Group]) -> list[str]:
    """What a reader must know of the figures."""
    notes = []
    for group in groups:
        for judged in group.members:
            if judged.metrics["other_data"]:
                notes.append(f"{judged.uri} is judged on other data: {'; '.join(judged.metrics['other_data'])}")
            if judged.metrics["trouble"]:
                notes.append(f"{judged.uri} {judged.metrics['trouble']}")
    return notes


def heading(groups: list[Group]) -> str:
    """What the table is of."""
    first = groups[0].best.metrics
    unit = "" if first["units"] == "1" else f" in {first['units']}"
    return (
        f"test RMSE of {first['variable']}{unit}: {first['warm_up']} frames given, {first['horizon']} steps in closed "
        f"loop, {first['windows']} windows"
    )


def columns(groups: list[Group]) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Headers, a row for each group, a row for each baseline; figures as text."""
    first = groups[0].best.metrics
    leads = [lead for lead in LEADS if lead <= first["horizon"] + 1]
    on_sphere = "acc_closed_loop" in first
    headers = ["", "teacher forced", *(f"lead {lead}" for lead in leads), "closed loop", "normal- ised"]
    headers += ["lat. weighted", "ACC"] if on_sphere else []
    headers += ["skill until", "params", "training", "frames/s"]
    rows = []
    for group in groups:
        until = min(group.best.metrics["skill_horizon"].values(), key=lambda lead: np.inf if lead is None else lead)
        seconds = group.training_seconds
        row = [group.name + (f", {len(group.members)} seeds" if len(group.members) > 1 else "")]
        row += [_with_spread(group, "rmse_teacher_forced"), *(format_figure(group.by_lead[lead - 1]) for lead in leads)]
        row += [_with_spread(group, "rmse_closed_loop"), _with_spread(group, "rmse_closed_loop_normalized")]
        if on_sphere:
            row += [
                format_figure(group.mean("rmse_closed_loop_latitude_weighted")),
                format_figure(group.mean("acc_closed_loop")),
            ]
        row += [f"> {first['horizon'] + 1}" if until is None else str(until)]
        row += [f"{group.best.metrics['parameters'] / 1000:.3g}k", _time(seconds)]
        row += [f"{group.mean('frames_per_second'):.0f}"]
        rows.append(row)
    baselines = []
    for name, errors in first["baselines"].items():
        row = [name, "", *(format_figure(errors["rmse_by_lead_time"][lead - 1]) for lead in leads)]
        row += [format_figure(errors["rmse_closed_loop"]), format_figure(errors["rmse_closed_loop_normalized"])]
        if on_sphere:
            row += [
                format_figure(errors["rmse_closed_loop_latitude_weighted"]),
                format_figure(errors["acc_closed_loop"]),
            ]
        baselines.append(row + [""] * (len(headers) - len(row)))
    return headers, rows, baselines


def _with_spread(group: Group, key: str) -> str:
    spread = group.std(key)
    return format_figure(group.mean(key)) + ("" if spread is None else f" ± {spread:.1g}")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.0f} s"
        if seconds < 300
        else f"{seconds / 60:.0f} min"
        if seconds < 2e4
        else f"{seconds / 3600:.1f} h"
    )


def format_figure(value: float) -> str:
    """Three significant figures, as many zeros as it takes."""
    return f"{value:#.3g}"


def tables(groups: list[Group]) -> list[Table]:
    """For the terminal: errors, and what they cost."""
    headers, rows, baselines = columns(groups)
    errors = len(headers) - COSTS
    shown = new_table(headers[:errors], title=heading(groups))
    costs = new_table([headers[0], *headers[errors:]], title="")
    for index, row in enumerate(rows):
        style = "bold" if index == 0 else None
        shown.add_row(*row[:errors], style=style)
        costs.add_row(row[0], *row[errors:], style=style)
    for row in baselines:
        shown.add_row(*row[:errors], style="dim")
    ratio = groups[0].mean("ratio_to_better_baseline")
    low, high = groups[0].best.metrics["rmse_closed_loop_interval"]
    shown.caption = (
        f"closed loop of the best over the better baseline: {ratio:.2f}; 95 % of the draws of windows: "
        f"{format_figure(low)} to {format_figure(high)}"
    )
    return [shown, costs]


def as_csv(groups: list[Group]) -> str:
    """A row for each model and lead time."""
    text = io.StringIO()
    names = ["model", "architecture", "parameters", "lead_time", "rmse", "mae", "persistence", "climatology"]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(names)
    for group in groups:
        for judged in group.members:
            m = judged.metrics
            baselines = [m["baselines"][name]["rmse_by_lead_time"] for name in ("persistence", "climatology")]
            for i, errors in enumerate(zip(m["rmse_by_lead_time"], m["mae_by_lead_time"], *baselines, strict=True)):
                rows.writerow([m["model"], m["architecture"], m["parameters"], i + 1, *(f"{e:.8g}" for e in errors)])
    return text.getvalue()


def as_markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(_joined(cell) for cell in line) + " |" for line in lines) + "\n"


def _joined(header: str) -> str:
    return header.replace("- ", "")


def as_latex(headers: list[str], rows: list[list[str]], baselines: list[list[str]], caption: str) -> str:
    """A table for a paper, with the rules of booktabs."""

    def escaped(cell: str) -> str:
        plain = re.sub(r"([&%_#$])", r"\\\1", _joined(cell))
        return plain.replace("±", r"$\pm$").replace("> ", "$>$")

    def line(cells: list[str]) -> str:
        return " & ".join(map(escaped, cells)) + r" \\"

    body = [line(headers), r"\midrule", *map(line, rows), r"\midrule", *map(line, baselines)]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            rf"\begin{{table}}\caption{{{escaped(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(headers) - 1)}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
