"""Tables of evaluated models and baselines, for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from mcrnn.console import new_table
from mcrnn.evaluation.result import EvaluationResult
from mcrnn.evaluation.selection import SelectedModel

LEADS = (1, 5, 10, 20, 50, 100, 200)
"""Lead times that have a column, as far as the horizon goes."""
MOST_NAMES = 4
"""Number of channels that a title names."""
NUM_COST_COLUMNS = 4
"""Number of last columns, which are about skill and cost; the columns before them are errors."""


@dataclass(frozen=True)
class Group:
    """Models that differ in their seed only: one row of the table.

    Attributes:
        name: name of the row.
        members: the results of the models.
        selected: the models, with the cost of their training; empty where that is of no interest.
    """

    name: str
    members: list[EvaluationResult]
    selected: list[SelectedModel]

    @property
    def best(self) -> EvaluationResult:
        """The member with the smallest closed-loop error."""
        return min(self.members, key=lambda result: result.metrics["rmse_closed_loop_normalized"])

    def mean(self, key: str) -> float:
        """Return the mean of a metric over the members."""
        return float(np.mean([result.metrics[key] for result in self.members]))

    def std(self, key: str) -> float | None:
        """Return the standard deviation of a metric over the members; None where there is but one."""
        values = [result.metrics[key] for result in self.members]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def by_lead(self, key: str) -> np.ndarray:
        """Return the mean over the members of a metric at lead times 1 .. horizon + 1."""
        return np.mean([result.metrics[key] for result in self.members], axis=0)

    @property
    def has_units(self) -> bool:
        """Whether errors over all channels have units. Else they are over each channel's standard deviation."""
        return self.best.metrics["rmse_closed_loop"] is not None

    @property
    def label(self) -> str:
        """Name of the row, with the number of seeds, and with what is wrong with the forecasts of any of them."""
        seeds = f", {len(self.members)} seeds" if len(self.members) > 1 else ""
        wrong = next((f" ({result.metrics['trouble']})" for result in self.members if result.metrics["trouble"]), "")
        return self.name + seeds + wrong

    @property
    def training_seconds(self) -> float | None:
        """Mean time that the training of a member took; None where it is not known."""
        known = [model.training_seconds for model in self.selected if model.training_seconds is not None]
        return float(np.mean(known)) if known else None


def notes(groups: list[Group]) -> list[str]:
    """Return warnings about the figures: models evaluated on other data than their own, and unstable forecasts."""
    notes = []
    for group in groups:
        for result in group.members:
            metrics = result.metrics
            if metrics["other_data"]:
                differences = "; ".join(metrics["other_data"])
                notes.append(f"{result.uri} is evaluated on other data than it was trained on, with {differences}")
            if metrics["trouble"]:
                notes.append(f"{result.uri} {metrics['trouble']}")
    return notes


def heading(groups: list[Group]) -> str:
    """Return the title of the table: quantity, unit, warm-up, horizon and number of windows."""
    first = groups[0].best.metrics
    unit = "" if first["units"] == "1" else f" in {first['units']}"
    if not groups[0].has_units:
        unit = " over the standard deviation of each channel"
    weights = ", ".join(f"{name} {weight:g}" for name, weight in (first["channel_weights"] or {}).items())
    unit += f" (normalised errors weighted {weights})" if weights else ""
    return (
        f"test RMSE of {variables(groups[0].best)}{unit}: {first['warm_up']} frames given, {first['horizon']} steps in "
        f"closed loop, {first['windows']} windows"
    )


def variables(result: EvaluationResult) -> str:
    """Return the names of the predicted channels, or their number where there are many."""
    channels = list(result.metrics["channels"])
    return ", ".join(channels) if len(channels) <= MOST_NAMES else f"{len(channels)} channels"


