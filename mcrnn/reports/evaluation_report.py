"""Evaluate models and report on it: a table in the terminal, and a folder of tables, figures, forecasts and a page."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from mcrnn.errors import UserError
from mcrnn.evaluation.channel_metrics import as_dataset
from mcrnn.evaluation.metrics import rmse_by_step
from mcrnn.evaluation.result import EvaluationResult
from mcrnn.evaluation.selection import select_models
from mcrnn.evaluation.side_by_side import Evaluated, Windows, evaluate_side_by_side
from mcrnn.reports import channel_figures, evaluation_figures
from mcrnn.reports.channel_tables import channels_as_csv, error_tables, regions_as_csv
from mcrnn.reports.evaluation_tables import (
    Group,
    as_csv,
    as_latex,
    as_markdown,
    columns,
    heading,
    notes,
    tables,
    variables,
)
from mcrnn.reports.forecasts import Forecasts, write_forecasts
from mcrnn.reports.html_page import write_page
from mcrnn.runners.evaluation_workers import part_scorer
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.retry import print_warning
from mcrnn.storage.root import Storage
from mcrnn.tracking.experiment import Tracker
from mcrnn.tracking.mlflow_client import Run, tracking_uri
from mcrnn.tracking.registry import TEST_METRICS, test_errors
from mcrnn.tracking.run_folder import RunFolder
from mcrnn.tracking.sync import RunSync

EXPERIMENT = "mcrnn-evaluations"
MOST_PICTURES = 6
"""Number of models, the best ones, whose fields are drawn."""


def make(
    patterns: Iterable[str],
    storage: Storage,
    windows: Windows,
    *,
    save_forecasts: str = "16",
    out: str | None = None,
    workers: int = 1,
) -> list[str]:
    """Evaluate models, print the table, and write the report.

    Args:
        patterns: names of the models, with wildcards; see `mcrnn.evaluation.selection.expand`.
        storage: the storage root.
        windows: the windows on which the models are evaluated.
        save_forecasts: number of windows whose forecasts are kept, or "all".
        out: folder of the report; by default one below `reports/`.
        workers: number of workers on Ray that score the windows; 1 for this process.

    Returns:
        A message for each model that could not be evaluated.

    Raises:
        UserError: no model could be evaluated, or the options do not fit.
    """
    console = Console()
    num_forecasts = _num_forecasts(save_forecasts)
    selected, failures = select_models(patterns, storage)
    with part_scorer(workers, windows.device, storage.location("reports")) as score_parts:
        evaluated = evaluate_side_by_side(selected, storage, windows, failures, score_parts)
    groups = _groups(evaluated)
    for note in notes(groups):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    errors, costs = tables(groups)
    console.print(errors)
    baselines = groups[0].best.metrics["baselines"]
    for each in error_tables(groups):
        console.print(each.for_terminal(baselines))
    console.print(costs)
    _write_and_record(groups, storage, out, num_forecasts, console)
    return failures


def _num_forecasts(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise UserError(f"--save-forecasts is a number of windows or all, not '{text}'")
    return int(text)


def _groups(evaluated: Sequence[Evaluated]) -> list[Group]:
    """Group models that differ in their seed only, the smallest mean error first.

    Groups are named by architecture, and by their first model too where several have the same architecture.
    """
    members: dict[str, list[Evaluated]] = {}
    for selected, result in evaluated:
        members.setdefault(selected.group, []).append((selected, result))
    architectures = [pairs[0][1].metrics["architecture"] for pairs in members.values()]
    groups = []
    for pairs in members.values():
        name = pairs[0][1].metrics["architecture"]
        if architectures.count(name) > 1:
            name = f"{name} ({_without_scheme(pairs[0][0].uri)})"
        groups.append(Group(name, [result for _, result in pairs], [selected for selected, _ in pairs]))
    return sorted(groups, key=lambda group: group.mean("rmse_closed_loop_normalized"))


def _without_scheme(uri: str) -> str:
    return re.sub(r"^(models:/|runs:/|runs/)", "", uri)


def _write_and_record(
    groups: list[Group], storage: Storage, out: str | None, num_forecasts: int | None, console: Console
) -> None:
    """Write the report below the storage root, or to `--out`, and record it in MLflow."""
    name = "+".join(_slug(result.uri) for group in groups for result in group.members)[:100]
    target = LocalFolder(Path(out).resolve()) if out else storage.location(f"reports/{name}")
    with tempfile.TemporaryDirectory(prefix="mcrnn-report-") as temporary:
        folder = target.path if isinstance(target, LocalFolder) else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        written = write(groups, folder, num_forecasts)
        if not isinstance(target, LocalFolder):
            for path in written:
                target.write(path.relative_to(folder).as_posix(), path.read_bytes())
        console.print(f"report: {storage.show(target)}/report.html", highlight=False, soft_wrap=True)
        _record(groups, folder, written, target.url.rsplit("/", 1)[-1], storage)


def write(groups: list[Group], folder: Path, num_forecasts: int | None = 16) -> list[Path]:
    """Write all files of a report.

    Args:
        groups: the evaluated models, the best group first.
        folder: an existing folder; other files in it are left alone.
        num_forecasts: number of windows whose forecasts are kept; None for all.

    Returns:
        The files that were written.
    """
    first = groups[0].best
    quantity = _quantity(first)
    (folder / "metrics.json").write_text(json.dumps([result.metrics for g in groups for result in g.members], indent=1))
    (folder / "metrics.csv").write_text(as_csv(groups))
    (folder / "metrics_by_channel.csv").write_text(channels_as_csv(groups))
    for name in ("metrics_by_region.csv", "rmse_by_region.png"):
        (folder / name).unlink(missing_ok=True)  # of an earlier report in this folder
    if (by_region := regions_as_csv(groups)) is not None:
        (folder / "metrics_by_region.csv").write_text(by_region)
    as_dataset({result.uri: result for g in groups for result in g.members}).to_netcdf(folder / "metrics.nc")
    headers, rows, baselines = columns(groups)
    markdown, latex = as_markdown(headers, rows + baselines), as_latex(headers, rows, baselines, heading(groups))
    more = error_tables(groups)
    for each in more:
        flat_headers, flat_rows = each.flat()
        markdown += "\n" + as_markdown(flat_headers, flat_rows)
        latex += as_latex(flat_headers, flat_rows, [], each.heading)
    (folder / "table.md").write_text(markdown)
    (folder / "table.tex").write_text(latex)
    pictures = evaluation_figures.error_curves(
        folder / "rmse.png", _curves(groups), warm_up=first.evaluation_set.warm_up, quantity=quantity
    )
    pictures += channel_figures.draw(folder, groups)
    radial = first.evaluation_set.measures.spectra
    if first.scores.power is not None and radial and groups[0].has_units:
        lead = first.evaluation_set.horizon + 1
        power = {group.name: np.asarray(group.best.scores.power)[0, -1].sum(0) for group in groups}
        truth_K = first.scores.power[1, -1].sum(0)
        pictures += evaluation_figures.spectra(folder / "spectra.png", truth_K, power, quantity=quantity, lead=lead)
    for group in groups:
        if "spread_by_lead_time_normalized" in group.best.metrics:
            path = folder / f"spread_skill{'' if len(groups) == 1 else f'_{_slug(group.name)}'}.png"
            spread, rmse = (
                np.array(group.best.metrics[f"{name}_by_lead_time_normalized"]) for name in ("spread", "rmse")
            )
            pictures += evaluation_figures.spread_skill(path, spread, rmse, name=group.name)
    if len(groups) > 1:
        error = "rmse_closed_loop" if groups[0].has_units else "rmse_closed_loop_normalized"
        for key, label in (("parameters", "parameters"), ("multiply_adds", "multiply-adds a frame")):
            points = {g.name: (g.best.metrics[key], g.mean(error)) for g in groups}
            if all(np.isfinite(error) for _, error in points.values()):
                pictures += evaluation_figures.costs(folder / f"cost_{key}.png", points, cost=label, quantity=quantity)
    forecasts = write_forecasts(folder / "forecasts.zarr", {g.name: g.best for g in groups}, num_forecasts)
    for index, group in enumerate(groups[:MOST_PICTURES]):
        suffix = "" if len(groups) == 1 else f"_{_slug(group.name)}"
        pictures += _draw_fields(group, forecasts, folder, suffix, _first_channel(first), animate=index == 0)
    write_page(folder, first, heading(groups), (headers, rows, baselines), more, notes(groups), pictures)
    tables = ["metrics.csv", "metrics_by_channel.csv", "table.md", "table.tex"]
    tables += [] if by_region is None else ["metrics_by_region.csv"]
    texts = [folder / name for name in ("metrics.json", "metrics.nc", *tables, "report.html")]
    data = [path for path in sorted((folder / "forecasts.zarr").rglob("*")) if path.is_file()]
    return texts + pictures + data


def _quantity(result: EvaluationResult) -> str:
    """Return the field's name with its unit, as axes are labelled."""
    name, units = variables(result), result.model.field.units
    if result.metrics["rmse_closed_loop"] is None:
        return "all channels, over their standard deviation"
    return name if units == "1" else f"{name} [{units}]"


