"""An evaluation as a person sees it: the table, and a folder with tables, figures, forecasts and a page."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from mcrnn.console import Bar
from mcrnn.device import choose_device
from mcrnn.errors import UserError
from mcrnn.evaluation.metrics import rmse_by_step
from mcrnn.evaluation.result import EvaluationResult, evaluate_model
from mcrnn.evaluation.selection import Chosen, choose
from mcrnn.reports import evaluation_figures
from mcrnn.reports.evaluation_tables import Group, as_csv, as_latex, as_markdown, columns, heading, notes, tables
from mcrnn.reports.forecasts import Forecasts, write_forecasts
from mcrnn.reports.html_page import write_page
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import Run, Tracker, tracking_uri
from mcrnn.tracking.registry import TEST_METRICS
from mcrnn.tracking.run_folder import RECORD_FILE, read_json, write_record
from mcrnn.tracking.sync import RunSync

EXPERIMENT = "mcrnn-evaluations"
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


def make(patterns: Iterable[str], storage: Storage, options: Options) -> list[str]:
    """Judge the models, print the table, and write the report.

    Returns:
        A line for each model that could not be judged.

    Raises:
        UserError: none could be judged, or the options do not fit.
    """
    console = Console()
    count = _count(options.save_forecasts)
    device = choose_device(options.device, "--device")
    chosen, failures = choose(patterns, storage)
    judged: list[tuple[Chosen, EvaluationResult]] = []
    cache = storage.location("reports/.cache")
    with Bar("judging", max(1, len(chosen)), "models") as bar:
        for number, each in enumerate(chosen):
            first = judged[0][1].evaluation_set if judged else None
            try:
                each.model.network.to(device)
                found = evaluate_model(
                    each.uri,
                    each.model,
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
    for note in notes(groups):
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


def _check_same(first: EvaluationResult, other: EvaluationResult) -> None:
    """Refuse models that cannot stand in one table.

    Raises:
        UserError: they are of other data.
    """
    for what, a, b in (
        ("data", first.store.digest[:12], other.store.digest[:12]),
        ("grid", first.evaluation_set.split.shape[-2:], other.evaluation_set.split.shape[-2:]),
        ("set of channels", first.model.field.channels, other.model.field.channels),
        ("number of predicted channels", first.model.network.channels_out, other.model.network.channels_out),
    ):
        if a != b:
            raise UserError(f"'{other.uri}' is of another {what} than '{first.uri}' ({b}, {a}); judge it by itself")


def _grouped(judged: Sequence[tuple[Chosen, EvaluationResult]]) -> list[Group]:
    """The best mean first; names tell groups of one architecture apart."""
    members: dict[str, list[tuple[Chosen, EvaluationResult]]] = {}
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


def _write(groups: list[Group], storage: Storage, options: Options, count: int | None, console: Console) -> None:
    """The report's folder and its run in MLflow."""
    name = "+".join(_slug(judged.uri) for group in groups for judged in group.members)[:100]
    place = LocalFolder(Path(options.out).resolve()) if options.out else storage.location(f"reports/{name}")
    with tempfile.TemporaryDirectory(prefix="mcrnn-report-") as temporary:
        local = isinstance(place, LocalFolder)
        folder = place.path if isinstance(place, LocalFolder) else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        written = write(groups, folder, count)
        if not local:
            for path in written:
                place.write(path.relative_to(folder).as_posix(), path.read_bytes())
        console.print(f"report: {storage.show(place)}/report.html", highlight=False, soft_wrap=True)
        _record(groups, folder, written, place.url.rsplit("/", 1)[-1], storage)