def columns(groups: list[Group]) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Return headers, a row for each group and a row for each baseline, with figures as text.

    A header with "- " is a long word that may be broken there.
    """
    first = groups[0].best.metrics
    leads = [lead for lead in LEADS if lead <= first["horizon"] + 1]
    on_sphere = "acc_closed_loop" in first
    headers = ["", "teacher forced", *(f"lead {lead}" for lead in leads), "closed loop", "normal- ised"]
    if not groups[0].has_units:
        headers.remove("normal- ised")
    headers += ["lat. weighted", "ACC"] if on_sphere else []
    headers += ["skill until", "params", "training", "frames/s"]
    suffix = "" if groups[0].has_units else "_normalized"
    total = ["rmse_closed_loop"] if groups[0].has_units else []
    total.append("rmse_closed_loop_normalized")
    rows = []
    for group in groups:
        skill_until = min(
            group.best.metrics["skill_horizon"].values(), key=lambda lead: np.inf if lead is None else lead
        )
        seconds = group.training_seconds
        by_lead = group.by_lead(f"rmse_by_lead_time{suffix}")
        row = [group.label, _with_spread(group, f"rmse_teacher_forced{suffix}")]
        row += [*(format_figure(by_lead[lead - 1]) for lead in leads), *(_with_spread(group, key) for key in total)]
        if on_sphere:
            row += [
                format_figure(group.mean(f"rmse_closed_loop{suffix}_latitude_weighted")),
                format_figure(group.mean("acc_closed_loop")),
            ]
        row += [f"> {first['horizon'] + 1}" if skill_until is None else str(skill_until)]
        row += [f"{group.best.metrics['parameters'] / 1000:.3g}k", format_duration(seconds)]
        row += [f"{group.mean('frames_per_second'):.0f}"]
        rows.append(row)
    baselines = []
    for name, errors in first["baselines"].items():
        row = [name, "", *(format_figure(errors[f"rmse_by_lead_time{suffix}"][lead - 1]) for lead in leads)]
        row += [format_figure(errors[key]) for key in total]
        if on_sphere:
            row += [
                format_figure(errors[f"rmse_closed_loop{suffix}_latitude_weighted"]),
                format_figure(errors["acc_closed_loop"]),
            ]
        baselines.append(row + [""] * (len(headers) - len(row)))
    return headers, rows, baselines


def _with_spread(group: Group, key: str) -> str:
    return format_with_deviation(group.mean(key), group.std(key))


def format_duration(seconds: float | None) -> str:
    """Format seconds as a person says them; empty where they are not known."""
    if seconds is None:
        return ""
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2e4 else f"{seconds / 3600:.1f} h"


def format_figure(value: float) -> str:
    """Format a number with three significant figures, trailing zeros included."""
    return f"{value:#.3g}".removesuffix(".")


def format_with_deviation(mean: float, deviation: float | None) -> str:
    """Format a mean with three significant figures or all of its integer digits, and its deviation to its last place.

    Args:
        mean: the mean.
        deviation: the standard deviation; None gives the mean alone, as `format_figure` formats it.
    """
    if deviation is None or not math.isfinite(mean):
        return format_figure(mean)
    places = max(0, 2 - int(f"{mean:.2e}".partition("e")[2]))
    return f"{mean:.{places}f} ± {deviation:.{places}f}"


def tables(groups: list[Group]) -> tuple[Table, Table]:
    """Return two tables for the terminal: one of errors over all channels, one of skill and cost."""
    headers, rows, baselines = columns(groups)
    split = len(headers) - NUM_COST_COLUMNS
    errors = new_table(headers[:split], title=heading(groups))
    costs = new_table([headers[0], *headers[split:]], title="")
    for index, row in enumerate(rows):
        style = "bold" if index == 0 else None
        errors.add_row(*row[:split], style=style)
        costs.add_row(row[0], *row[split:], style=style)
    for row in baselines:
        errors.add_row(*row[:split], style="dim")
    ratio = groups[0].mean("ratio_to_better_baseline")
    errors.caption = f"closed-loop RMSE of the best model: {ratio:.2f} of the better baseline's; {confidence(groups)}"
    return errors, costs


def confidence(groups: list[Group]) -> str:
    """Return the confidence interval of the best model's error in words, or that there is none."""
    metrics = groups[0].best.metrics
    interval = metrics["rmse_closed_loop_interval" if groups[0].has_units else "rmse_closed_loop_normalized_interval"]
    if interval is None:
        return f"{metrics['windows']} windows, as far as they overlap, are too few for a confidence interval"
    return "95 % confidence interval {} to {}".format(*map(format_figure, interval))


def as_csv(groups: list[Group]) -> str:
    """Return a CSV table with a row for each model and lead time; without errors where channels differ in units."""
    text = io.StringIO()
    names = ["model", "architecture", "parameters", "lead_time", "rmse", "mae", "persistence", "climatology"]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(names)
    for group in groups:
        for result in group.members:
            m = result.metrics
            baselines = [m["baselines"][name]["rmse_by_lead_time"] for name in ("persistence", "climatology")]
            errors = [m["rmse_by_lead_time"], m["mae_by_lead_time"], *baselines]
            for i in range(m["horizon"] + 1):
                figures = ["" if values is None else f"{values[i]:.8g}" for values in errors]
                rows.writerow([m["model"], m["architecture"], m["parameters"], i + 1, *figures])
    return text.getvalue()


def as_markdown(headers: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(join_words(cell) for cell in line) + " |" for line in lines) + "\n"


def join_words(header: str) -> str:
    """Join a word of a header that may be broken; see `columns`."""
    return header.replace("- ", "")


def as_latex(headers: list[str], rows: list[list[str]], baselines: list[list[str]], caption: str) -> str:
    """Return a LaTeX table with the rules of the package booktabs."""

    def escaped(cell: str) -> str:
        plain = re.sub(r"([&%_#$])", r"\\\1", join_words(cell))
        return plain.replace("±", r"$\pm$").replace("> ", "$>$")

    def line(cells: list[str]) -> str:
        return " & ".join(map(escaped, cells)) + r" \\"

    body = [line(headers), r"\midrule", *map(line, rows)]
    if baselines:
        body += [r"\midrule", *map(line, baselines)]
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
