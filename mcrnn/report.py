"""An evaluation as a person sees it: the table, and a folder with tables, figures, forecasts and a page."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mcrnn import plots, tracking
from mcrnn.bar import Bar
from mcrnn.errors import UserError
from mcrnn.forecasts import Forecasts, write_forecasts
from mcrnn.judging import Judged, judge, to_device
from mcrnn.page import write_page
from mcrnn.registry import TEST_METRICS
from mcrnn.scores import rmse_by_step
from mcrnn.selection import Chosen, choose
from mcrnn.storage import LocalFolder, Storage
from mcrnn.tables import new_table
from mcrnn.tracking import Mirrors, Run, Tracker
from mcrnn.worker import read_json

EXPERIMENT = "mcrnn-evaluations"
LEADS = (1, 5, 10, 20, 50, 100, 200)
"""lead times of the table, as far as the horizon goes"""
COSTS = 4
"""columns of the table that are no errors"""
MOST_PICTURES = 6
"""models that get a series of fields and an animation: the best"""


@dataclass(frozen=True)
class Options:
    """What the command asks for; see its help."""

    store: str | None = None
    warm_up: int | None = None
    horizon: int | None = None
    starts: str | None = None
    other_data: bool = False
    save_forecasts: str = "16"
    device: str | None = None
    out: str | None = None


@dataclass(frozen=True)
class Group:
    """Models that differ in their seed only, and what was found about each."""

    name: str
    members: list[Judged]
    chosen: list[Chosen]

    @property
    def best(self) -> Judged:
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


def make(patterns: Iterable[str], storage: Storage, options: Options) -> list[str]:
    """Judge the models, print the table, and write the report.

    Returns:
        A line for each model that could not be judged.

    Raises:
        UserError: none could be judged, or the options do not fit.
    """
    console = Console()
    count = _count(options.save_forecasts)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here; leave --device out, or give cpu")
    chosen, failures = choose(patterns, storage)
    judged: list[tuple[Chosen, Judged]] = []
    cache = storage.location("reports/.cache")
    with Bar("judging", max(1, len(chosen)), "models") as bar:
        for number, each in enumerate(chosen):
            first = judged[0][1].exam if judged else None
            try:
                found = judge(
                    each.uri,
                    to_device(each.model, options.device),
                    storage,
                    store=options.store,
                    warm_up=options.warm_up or (first.warm_up if first else None),
                    horizon=options.horizon or (first.horizon if first else None),
                    starts=options.starts,
                    other_data=options.other_data,
                    cache=cache,
                    on_batch=partial(_show, bar, each.uri, number),
                )
                if judged:
                    _check_same(judged[0][1], found)
                judged.append((each, found))
            except UserError as error:
                failures.append(str(error) if each.uri in str(error) else f"{each.uri}: {error}")
    if not judged:
        raise UserError("\n".join(failures))
    groups = _grouped(judged)
    for note in _notes(groups):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    for table in tables(groups):
        console.print(table)
    _write(groups, storage, options, count, console)
    return failures


def _show(bar: Bar, uri: str, number: int, done: int, windows: int) -> None:
    bar.show(uri, number + done / windows)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise UserError(f"--save-forecasts is a number of windows or all, not '{text}'")
    return int(text)


def _check_same(first: Judged, other: Judged) -> None:
    """Refuse models that cannot stand in one table.

    Raises:
        UserError: they are of other data.
    """
    for what, a, b in (
        ("data", first.store.digest[:12], other.store.digest[:12]),
        ("grid", first.exam.split.shape[-2:], other.exam.split.shape[-2:]),
        ("channels", first.model.field.channels, other.model.field.channels),
    ):
        if a != b:
            raise UserError(f"'{other.uri}' is of another {what} than '{first.uri}' ({b}, {a}); judge it by itself")


def _grouped(judged: Sequence[tuple[Chosen, Judged]]) -> list[Group]:
    """The best mean first; names tell groups of one architecture apart."""
    members: dict[str, list[tuple[Chosen, Judged]]] = {}
    for chosen, found in judged:
        members.setdefault(chosen.group, []).append((chosen, found))
    architectures = [pairs[0][1].metrics["architecture"] for pairs in members.values()]
    groups = []
    for pairs in members.values():
        name = pairs[0][1].metrics["architecture"]
        if architectures.count(name) > 1:
            name = f"{name} ({_short(pairs[0][0].uri)})"
        groups.append(Group(name, [found for _, found in pairs], [chosen for chosen, _ in pairs]))
    return sorted(groups, key=lambda group: group.mean("rmse_closed_loop_normalized"))


def _short(uri: str) -> str:
    return re.sub(r"^(models:/|runs:/|runs/)", "", uri)


def _notes(groups: list[Group]) -> list[str]:
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
        row += [_with_spread(group, "rmse_teacher_forced"), *(figure(group.by_lead[lead - 1]) for lead in leads)]
        row += [_with_spread(group, "rmse_closed_loop"), _with_spread(group, "rmse_closed_loop_normalized")]
        if on_sphere:
            row += [figure(group.mean("rmse_closed_loop_latitude_weighted")), figure(group.mean("acc_closed_loop"))]
        row += [f"> {first['horizon'] + 1}" if until is None else str(until)]
        row += [f"{group.best.metrics['parameters'] / 1000:.3g}k", _time(seconds)]
        row += [f"{group.mean('frames_per_second'):.0f}"]
        rows.append(row)
    baselines = []
    for name, errors in first["baselines"].items():
        row = [name, "", *(figure(errors["rmse_by_lead_time"][lead - 1]) for lead in leads)]
        row += [figure(errors["rmse_closed_loop"]), figure(errors["rmse_closed_loop_normalized"])]
        if on_sphere:
            row += [figure(errors["rmse_closed_loop_latitude_weighted"]), figure(errors["acc_closed_loop"])]
        baselines.append(row + [""] * (len(headers) - len(row)))
    return headers, rows, baselines


def _with_spread(group: Group, key: str) -> str:
    spread = group.std(key)
    return figure(group.mean(key)) + ("" if spread is None else f" ± {spread:.1g}")


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


def figure(value: float) -> str:
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
        f"{figure(low)} to {figure(high)}"
    )
    return [shown, costs]


def _write(groups: list[Group], storage: Storage, options: Options, count: int | None, console: Console) -> None:
    """The report's folder and its run in MLflow."""
    name = "+".join(_slug(judged.uri) for group in groups for judged in group.members)[:100]
    place = LocalFolder(Path(options.out).resolve()) if options.out else storage.location(f"reports/{name}")
    with tempfile.TemporaryDirectory(prefix="mcrnn-report-") as temporary:
        local = isinstance(place, LocalFolder)
        folder = place.path if isinstance(place, LocalFolder) else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write(groups, folder, count)
        if not local:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    place.write(path.relative_to(folder).as_posix(), path.read_bytes())
        console.print(f"report: {storage.show(place)}/report.html", highlight=False, soft_wrap=True)
        _record(groups, folder, place.url.rsplit("/", 1)[-1], storage)


