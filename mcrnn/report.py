"""An evaluation: errors of models and baselines on the test split, as a table, a JSON file and pictures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mcrnn import baselines, plots, registry
from mcrnn.evaluation import check_store
from mcrnn.fields import FieldStore
from mcrnn.model_directory import TrainedModel
from mcrnn.registry import TEST_METRICS
from mcrnn.storage import Storage
from mcrnn.tables import new_table
from mcrnn.tracking import Run
from mcrnn.training import validate
from mcrnn.windows import check_length, evaluation_windows, open_split

BATCH_SIZE = 32


@dataclass(frozen=True)
class Judged:
    """What was found about one model on one test split."""

    uri: str
    model: TrainedModel
    metrics: dict[str, Any]
    curves: list[plots.Curve]
    example: tuple[np.ndarray, np.ndarray, list[int]]
    """truth and forecast (lead time, height, width) of the first sample's first channel, and the lead times"""


def make(uris: list[str], storage: Storage, *, warm_up: int | None, horizon: int | None, out: str | None) -> None:
    """Judge the models, print the table, write the report and add it to the models' runs.

    Raises:
        UserError: a model or its store cannot be used, or the samples are too short.
    """
    loaded = {uri: registry.find(uri, storage) for uri in uris}
    judged = [judge(uri, one.model, storage, warm_up, horizon) for uri, one in loaded.items()]
    console = Console()
    console.print(_table(judged))
    folder = Path(out) if out else storage.path("reports") / "+".join(_slug(j.uri) for j in judged)[:100]
    folder.mkdir(parents=True, exist_ok=True)
    for one in judged:
        inner = folder / _slug(one.uri) if len(judged) > 1 else folder
        files = write(one, inner)
        attach(loaded[one.uri].run_id, one, files, storage)
        for file in files:
            console.print(f"  {storage.show(file.resolve())}", highlight=False, soft_wrap=True)


def judge(
    uri: str, model: TrainedModel, storage: Storage, warm_up: int | None = None, horizon: int | None = None
) -> Judged:
    """Judge a model on the test split of the store that it was trained on.

    Raises:
        UserError: the store cannot be used or is another, or its samples are too short.
    """
    data = model.config.data
    warm_up = warm_up or model.config.validation.warm_up
    horizon = horizon or model.config.validation.horizon
    steps = warm_up + horizon
    store = FieldStore.open(storage.location(data.store))
    check_store(model, store, uri)
    test = open_split(store, "test", data)
    check_length(test.shape[1], steps + 1, f"a warm-up of {warm_up} and a horizon of {horizon}")
    windows = evaluation_windows(test.shape, store.is_series, steps)
    error = validate(
        model.network, test, windows, model.scaling, warm_up=warm_up, horizon=horizon, batch_size=BATCH_SIZE
    )
    model.network.eval()

    predicted = model.network.channels_out
    baseline_errors = baselines.errors(
        store, data, test, windows, warm_up=warm_up, horizon=horizon, channels=predicted, batch_size=BATCH_SIZE
    )

    lead_times = sorted({1, *np.linspace(1, horizon + 1, 6).round().astype(int).tolist()})
    first_TCHW = test.windows(windows[0][:1], windows[1][:1], steps + 1)[0]
    example_THW = model.forecast(first_TCHW[None, :warm_up], horizon + 1)[0, :, 0]
    picked = [lead - 1 for lead in lead_times]
    by_step = error.rmse_by_step().numpy()
    std = model.field.std[:predicted]
    metrics = {
        "model": uri,
        "architecture": model.config.model.architecture,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "store": data.store,
        "store_digest": store.digest,
        "split": "test",
        "windows": len(windows[0]),
        "variable": model.field.variable,
        "units": model.field.units,
        "std": list(std),
        "warm_up": warm_up,
        "horizon": horizon,
        "rmse_teacher_forced": error.rmse(1, warm_up),
        "rmse_closed_loop": error.rmse(warm_up + 1, steps),
        "rmse_closed_loop_normalized": error.rmse_normalized(warm_up + 1, steps, std),
        "rmse_closed_loop_mean_of_steps": error.rmse_mean_of_steps(warm_up + 1, steps),
        "rmse_teacher_forced_by_step": by_step[:warm_up].tolist(),
        "rmse_by_lead_time": by_step[warm_up - 1 :].tolist(),
        "baselines": {
            name: {
                "rmse_closed_loop": e.rmse(2, horizon + 1),
                "rmse_closed_loop_normalized": e.rmse_normalized(2, horizon + 1, std),
                "rmse_closed_loop_mean_of_steps": e.rmse_mean_of_steps(2, horizon + 1),
                "rmse_by_lead_time": e.rmse_by_step().tolist(),
            }
            for name, e in baseline_errors.items()
        },
    }
    better = min(b["rmse_closed_loop_normalized"] for b in metrics["baselines"].values())
    metrics["ratio_to_better_baseline"] = metrics["rmse_closed_loop_normalized"] / better
    curves = [plots.Curve(model.config.model.architecture, 1, by_step)]
    for name, e in baseline_errors.items():
        curves.append(plots.Curve(name, warm_up, e.rmse_by_step().numpy(), baseline=True))
    example = (first_TCHW[warm_up:][picked, 0].numpy(), example_THW[picked].numpy(), lead_times)
    return Judged(uri, model, metrics, curves, example)


