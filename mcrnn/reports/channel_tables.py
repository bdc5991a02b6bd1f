"""Tables of errors by channel, and by region and channel, for the terminal, Markdown, LaTeX, CSV and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from mcrnn.console import new_table
from mcrnn.evaluation.channel_metrics import LONG_NAMES
from mcrnn.reports.evaluation_tables import LEADS, Group, format_figure

ChannelsOf = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes from the metrics of a model those by channel: of the whole grid, or of a region."""

NO_BIAS = 1e-6
"""A bias below so much of the RMSE is rounding, and shown as 0."""


@dataclass(frozen=True)
class ErrorSection:
    """The part of a table that is about one channel, or about one channel in one region.

    Attributes:
        channel: name of the channel.
        units: its units.
        rows: a row for each model and baseline: its name and its figures.
        region: name of the region; None for the whole grid.
        edges: north, west, south and east edge of the region.
    """

    channel: str
    units: str
    rows: list[list[str]]
    region: str | None = None
    edges: str = ""

    @property
    def title(self) -> str:
        """What it is about, in one line."""
        channel = self.channel if self.units == "1" else f"{self.channel} [{self.units}]"
        return channel if self.region is None else f"{self.region} ({self.edges}): {channel}"

    @property
    def lines(self) -> list[str]:
        """What it is about, in short lines, of which there are no more than rows."""
        return [
            *([] if self.region is None else [self.region]),
            self.channel,
            *([] if self.units == "1" else [self.units]),
        ]

    @property
    def names(self) -> list[str]:
        """What it is about, in a cell each."""
        region = [] if self.region is None else [f"{self.region} ({self.edges})"]
        return [*region, self.channel, self.units]


@dataclass(frozen=True)
class ErrorTable:
    """A table of errors in the units of each channel.

    Attributes:
        title: title on the page.
        heading: what is in the table.
        headers: names of the columns of a section's rows.
        sections: its parts.
    """

    title: str
    heading: str
    headers: list[str]
    sections: list[ErrorSection]

    def flat(self) -> tuple[list[str], list[list[str]]]:
        """Return headers and rows of one plain table, in which the names of a section are in its first row."""
        region = [] if self.sections[0].region is None else ["region (N/W/S/E)"]
        rows = [
            [*(section.names if index == 0 else [""] * len(section.names)), *row]
            for section in self.sections
            for index, row in enumerate(section.rows)
        ]
        return [*region, "channel", "units", *self.headers], rows

    def for_terminal(self, baselines: Collection[str]) -> Table:
        """Return it in two columns of text, the first of which names the section below each other.

        Args:
            baselines: names of the forecasts whose rows are dim.
        """
        table = new_table(["channel", *self.headers], title=self.heading, names=2)
        for section in self.sections:
            lines = [*section.lines, *[""] * len(section.rows)]
            for line, row in zip(lines, section.rows, strict=False):
                table.add_row(line, *row, style="dim" if row[0] in baselines else None)
            table.add_section()
        return table


def error_tables(groups: list[Group]) -> list[ErrorTable]:
    """Return the table by channel, where there are several, and the one by region, where any was asked for."""
    first = groups[0].best.metrics
    headers = _headers(first)
    tables = []
    if len(first["channels"]) > 1:
        heading = "test RMSE by channel, each in its units, weighted by area on a globe"
        tables.append(ErrorTable("By channel", heading, headers, list(_sections(groups, _of_all))))
    if regions := first.get("regions"):
        sections = [
            replace(section, region=name, edges=region["edges"])
            for name, region in regions.items()
            for section in _sections(groups, _in_region(name))
        ]
        heading = "test RMSE by region and channel, in the channel's units, weighted by area"
        tables.append(ErrorTable("By region", heading, headers, sections))
    return tables


def _of_all(metrics: dict[str, Any]) -> dict[str, Any]:
    channels: dict[str, Any] = metrics["channels"]
    return channels


def _in_region(name: str) -> ChannelsOf:
    return lambda metrics: metrics["regions"][name]["channels"]


def _headers(metrics: dict[str, Any]) -> list[str]:
    headers = ["forecast", *(f"lead {lead}" for lead in _leads(metrics)), "closed loop", "bias"]
    return [*headers, "ACC"] if "acc_closed_loop" in metrics else headers


def _leads(metrics: dict[str, Any]) -> list[int]:
    return [lead for lead in LEADS if lead <= metrics["horizon"] + 1]


def _sections(
    groups: list[Group], channels_of: ChannelsOf = lambda metrics: metrics["channels"]
) -> Iterator[ErrorSection]:
    """Yield a section for each channel, with a row for each group and each baseline."""
    metrics = groups[0].best.metrics
    on_sphere = "acc_closed_loop" in metrics
    weighted = "_latitude_weighted" if on_sphere else ""
    for channel, errors in channels_of(metrics).items():
        forecasts = [(g.name, [channels_of(result.metrics)[channel] for result in g.members]) for g in groups]
        forecasts += [(name, [baseline]) for name, baseline in errors["baselines"].items()]
        rows = []
        for name, members in forecasts:
            by_lead = np.mean([member[f"rmse{weighted}_by_lead_time"] for member in members], axis=0)
            closed_loop = float(np.mean([member[f"rmse_closed_loop{weighted}"] for member in members]))
            bias = float(np.mean([member["bias_by_lead_time"][1:] for member in members]))
            row = [name, *(format_figure(by_lead[lead - 1]) for lead in _leads(metrics)), format_figure(closed_loop)]
            row.append(format_figure(0.0 if abs(bias) < NO_BIAS * closed_loop else bias))
            if on_sphere:
                row.append(format_figure(float(np.mean([member["acc_by_lead_time"][1:] for member in members]))))
            rows.append(row)
        yield ErrorSection(channel, errors["units"], rows)


def channels_as_csv(groups: list[Group]) -> str:
    """Return a CSV table with a row for each model or baseline, channel and lead time."""
    keys, rows = _csv_rows(groups, _of_all)
    return _as_csv(["forecast", "channel", "units", "lead_time", *keys], rows)


def regions_as_csv(groups: list[Group]) -> str | None:
    """Return a CSV table with a row for each region, model or baseline, channel and lead time; None without regions."""
    regions = groups[0].best.metrics.get("regions")
    if not regions:
        return None
    lines: list[list[Any]] = []
    for name, region in regions.items():
        keys, rows = _csv_rows(groups, _in_region(name))
        lines += [[name, region["edges"], *row] for row in rows]
    return _as_csv(["region", "edges", "forecast", "channel", "units", "lead_time", *keys], lines)


def _csv_rows(groups: list[Group], channels_of: ChannelsOf) -> tuple[list[str], list[list[Any]]]:
    """Return the names of the metrics, and a row for each model or baseline, channel and lead time."""
    metrics = groups[0].best.metrics
    first = channels_of(metrics)
    keys = [name for name in LONG_NAMES if f"{name}_by_lead_time" in next(iter(first.values()))]
    forecasts = [(result.uri, channels_of(result.metrics)) for group in groups for result in group.members]
    for name in metrics["baselines"]:
        forecasts.append((name, {channel: c["baselines"][name] for channel, c in first.items()}))
    rows = []
    for name, channels in forecasts:
        for channel, errors in channels.items():
            for i in range(metrics["horizon"] + 1):
                figures = [f"{errors[f'{key}_by_lead_time'][i]:.8g}" for key in keys]
                rows.append([name, channel, first[channel]["units"], i + 1, *figures])
    return keys, rows


def _as_csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