def _first_channel(result: EvaluationResult) -> str:
    """Return the name of the first channel with its unit; its fields are drawn."""
    channel, errors = next(iter(result.metrics["channels"].items()))
    return channel if errors["units"] == "1" else f"{channel} [{errors['units']}]"


def _curves(groups: list[Group]) -> list[evaluation_figures.Curve]:
    """Return the error by step of each group, with the range of several seeds, and of the baselines."""
    first = groups[0].best
    scale_C = np.array(1.0) if groups[0].has_units else first.scales
    curves = []
    for group in groups:
        by_step = np.array([rmse_by_step(result.scores.squared / scale_C**2) for result in group.members])
        several = len(by_step) > 1
        low, high = (f(by_step, axis=0) if several else None for f in (np.min, np.max))
        curves.append(evaluation_figures.Curve(group.name, 1, by_step.mean(0), low=low, high=high))
    for name, scores in first.baselines.items():
        by_lead = rmse_by_step(scores.squared / scale_C**2)
        curves.append(evaluation_figures.Curve(name, first.evaluation_set.warm_up, by_lead, baseline=True))
    return curves


def _draw_fields(
    group: Group, forecasts: Forecasts, folder: Path, suffix: str, quantity: str, *, animate: bool
) -> list[Path]:
    """Draw truth and forecast of the first window at six lead times, and as an animation where asked for."""
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
    """Record the report as a run in MLflow.

    Models that were evaluated as they are configured get their test errors in the run of their training, too.
    """
    sync = RunSync(Tracker.open(storage, EXPERIMENT))
    best = groups[0].best
    m = best.metrics
    dataset = {
        "name": m["store"],
        "source": m["store"],
        "digest": m["store_digest"],
        "recipe": best.store.attributes["recipe"],
        "schema": {"variable": m["variable"], "units": m["units"]},
    }
    params = {key: m[key] for key in ("warm_up", "horizon", "windows", "starts", "store")}
    models = ", ".join(each.uri for group in groups for each in group.members)
    tags = {"mcrnn.kind": "evaluation", "mcrnn.models": models[:4000], "mcrnn.store_digest": m["store_digest"]}
    record = RunFolder(LocalFolder(folder / ".mlflow"))
    before = record.read_record()
    if before is not None and (before["params"], before["tags"]) != ({"evaluation": params}, tags):
        record.clear()  # another evaluation was written to the same folder: its run in MLflow is left as it is
    record.write_record(name, tags=tags, params={"evaluation": params}, dataset=dataset)
    run = sync.update_now(record, "FINISHED")
    values = {f"{_slug(g.name)}.{key}": g.mean(key) for g in groups for key in TEST_METRICS if m[key] is not None}
    run.log_metrics({key: value for key, value in values.items() if np.isfinite(value)})
    for path in written:
        inner = path.parent.relative_to(folder).as_posix()
        run.log_files([path], None if inner == "." else inner)
    for group in groups:
        for selected, result in zip(group.selected, group.members, strict=True):
            if selected.run_id is not None and result.as_configured:
                training = Run(tracking_uri(storage), selected.run_id)
                if training.is_deleted():
                    print_warning(
                        f"the run of '{selected.uri}' was deleted in MLflow, so that its test errors are not there"
                    )
                else:
                    errors = test_errors(result.metrics)
                    training.log_metrics({f"test_{name}": value for name, value in errors.items()})
    sync.close()


def _slug(uri: str) -> str:
    """Turn the URI of a model into a folder name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", re.sub(r"^(models|runs):?/", "", uri)).strip("_")