def write(groups: list[Group], folder: Path, count: int | None = 16) -> list[Path]:
    """Everything that a report has, into a folder.

    Args:
        groups: what was found, the best first.
        folder: that exists.
        count: windows whose forecasts are kept; all where it is None.
    """
    first = groups[0].best
    quantity = _quantity(first)
    (folder / "metrics.json").write_text(json.dumps([j.metrics for g in groups for j in g.members], indent=1))
    (folder / "metrics.csv").write_text(_csv(groups))
    headers, rows, baselines = columns(groups)
    (folder / "table.md").write_text(_markdown(headers, rows + baselines))
    (folder / "table.tex").write_text(_latex(headers, rows, baselines, heading(groups)))
    pictures = plots.error_curves(folder / "rmse.png", _curves(groups), warm_up=first.exam.warm_up, quantity=quantity)
    if first.scores.power is not None:
        lead = first.exam.horizon + 1
        power = {group.name: np.asarray(group.best.scores.power)[0, -1].sum(0) for group in groups}
        truth_K = first.scores.power[1, -1].sum(0)
        pictures += plots.spectra(folder / "spectra.png", truth_K, power, quantity=quantity, lead=lead)
    if len(groups) > 1:
        for key, label in (("parameters", "parameters"), ("multiply_adds", "multiply-adds a frame")):
            points = {g.name: (g.best.metrics[key], g.mean("rmse_closed_loop")) for g in groups}
            if all(np.isfinite(error) for _, error in points.values()):
                pictures += plots.costs(folder / f"cost_{key}.png", points, cost=label, quantity=quantity)
    forecasts = write_forecasts(folder / "forecasts.zarr", {g.name: g.best for g in groups}, count)
    for index, group in enumerate(groups[:MOST_PICTURES]):
        suffix = "" if len(groups) == 1 else f"_{_slug(group.name)}"
        pictures += _fields(group, forecasts, folder, suffix, quantity, animate=index == 0)
    write_page(folder, groups[0].best, heading(groups), (headers, rows, baselines), _notes(groups), pictures)
    return sorted(path for path in folder.iterdir() if path.is_file())


