"""Tables of errors by channel, and by region and channel, for the terminal, Markdown, LaTeX, CSV and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcrnn.evaluation.channel_metrics import LONG_NAMES
from mcrnn.reports.evaluation_tables import LEADS, Group, format_figure

ChannelsOf = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes from the metrics of a model those by channel: of the whole grid, or of a region."""


@dataclass(frozen=True)
class ErrorTable:
    """A table of errors in the units of each channel.

    Attributes:
        title: title on the page.
        heading: what is in the table.
        headers: names of the columns.
        rows: a row for each model and baseline. A name is in the first of the rows that it holds for, else empty.
        names: number of first columns that are names.
    """

    title: str
    heading: str
    headers: list[str]
    rows: list[list[str]]
    names: int


def error_tables(groups: list[Group]) -> list[ErrorTable]:
    """Return the table by channel, where there are several, and the one by region, where any was asked for."""
    first = groups[0].best.metrics
    headers = _headers(first)
    tables = []
    if len(first["channels"]) > 1:
        heading = "test RMSE by channel, each in its units, weighted by area on a globe"
        rows = list(_rows(groups, lambda metrics: metrics["channels"]))
        tables.append(ErrorTable("By channel", heading, headers, rows, 3))
    if regions := first.get("regions"):
        rows = [
            [f"{name} ({region['edges']})" if index == 0 else "", *row]
            for name, region in regions.items()
            for index, row in enumerate(_rows(groups, _in_region(name)))
        ]
        heading = "test RMSE by region and channel, in the channel's units, weighted by area"
        tables.append(ErrorTable("By region", heading, ["region (N/W/S/E)", *headers], rows, 4))
    return tables


def _in_region(name: str) -> ChannelsOf:
    return lambda metrics: metrics["regions"][name]["channels"]


def _headers(metrics: dict[str, Any]) -> list[str]:
    headers = ["channel", "units", "forecast", *(f"lead {lead}" for lead in _leads(metrics)), "closed loop", "bias"]
    return [*headers, "ACC"] if "acc_closed_loop" in metrics else headers


def _leads(metrics: dict[str, Any]) -> list[int]:
    return [lead for lead in LEADS if lead <= metrics["horizon"] + 1]


def _rows(groups: list[Group], channels_of: ChannelsOf) -> Iterator[list[str]]:
    """Yield rows for each channel: one of each group and one of each baseline."""
    metrics = groups[0].best.metrics
    on_sphere = "acc_closed_loop" in metrics
    weighted = "_latitude_weighted" if on_sphere else ""
    for channel, errors in channels_of(metrics).items():
        forecasts = [(g.name, [channels_of(result.metrics)[channel] for result in g.members]) for g in groups]
        forecasts += [(name, [baseline]) for name, baseline in errors["baselines"].items()]
        for index, (name, members) in enumerate(forecasts):
            by_lead = np.mean([member[f"rmse{weighted}_by_lead_time"] for member in members], axis=0)
            row = [channel, errors["units"], name] if index == 0 else ["", "", name]
            row += [format_figure(by_lead[lead - 1]) for lead in _leads(metrics)]
            row.append(format_figure(float(np.mean([member[f"rmse_closed_loop{weighted}"] for member in members]))))
            row.append(format_figure(float(np.mean([member["bias_by_lead_time"][1:] for member in members]))))
            if on_sphere:
                row.append(format_figure(float(np.mean([member["acc_by_lead_time"][1:] for member in members]))))
            yield row


def channels_as_csv(groups: list[Group]) -> str:
    """Return a CSV table with a row for each model or baseline, channel and lead time."""
    keys, rows = _csv_rows(groups, lambda metrics: metrics["channels"])
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