def _table(judged: list[Judged]) -> Table:
    first = judged[0].metrics
    unit = "" if first["units"] == "1" else f" in {first['units']}"
    leads = [lead for lead in (1, 5, 10, 20, 50, 100) if lead <= first["horizon"] + 1]
    table = new_table(
        ["", "teacher forced", *(f"lead {lead}" for lead in leads), "closed loop", "normal- ised"],
        title=f"test RMSE of {first['variable']}{unit}: {first['warm_up']} frames given, "
        f"{first['horizon']} steps in closed loop, {first['windows']} windows",
    )
    shown: set[str] = set()
    for one in judged:
        m = one.metrics
        table.add_row(
            f"{m['architecture']}" if len(judged) == 1 else f"{m['architecture']} ({one.uri})",
            *map(_figure, [m["rmse_teacher_forced"], *_at(m["rmse_by_lead_time"], leads)]),
            *map(_figure, [m["rmse_closed_loop"], m["rmse_closed_loop_normalized"]]),
            style="bold",
        )
    for one in judged:
        for name, b in one.metrics["baselines"].items():
            row = (
                name,
                "",
                *map(_figure, _at(b["rmse_by_lead_time"], leads)),
                *map(_figure, [b["rmse_closed_loop"], b["rmse_closed_loop_normalized"]]),
            )
            if str(row) not in shown:
                shown.add(str(row))
                table.add_row(*row)
    ratios = ", ".join(f"{one.metrics['ratio_to_better_baseline']:.2f}" for one in judged)
    table.caption = f"closed loop over the better baseline: {ratios}"
    return table


def _at(by_lead_time: list[float], leads: list[int]) -> list[float]:
    return [by_lead_time[lead - 1] for lead in leads]


def _figure(value: float) -> str:
    """Three significant figures, as many zeros as it takes."""
    return f"{value:#.3g}"


def write(one: Judged, folder: Path) -> list[Path]:
    """Write metrics and pictures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    field = one.model.field
    quantity = field.variable if field.units == "1" else f"{field.variable} [{field.units}]"
    files = [folder / "metrics.json", folder / "rmse.png", folder / "forecast.png"]
    files[0].write_text(json.dumps(one.metrics, indent=1))
    plots.error_curves(files[1], one.curves, warm_up=one.metrics["warm_up"], quantity=quantity)
    truth_THW, forecast_THW, lead_times = one.example
    title = f"{one.model.config.model.architecture}, test sample 0, after {one.metrics['warm_up']} given frames"
    plots.field_series(files[2], truth_THW, forecast_THW, lead_times, quantity=quantity, title=title)
    return files


def attach(run_id: str | None, one: Judged, files: list[Path], storage: Storage) -> None:
    """Add the report and the test errors to the run that the model came from, where there is one."""
    if run_id is None:
        return
    run = Run(storage.tracking_uri, run_id)
    run.log_metrics({f"test_{name}": one.metrics[name] for name in TEST_METRICS}, step=0)
    run.log_files(files, "evaluation")


def _slug(uri: str) -> str:
    """A folder name for a model."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", re.sub(r"^(models|runs):/", "", uri)).strip("_")
