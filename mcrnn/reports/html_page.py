"""The report as one HTML page that needs neither a network nor other files, and can be read on a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mcrnn.evaluation.result import EvaluationResult
from mcrnn.reports.channel_tables import ErrorTable
from mcrnn.reports.evaluation_tables import join_words, variables

CAPTIONS = {
    "rmse": "RMSE by step: teacher-forced over the given frames, each predicted from the true frames before it, then "
    "in closed loop. For models trained with several seeds, the line is the mean and the band the range.",
    "rmse_by_channel": "RMSE of each channel in its own units, by lead time; on a globe weighted by area.",
    "rmse_by_region": "RMSE of each channel in each region, by lead time, weighted by area.",
    "rmse_by_date": "RMSE of each forecast over its steps in closed loop, by the date at which it starts; on a globe "
    "weighted by area.",
    "zonal_spectra": "Power by zonal wavenumber, the number of waves around a circle of latitude, at the last lead "
    "time: mean over the circles, weighted by area. A forecast that falls below the truth lacks detail, and where the "
    "error is as large as the truth, it has no skill.",
    "acc": "Anomaly correlation with respect to climatology, weighted by the area of the cells. 1 is perfect.",
    "spectra": "Power spectrum at the last lead time. A forecast that falls below the truth on the right lacks detail.",
    "cost_parameters": "Closed-loop RMSE and size. The line joins the models that no smaller model beats.",
    "cost_multiply_adds": "Closed-loop RMSE and computation. The line joins the models that no cheaper model beats.",
    "spread_skill": "Spread of the members of an ensemble, and error of their mean, by lead time. Where their ratio is "
    "below 1, the members are closer to each other than to the truth.",
}
"""Captions of figures by the name of their file."""
FORECAST_CAPTION = (
    "Truth, forecast and error of the first channel in the first test window. Truth and forecast share their colours."
)


def write_page(
    folder: Path,
    first: EvaluationResult,
    heading: str,
    table: tuple[list[str], list[list[str]], list[list[str]]],
    tables: Sequence[ErrorTable],
    notes: list[str],
    pictures: Sequence[Path],
) -> None:
    """Write report.html.

    Args:
        folder: folder of the report.
        first: result of the best model.
        heading: title of the table.
        table: headers, rows of models and rows of baselines; see `evaluation_tables.columns`.
        tables: the tables by channel and by region.
        notes: warnings about the figures.
        pictures: figures of the report, of which PNG files are shown.
    """
    headers, rows, baselines = table
    m = first.metrics
    facts = {
        "store": m["store"],
        "store digest": m["store_digest"][:12],
        "split": f"{m['split']}, {m['windows']} windows: {m['starts']}",
        "warm-up": f"{m['warm_up']} given frames",
        "horizon": f"{m['horizon']} steps in closed loop",
        "units": "none" if m["units"] == "1" else m["units"],
        "time step": first.model.field.time_step,
    }
    shown = [path for path in pictures if path.suffix == ".png"]
    figures = [(path.stem, _caption(path.stem), _data_url(path, "image/png")) for path in shown]
    video = folder / "forecast.mp4"
    template = Environment(
        loader=PackageLoader("mcrnn.reports", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("report.html.j2")
    num_others = len(rows) - 1
    others = f" and {num_others} other{'s' * (num_others > 1)}" if num_others else ""
    page = template.render(
        title=f"{variables(first)}: {rows[0][0]}{others}",
        heading=heading,
        headers=[join_words(header) for header in headers],
        rows=rows,
        baselines=baselines,
        tables=tables,
        baseline_names=list(m["baselines"]),
        notes=notes,
        facts=facts,
        figures=figures,
        video=_data_url(video, "video/mp4") if video.exists() else None,
        recipe=first.store.attributes["recipe"],
    )
    (folder / "report.html").write_text(page)


def _caption(stem: str) -> str:
    stem = "spread_skill" if stem.startswith("spread_skill") else stem
    return CAPTIONS.get(stem, FORECAST_CAPTION if stem.startswith("forecast") else "")


def _data_url(path: Path, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
