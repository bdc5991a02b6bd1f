"""The page of a search: one HTML file with tables and interactive figures, which needs no network and no other file.

Figures are drawn in the browser by Apache ECharts (https://echarts.apache.org, Apache License 2.0), whose chart types
that the page needs are in `templates/echarts.js.gz`; `templates/echarts.mjs` says how it is built. Figures are drawn
once they are scrolled to, and the curves of all trials of one kind are one line, so that a page of 1,000 trials is
there as soon as one of 10.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mcrnn.config.paths import ARCHITECTURE
from mcrnn.console import field_label, format_value
from mcrnn.tracking.registry import CANDIDATE

MOST_POINTS = 200_000
"""Most points of all learning curves together; of more epochs every second one is drawn, or every third, and so on."""
MOST_FAILURES = 20
"""Most kinds of failures that have a row."""
NO_RESULT = ("diverged", "out of memory", "failed")
"""States of trials that have ended without a result."""

SHOWN_OF_SUMMARY = ("front", "confirmed", "confirmation", "test", "best_trial", "model", "version", "alias", "ensemble")
"""What the page shows of `summary.json` as it stands there; earlier versions have written less."""


@dataclass(frozen=True)
class PageTrial:
    """A trial as the page shows it."""

    number: int
    state: str
    """"running", "paused", "interrupted", "waiting", or how it ended."""
    values: dict[str, Any]
    """Value of each searched field by dotted path."""
    epoch: int | None
    epochs: int
    best: float | None
    """Its smallest error; None where it has none that counts."""
    parameters: float | None
    frames_per_second: float | None
    seconds: float | None
    curve: list[float | None]
    """Error of each epoch."""
    why: str
    """Why it was not trained to its end; empty where it was, or still runs."""


@dataclass
class Group:
    """The trainings of a configuration with other seeds, before the search has a summary."""

    trial: int
    """Number of the trial that found the configuration."""
    errors: list[float | None]
    """Errors of those that have ended; None for one that has failed."""
    unfinished: int = 0
    """Number of trainings that have not ended."""


@dataclass(frozen=True)
class PageContent:
    """What the page shows."""

    name: str
    state: str
    overview: dict[str, Any]
    """What `python -m mcrnn.status --json` says of the search."""
    written: float
    """Time at which it was read, in seconds since 1970."""
    fields: list[str]
    """Dotted paths of the searched fields."""
    choices: list[str]
    """Those of them whose values are a list of choices, and not a range."""
    trials: list[PageTrial]
    missing_curves: int
    """Number of trials whose learning curves have not been read."""
    importance: dict[str, float]
    """Share of each field in the spread of the errors, the largest first; empty after too few trials."""
    summary: dict[str, Any]
    """`summary.json` without its trials; empty before the search has finished."""
    confirmation: list[Group]
    """Trainings with other seeds; empty where the summary has them."""
    yaml: str
    """The YAML file that starts the same search."""
    data: dict[str, Any]
    """Facts of the data and the validation by name."""
    continued: bool
    """Whether the command of the search continues it, and not another one of its name."""
    option: str
    """Option by which commands find the storage root, with a space before it; empty where they find it without."""


def render(content: PageContent) -> str:
    """Return the page as HTML."""
    folder = files("mcrnn.reports") / "templates"
    environment = Environment(
        loader=PackageLoader("mcrnn.reports", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    data = json.dumps(_data(content), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return environment.get_template("search.html.j2").render(
        content=content,
        summary=dict.fromkeys(SHOWN_OF_SUMMARY) | content.summary,
        lead=_lead(content),
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(content.written)),
        best_headers=_best_headers(content),
        best_rows=_best_rows(content),
        importance=[
            (field_label(path), round(100 * share), share / max(content.importance.values()))
            for path, share in content.importance.items()
        ],
        failures=_failures(content.trials),
        confirmed=_confirmed_rows(content),
        candidate=content.summary.get("alias") == CANDIDATE,
        data=Markup(data),
        echarts=Markup(gzip.decompress((folder / "echarts.js.gz").read_bytes()).decode()),
        script=Markup((folder / "search.js").read_text()),
    )


def _data(content: PageContent) -> dict[str, Any]:
    """Return what the figures are drawn from, with short names because there may be thousands of trials."""
    points = sum(len(trial.curve) for trial in content.trials)
    stride = max(1, math.ceil(points / MOST_POINTS))
    ordered = [*content.importance, *(path for path in content.fields if path not in content.importance)]
    fields = [path for path in ordered if path in content.fields]
    return {
        "fields": [{"label": field_label(path), "choice": path in content.choices} for path in fields],
        "architecture": fields.index(ARCHITECTURE) if ARCHITECTURE in fields else -1,
        "winner": content.summary.get("best_trial", -1),
        "stride": stride,
        "trials": [_trial(trial, fields, stride) for trial in content.trials],
    }


def _trial(trial: PageTrial, fields: list[str], stride: int) -> dict[str, Any]:
    last = len(trial.curve) - 1
    picked = [error for epoch, error in enumerate(trial.curve) if epoch % stride == 0 or epoch == last]
    shown: dict[str, Any] = {
        "n": trial.number,
        "s": trial.state,
        "v": [_short(trial.values.get(path)) for path in fields],
        "e": trial.epoch,
        "E": trial.epochs,
        "b": _short(trial.best),
        "p": trial.parameters and int(trial.parameters),
        "f": trial.frames_per_second and round(trial.frames_per_second),
        "t": trial.seconds and round(trial.seconds),
        "c": [_short(error) for error in picked],
        "l": len(trial.curve),
    }
    return shown | ({"w": trial.why} if trial.why else {})


def _short(value: Any) -> Any:
    """Return a number with four significant digits, so that the page stays small; anything else as it is, or text."""
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    return float(f"{value:.4g}") if isinstance(value, float) else json.dumps(value)


def _lead(content: PageContent) -> str:
    """Return the sentence below the title."""
    seen = content.overview
    ends = Counter(trial.state for trial in content.trials)
    parts = [f"{seen['done']} of {seen['budget']} trials"]
    parts += [f"{ends[state]} {state}" for state in ("running", "paused", "interrupted", *NO_RESULT) if ends[state]]
    if ends["stopped"]:
        parts.append(f"{ends['stopped']} stopped early")
    if seen["best"] is not None:
        parts.append(f"smallest validation error {seen['best']:.4f}")
    if seen["hours"]:
        parts.append(f"{seen['hours']:.2g} hours")
    return ", ".join(parts)


def _best_headers(content: PageContent) -> list[str]:
    others = [field_label(path) for path in content.fields if path != ARCHITECTURE]
    first = ["architecture"] if ARCHITECTURE in content.fields else []
    return [*first, "trial", "error", "95 % interval", "parameters", "frames/s", "epochs", *others]


def _best_rows(content: PageContent) -> list[tuple[bool, list[str]]]:
    """Return the best trial of each architecture, or the ten best where architectures are not searched.

    Trials that were trained to their end come first. With several objectives the rows are those of the Pareto front.
    """
    good = [trial for trial in content.trials if trial.best is not None]
    good.sort(key=lambda trial: (trial.state != "finished", trial.best))
    if front := content.summary.get("front"):
        chosen = [trial for trial in good if trial.number in front]
    elif ARCHITECTURE in content.fields:
        best: dict[Any, PageTrial] = {}
        for trial in good:
            best.setdefault(trial.values.get(ARCHITECTURE), trial)
        chosen = list(best.values())
    else:
        chosen = good[:10]
    confirmed = {row["trial"]: row for row in content.summary.get("confirmed") or []}
    others = [path for path in content.fields if path != ARCHITECTURE]
    rows = []
    for trial in chosen:
        row = confirmed.get(trial.number, {})
        interval = row.get("interval")
        cells = [str(trial.values.get(ARCHITECTURE, ""))] if ARCHITECTURE in content.fields else []
        cells += [
            str(trial.number),
            f"{trial.best:.4f}" + (f" (mean {row['mean']:.4f})" if row else ""),
            f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "",
            "" if trial.parameters is None else f"{trial.parameters / 1000:.3g}k",
            "" if trial.frames_per_second is None else f"{trial.frames_per_second:.0f}",
            f"{trial.epoch or 0}/{trial.epochs}",
            *(format_value(trial.values.get(path, "")) for path in others),
        ]
        rows.append((trial.number == content.summary.get("best_trial"), cells))
    return rows


def _confirmed_rows(content: PageContent) -> list[list[str]]:
    """Return a row for each configuration that was, or is being, trained again with other seeds."""
    architectures = {trial.number: str(trial.values.get(ARCHITECTURE, "")) for trial in content.trials}
    rows = []
    for row in content.summary.get("confirmed") or []:
        interval = row.get("interval")  # which version 0.1.0 did not compute
        seeds = f"{row['seeds']}" + (f" ({row['failed']} failed)" if row["failed"] else "")
        error = f"{row['mean']:.4f} ± {row['std']:.4f}"
        between = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        rows.append([row["architecture"], str(row["trial"]), seeds, error, between, f"{row['best']:.4f}"])
    for group in content.confirmation:
        errors = [error for error in group.errors if error is not None]
        seeds = f"{len(group.errors)}" + (f" and {group.unfinished} unfinished" if group.unfinished else "")
        mean, best = (f"{sum(errors) / len(errors):.4f}", f"{min(errors):.4f}") if errors else ("", "")
        rows.append([architectures.get(group.trial, ""), str(group.trial), seeds, mean, "", best])
    return rows


def _failures(trials: list[PageTrial]) -> list[tuple[str, str, int, str]]:
    """Group the trials that ended without a result: kind, message, count and the first numbers."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for trial in trials:
        if trial.state in NO_RESULT:
            message = trial.why.split(" (see ")[0] if trial.state == "failed" else ""
            kinds.setdefault((trial.state, message), []).append(trial.number)
    ordered = sorted(kinds.items(), key=lambda each: -len(each[1]))[:MOST_FAILURES]
    return [(state, message, len(numbers), _first(numbers)) for (state, message), numbers in ordered]


def _first(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