def _quantity(judged: Judged) -> str:
    field = judged.model.field
    return field.variable if field.units == "1" else f"{field.variable} [{field.units}]"


def _curves(groups: list[Group]) -> list[plots.Curve]:
    curves = []
    for group in groups:
        by_step = np.array([rmse_by_step(judged.scores.squared) for judged in group.members])
        several = len(by_step) > 1
        low, high = (f(by_step, axis=0) if several else None for f in (np.min, np.max))
        curves.append(plots.Curve(group.name, 1, by_step.mean(0), low=low, high=high))
    first = groups[0].best
    for name, scores in first.baselines.items():
        curves.append(plots.Curve(name, first.exam.warm_up, rmse_by_step(scores.squared), baseline=True))
    return curves


def _fields(
    group: Group, forecasts: Forecasts, folder: Path, suffix: str, quantity: str, *, animate: bool
) -> list[Path]:
    """A series of fields of the first window, and of the best model an animation."""
    truth_THW, forecast_THW = forecasts.first_window(group.name)
    last = len(truth_THW)
    leads = sorted({1, *np.linspace(1, last, 6).round().astype(int).tolist()})
    picked = [lead - 1 for lead in leads]
    given = group.best.exam.warm_up
    title = f"{group.name}, first test window, after {given} given frames"
    paths = plots.field_series(
        folder / f"forecast{suffix}.png", truth_THW[picked], forecast_THW[picked], leads, quantity=quantity, title=title
    )
    if animate:
        plots.field_animation(folder / "forecast.mp4", truth_THW, forecast_THW, quantity=quantity, title=group.name)
    return paths


def _csv(groups: list[Group]) -> str:
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


def _markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(_joined(cell) for cell in line) + " |" for line in lines) + "\n"


def _joined(header: str) -> str:
    return header.replace("- ", "")


def _latex(headers: list[str], rows: list[list[str]], baselines: list[list[str]], caption: str) -> str:
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


def _record(groups: list[Group], folder: Path, name: str, storage: Storage) -> None:
    """A run of the evaluation with the report, and the test errors in the runs that the models came from."""
    mirrors = Mirrors(Tracker.open(storage, EXPERIMENT))
    judged = groups[0].best
    m = judged.metrics
    dataset = {
        "name": m["store"],
        "source": m["store"],
        "digest": m["store_digest"],
        "recipe": judged.store.attributes["recipe"],
        "schema": {"variable": m["variable"], "units": m["units"]},
    }
    params = {key: m[key] for key in ("warm_up", "horizon", "windows", "starts", "store")}
    models = ", ".join(each.uri for group in groups for each in group.members)
    tags = {"mcrnn.kind": "evaluation", "mcrnn.models": models[:4000], "mcrnn.store_digest": m["store_digest"]}
    record = LocalFolder(folder / ".mlflow")
    before = read_json(record, tracking.RECORD_FILE)
    if before is not None and (before["params"], before["tags"]) != ({"evaluation": params}, tags):
        record.clear()  # of another evaluation in the same folder
    tracking.write_record(record, name, tags=tags, params={"evaluation": params}, dataset=dataset)
    run = mirrors.now(record, "FINISHED")
    values = {f"{_slug(g.name)}.{key}": g.mean(key) for g in groups for key in TEST_METRICS}
    run.log_metrics({key: value for key, value in values.items() if np.isfinite(value)})
    for path in sorted(folder.rglob("*")):
        if path.is_file() and record.path not in path.parents:
            inner = path.parent.relative_to(folder).as_posix()
            run.log_files([path], None if inner == "." else inner)
    for group in groups:
        for chosen, found in zip(group.chosen, group.members, strict=True):
            if chosen.run_id is not None:
                metrics = {f"test_{name}": found.metrics[name] for name in TEST_METRICS}
                Run(storage.tracking_uri, chosen.run_id).log_metrics(metrics)
    mirrors.close()


def _slug(uri: str) -> str:
    """A folder name for a model."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", re.sub(r"^(models|runs):?/", "", uri)).strip("_")