def write(groups: list[Group], folder: Path, count: int | None = 16) -> list[Path]:
    """Everything that a report has, into a folder.

    Args:
        groups: what was found, the best first.
        folder: that exists; what else is in it is left alone.
        count: windows whose forecasts are kept; all where it is None.

    Returns:
        The files, but for those of an earlier report.
    """
    first = groups[0].best
    quantity = _quantity(first)
    (folder / "metrics.json").write_text(json.dumps([j.metrics for g in groups for j in g.members], indent=1))
    (folder / "metrics.csv").write_text(as_csv(groups))
    headers, rows, baselines = columns(groups)
    (folder / "table.md").write_text(as_markdown(headers, rows + baselines))
    (folder / "table.tex").write_text(as_latex(headers, rows, baselines, heading(groups)))
    pictures = evaluation_figures.error_curves(
        folder / "rmse.png", _curves(groups), warm_up=first.evaluation_set.warm_up, quantity=quantity
    )
    if first.scores.power is not None:
        lead = first.evaluation_set.horizon + 1
        power = {group.name: np.asarray(group.best.scores.power)[0, -1].sum(0) for group in groups}
        truth_K = first.scores.power[1, -1].sum(0)
        pictures += evaluation_figures.spectra(folder / "spectra.png", truth_K, power, quantity=quantity, lead=lead)
    if len(groups) > 1:
        for key, label in (("parameters", "parameters"), ("multiply_adds", "multiply-adds a frame")):
            points = {g.name: (g.best.metrics[key], g.mean("rmse_closed_loop")) for g in groups}
            if all(np.isfinite(error) for _, error in points.values()):
                pictures += evaluation_figures.costs(folder / f"cost_{key}.png", points, cost=label, quantity=quantity)
    forecasts = write_forecasts(folder / "forecasts.zarr", {g.name: g.best for g in groups}, count)
    for index, group in enumerate(groups[:MOST_PICTURES]):
        suffix = "" if len(groups) == 1 else f"_{_slug(group.name)}"
        pictures += _fields(group, forecasts, folder, suffix, quantity, animate=index == 0)
    write_page(folder, groups[0].best, heading(groups), (headers, rows, baselines), notes(groups), pictures)
    texts = [folder / name for name in ("metrics.json", "metrics.csv", "table.md", "table.tex", "report.html")]
    data = [path for path in sorted((folder / "forecasts.zarr").rglob("*")) if path.is_file()]
    return texts + pictures + data


def _quantity(judged: EvaluationResult) -> str:
    field = judged.model.field
    return field.variable if field.units == "1" else f"{field.variable} [{field.units}]"


def _curves(groups: list[Group]) -> list[evaluation_figures.Curve]:
    curves = []
    for group in groups:
        by_step = np.array([rmse_by_step(judged.scores.squared) for judged in group.members])
        several = len(by_step) > 1
        low, high = (f(by_step, axis=0) if several else None for f in (np.min, np.max))
        curves.append(evaluation_figures.Curve(group.name, 1, by_step.mean(0), low=low, high=high))
    first = groups[0].best
    for name, scores in first.baselines.items():
        curves.append(
            evaluation_figures.Curve(name, first.evaluation_set.warm_up, rmse_by_step(scores.squared), baseline=True)
        )
    return curves


def _fields(
    group: Group, forecasts: Forecasts, folder: Path, suffix: str, quantity: str, *, animate: bool
) -> list[Path]:
    """A series of fields of the first window, and of the best model an animation."""
    truth_THW, forecast_THW = forecasts.first_window(group.name)
    if group.best.store.is_from_the_north:
        truth_THW, forecast_THW = truth_THW[:, ::-1], forecast_THW[:, ::-1]
    last = len(truth_THW)
    leads = sorted({1, *np.linspace(1, last, 6).round().astype(int).tolist()})
    picked = [lead - 1 for lead in leads]
    given = group.best.evaluation_set.warm_up
    title = f"{group.name}, first test window, after {given} given frames"
    paths = evaluation_figures.field_series(
        folder / f"forecast{suffix}.png", truth_THW[picked], forecast_THW[picked], leads, quantity=quantity, title=title
    )
    if animate:
        animation = folder / "forecast.mp4"
        evaluation_figures.field_animation(animation, truth_THW, forecast_THW, quantity=quantity, title=group.name)
        paths.append(animation)
    return paths


def _record(groups: list[Group], folder: Path, written: list[Path], name: str, storage: Storage) -> None:
    """A run of the evaluation with the report; test errors also in the runs of models judged as they were trained."""
    mirrors = RunSync(Tracker.open(storage, EXPERIMENT))
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
    before = read_json(record, RECORD_FILE)
    if before is not None and (before["params"], before["tags"]) != ({"evaluation": params}, tags):
        record.clear()  # of another evaluation in the same folder
    write_record(record, name, tags=tags, params={"evaluation": params}, dataset=dataset)
    run = mirrors.now(record, "FINISHED")
    values = {f"{_slug(g.name)}.{key}": g.mean(key) for g in groups for key in TEST_METRICS}
    run.log_metrics({key: value for key, value in values.items() if np.isfinite(value)})
    for path in written:
        inner = path.parent.relative_to(folder).as_posix()
        run.log_files([path], None if inner == "." else inner)
    for group in groups:
        for chosen, found in zip(group.chosen, group.members, strict=True):
            if chosen.run_id is not None and found.is_own_exam:
                metrics = {f"test_{name}": found.metrics[name] for name in TEST_METRICS}
                Run(tracking_uri(storage), chosen.run_id).log_metrics(metrics)
    mirrors.close()


def _slug(uri: str) -> str:
    """A folder name for a model."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", re.sub(r"^(models|runs):?/", "", uri)).strip("_")
