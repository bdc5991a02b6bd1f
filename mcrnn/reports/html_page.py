"""The report as one page that needs nothing else: no network, no other file; readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mcrnn.evaluation.result import EvaluationResult

CAPTIONS = {
    "rmse": "Error by step: first the given frames, each predicted from those before it, then closed loop. Of several "
    "seeds, the mean and the range.",
    "spectra": "Power by wavenumber at the last lead time: what a forecast lacks on the right is detail.",
    "cost_parameters": "Error beside size. The line joins what nothing smaller beats.",
    "cost_multiply_adds": "Error beside computation. The line joins what nothing cheaper beats.",
}
FORECAST = "Truth, forecast and error of the first test window. Truth and forecast share their colours."


def write_page(
    folder: Path,
    first: EvaluationResult,
    heading: str,
    table: tuple[list[str], list[list[str]], list[list[str]]],
    notes: list[str],
    pictures: Sequence[Path],
) -> None:
    """Write report.html.

    Args:
        folder: of the report.
        first: the best model.
        heading: of the table.
        table: headers, rows of models, rows of baselines.
        notes: what a reader must know of the figures.
        pictures: of the report; PNG files are shown.
    """
    headers, rows, baselines = table
    m = first.metrics
    facts = {
        "store": m["store"],
        "digest": m["store_digest"][:12],
        "split": f"{m['split']}, {m['windows']} windows: {m['starts']}",
        "given": f"{m['warm_up']} frames, then {m['horizon']} steps in closed loop",
        "units": "none" if m["units"] == "1" else m["units"],
        "time step": first.model.field.time_step,
    }
    shown = [path for path in pictures if path.suffix == ".png"]
    figures = [(path.stem, _caption(path.stem), _data(path, "image/png")) for path in shown]
    video = folder / "forecast.mp4"
    template = Environment(
        loader=PackageLoader("mcrnn.reports", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("report.html.j2")
    page = template.render(
        title=f"{m['variable']}: {rows[0][0]}" + (f" and {len(rows) - 1} others" if len(rows) > 1 else ""),
        heading=heading,
        headers=[header.replace("- ", "") for header in headers],
        rows=rows,
        baselines=baselines,
        notes=notes,
        facts=facts,
        figures=figures,
        video=_data(video, "video/mp4") if video.exists() else None,
        recipe=first.store.attributes["recipe"],
    )
    (folder / "report.html").write_text(page)


def _caption(stem: str) -> str:
    return CAPTIONS.get(stem, FORECAST if stem.startswith("forecast") else "")


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
