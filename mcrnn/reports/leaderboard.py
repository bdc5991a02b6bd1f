"""The leaderboard of a field store: all models on the same windows, in groups that cannot be told apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mcrnn.console import new_table
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation.basis import WHOLE, quantity
from mcrnn.evaluation.metrics import Scores
from mcrnn.evaluation.result import EvaluationResult
from mcrnn.evaluation.selection import select_models
from mcrnn.evaluation.side_by_side import Evaluated, Windows, evaluate_side_by_side
from mcrnn.evaluation.uncertainty import log_ratio, rmse_interval
from mcrnn.reports.evaluation_tables import as_latex, as_markdown, format_duration, format_figure
from mcrnn.runners.evaluation_workers import part_scorer
from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import all_pages, client_of, quiet_mlflow, reachable, tracking_uri

ERROR_RATE = 0.05
"""Probability that two models of a rank are wrongly told apart, shared among the comparisons."""
HEADERS = [
    "rank",
    "model",
    "architecture",
    "error",
    "95 % interval",
    "to best",
    "params",
    "MACs",
    "training",
    "frames/s",
]


def make(store: str, storage: Storage, windows: Windows, out: str | None, workers: int = 1) -> list[str]:
    """Evaluate all models of a store, print their ranking, and write it where asked to.

    Args:
        store: name of the field store.
        storage: the storage root.
        windows: the windows of its test split on which the models are ranked.
        out: folder that gets the ranking as Markdown, LaTeX and JSON; None for none.
        workers: number of workers on Ray that score the windows; 1 for this process.

    Returns:
        A message for each model that could not be ranked.

    Raises:
        UserError: there is no model of this store, or none that could be evaluated.
    """
    opened = FieldStore.open(storage.location(store))
    digest, digests = opened.digest, opened.digests
    uris = list(dict.fromkeys([*_registered(digests, storage), *_reported(digests, storage)]))
    if not uris:
        raise UserError(f"there is no model of '{store}' yet: neither in the registry nor in a report below reports/")
    selected, failures = select_models(uris, storage)
    with part_scorer(workers, windows.device, storage.location("reports")) as score_parts:
        evaluated = evaluate_side_by_side(selected, storage, replace(windows, store=store), failures, score_parts)
    rows = rank(evaluated)
    named_first = evaluated[0][1]
    first = named_first.metrics
    error = quantity(named_first.scores, WHOLE, named_first.model.config.validation)
    title = (
        f"{first['variable']}: {error}, test split of {store} ({digest[:12]}), "
        f"{first['warm_up']} frames given, {first['horizon']} steps, {first['windows']} windows: {first['starts']}"
    )
    cells = [_cells(row) for row in rows]
    table = new_table(HEADERS, title=title, caption="models of one rank cannot be told apart", names=3)
    for row in cells:
        table.add_row(*row, style="bold" if row[0] == "1" else "dim" if not row[0] else None)
    Console().print(table)
    if out:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "leaderboard.md").write_text(f"{title}\n\n{as_markdown(HEADERS, cells)}")
        (folder / "leaderboard.tex").write_text(as_latex(HEADERS, cells, [], title))
        (folder / "leaderboard.json").write_text(json.dumps({"title": title, "rows": rows}, indent=1))
    return failures


def _registered(digests: set[str], storage: Storage) -> Iterator[str]:
    """Yield the versions of all registered models that were trained on a store."""
    quiet_mlflow()
    with reachable(tracking_uri(storage)):
        versions = all_pages(client_of(tracking_uri(storage)).search_model_versions)
    for each in sorted(versions, key=lambda version: (version.name, int(version.version))):
        if each.tags.get("mcrnn.store_digest") in digests:
            yield f"models:/{each.name}/{each.version}"


def _reported(digests: set[str], storage: Storage) -> Iterator[str]:
    """Yield the models of runs and folders that reports on a store name. Aliases stand for versions that are known."""
    reports = storage.location("reports")
    for name in reports.folders():
        try:
            for metrics in json.loads(reports.read(f"{name}/metrics.json")):
                if metrics["store_digest"] in digests and not metrics["model"].startswith("models:/"):
                    yield metrics["model"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # no report of an evaluation


def rank(evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Order models by their error, and put those into one rank that cannot be told apart from the rank's first model.

    The error is the one that promotions compare, see `mcrnn.evaluation.basis`. The level of a comparison is
    `ERROR_RATE` over the number of comparisons (Bonferroni).

    Returns:
        A row for each model, the best first, and a row without a rank for each baseline.
    """
    errors = [
        (_errors(result.scores, result, result.evaluation_set.warm_up - 1), selected, result)
        for selected, result in evaluated
    ]
    ordered = sorted(errors, key=lambda each: float(each[0].mean()))
    level = 1 - ERROR_RATE / max(1, len(ordered) - 1)
    best = ordered[0][2]
    smallest = _rmse(ordered[0][0]) or np.inf
    rows: list[dict[str, Any]] = []
    leader_N, number = ordered[0][0], 1
    for errors_N, selected, result in ordered:
        overlap = result.evaluation_set.overlap
        if _differ(errors_N, leader_N, overlap, level):
            leader_N, number = errors_N, number + 1
        keys = ("architecture", "parameters", "multiply_adds", "frames_per_second", "trouble")
        rows.append(
            {
                "rank": number,
                "model": result.uri,
                **{key: result.metrics[key] for key in keys},
                "error": _rmse(errors_N),
                "interval": rmse_interval(errors_N, overlap),
                "ratio_to_best": _rmse(errors_N) / smallest,
                "training_seconds": selected.training_seconds,
            }
        )
    for name, scores in best.baselines.items():
        error = _rmse(_errors(scores, best, 0))
        rows.append({"rank": None, "model": name, "error": error, "ratio_to_best": error / smallest})
    return rows


def _errors(scores: Scores, result: EvaluationResult, given: int) -> np.ndarray:
    """Return the error of each window that promotions compare.

    Args:
        scores: scores of a model or baseline.
        result: the model that was evaluated.
        given: position of lead time 1 in the scores, counted from 0.
    """
    return WHOLE.error_by_window(scores, given, range(len(result.scales)), result.scales)


def _rmse(errors_N: np.ndarray) -> float:
    return float(np.sqrt(errors_N.mean()))


def _differ(errors_N: np.ndarray, leader_N: np.ndarray, overlap: float | None, level: float) -> bool:
    """Say whether a model is worse than the first of a rank, beyond doubt."""
    if np.array_equal(errors_N, leader_N):
        return False
    ratio = log_ratio(errors_N, leader_N, overlap)
    return ratio is not None and ratio.interval(level)[0] > 0


def _cells(row: dict[str, Any]) -> list[str]:
    """Return a row as text, in the order of `HEADERS`."""
    error = format_figure(row["error"])
    ratio = f"{100 * (row['ratio_to_best'] - 1):+.1f} %" if np.isfinite(row["ratio_to_best"]) else ""
    if row["rank"] is None:
        return ["", row["model"], "", error, "", ratio, "", "", "", ""]
    trouble = f" ({row['trouble']})" if row["trouble"] else ""
    interval = "" if row["interval"] is None else "{} to {}".format(*map(format_figure, row["interval"]))
    return [
        str(row["rank"]),
        row["model"].removeprefix("models:/") + trouble,
        row["architecture"],
        error,
        interval,
        ratio,
        f"{row['parameters'] / 1000:.3g}k",
        f"{row['multiply_adds'] / 1e6:.3g}M",
        format_duration(row["training_seconds"]),
        f"{row['frames_per_second']:.0f}",
    ]
