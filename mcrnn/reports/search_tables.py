"""Tables of a search in the terminal: before it starts what it would run and cost, at its end what it found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from mcrnn.config.paths import ARCHITECTURE
from mcrnn.config.search import DEFAULT_TRIALS
from mcrnn.config.sections import Configuration
from mcrnn.config.space import Search
from mcrnn.console import field_label, format_value, new_table
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import TrainingWindows
from mcrnn.models import model_cost, with_resolved_sizes
from mcrnn.storage.root import Storage
from mcrnn.tracking.registry import CANDIDATE, CHAMPION
from mcrnn.training.session import OBJECTIVE

BYTES_PER_PARAMETER = 4
CHECKPOINTS_PER_TRIAL = 3
"""Checkpoints that a running trial has on disk at most: two that are kept, and one that is being written."""
MOST_COLUMNS = 1000
"""Width of a terminal in which any table has room, to learn how much a table needs."""
COPIES_PER_CHECKPOINT = 3
"""Numbers that a checkpoint holds per parameter: its value, and the two moments of the optimizer."""


def preview(search: Search, store: FieldStore) -> None:
    """Print the space of a search and what the search would run and cost; nothing is started or written.

    Args:
        search: the search, from its YAML file.
        store: the field store that it would train on.
    """
    console = Console()
    console.print(_space_table(search))
    config, space = search.search, search.space
    first = search.first_configuration()
    field = FieldDescription.of(store, first.data)
    trials: int | None = config.trials
    if config.sampler == "grid":
        grid_size = sum(1 for _ in space.grid())
        trials = min(grid_size, trials or grid_size)
    trials = trials or DEFAULT_TRIALS
    retrainings = sum(each.trainings for each in config.confirm.rounds(trials)) if config.confirm else 0
    costs = [_training_cost(search.configuration(values), store, field) for values in space.corners()]
    (fewest, most), (least, largest) = ((min(column), max(column)) for column in zip(*costs, strict=True))
    limits = [
        f"{getattr(config, name):g} {text}"
        for name, text in (("hours", "hours"), ("trial_hours", "trial hours"), ("goal", "as its goal"))
        if getattr(config, name) is not None
    ]
    stopping = "no early stopping" if config.early_stopping == "none" else f"early stopping by {config.early_stopping}"
    all_operations = largest * (trials + retrainings)
    paused = trials if config.early_stopping == "asha" else 0  # each keeps its model and its checkpoints until the end
    models = config.kept_models + retrainings + paused
    checkpoints = ((config.concurrency or 2) + paused) * CHECKPOINTS_PER_TRIAL
    copies = COPIES_PER_CHECKPOINT + (first.train.ema is not None)  # a checkpoint also has the average of the weights
    megabytes = most * BYTES_PER_PARAMETER * (models + checkpoints * copies) / 1e6
    lines = [
        f"{trials} trials by {config.sampler}, {stopping}"
        + (f"; search.first gives {min(len(config.first), trials)} of them" if config.first else "")
        + (f"; {retrainings} trainings to confirm" if retrainings else "")
        + (f"; at most {', '.join(limits)}" if limits else ""),
        f"a trial: {first.train.epochs} epochs, {fewest:,} to {most:,} parameters, {_operations(least)} to "
        f"{_operations(largest)} floating-point operations; all at most {_operations(all_operations)}",
        f"on disk: at most about {megabytes:.0f} MB of models and checkpoints at a time",
        f"data: {store.location.url}, {field.frame_shape[1]} x {field.frame_shape[2]} after coarsening, digest "
        f"{store.digest[:12]}",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _space_table(search: Search) -> Table:
    """Return a table of the searched fields, their values and the conditions under which they are searched."""
    table = new_table(["field", "values", "when"], title=f"search {search.name}", names=3)
    for path, alternatives in search.space.entries.items():
        for entry in alternatives:
            conditions = ", ".join(
                f"{field_label(key)}: {'|'.join(map(str, v))}" for key, v in entry.conditions.items()
            )
            table.add_row(path, str(entry), conditions)
    return table


def _training_cost(config: Configuration, store: FieldStore, field: FieldDescription) -> tuple[int, int]:
    """Return the parameters of a model, and the floating-point operations of its training.

    A multiply-add is two operations, and the backward pass costs twice the forward pass: six operations each.
    """
    config = with_resolved_sizes(config, field.frame_shape, len(field.inputs))
    cost = model_cost(config.model, field.frame_shape)
    split: Any = SimpleNamespace(shape=store.shape("train", config.data.coarsen, config.data.variables))
    windows = TrainingWindows(
        split, config.data, store.is_series, config.train.batch_size, config.train.seed, store.segments("train")
    )
    frames = windows.windows_per_epoch * config.data.sequence_length * config.train.epochs
    return cost.parameters, 6 * cost.multiply_adds * frames


def _operations(count: float) -> str:
    """Format a number of operations with a prefix from G to E."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T")):
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count / 1e9:.3g} G"


def print_summary(summary: dict[str, Any], search: Search, storage: Storage) -> None:
    """Print the best trial of each architecture, and what to do next.

    Args:
        summary: content of the search's `summary.json`.
        search: what was searched.
        storage: the storage root, which the commands to be given next must name.
    """
    console = Console()
    rows = sorted((row for row in summary["trials"] if "best" in row), key=lambda row: row["best"])
    grouped = ARCHITECTURE in search.space
    title = "best of every architecture" if grouped else "best trials"
    if summary["front"]:
        rows = [row for row in rows if row["trial"] in summary["front"]]
        title = "Pareto front: no other trial is better in everything"
    elif grouped:
        best_of: dict[str, dict[str, Any]] = {}
        for row in rows:
            best_of.setdefault(row["values"][ARCHITECTURE], row)
        rows = list(best_of.values())
    fields = sorted(search.space, key=lambda path: path != ARCHITECTURE)
    fields = [path for path in fields if any(path in row["values"] for row in rows[:10])]
    table = _best_table(rows[:10], fields, summary, title, names=int(grouped))
    if console.measure(table, options=console.options.update(width=MOST_COLUMNS)).minimum > console.width:
        table = _narrow_best_table(rows[:10], fields, summary, title, names=int(grouped))
    console.print(table)
    _print_confirmed(summary, console)
    uri = f"models:/{summary['model']}@{summary['alias']}"
    trials = summary["trials"]
    ends = {end: sum(row["end"] == end for row in trials) for end in ("stopped", "diverged", "out of memory", "failed")}
    others = [f"{count} {'stopped early' if end == 'stopped' else end}" for end, count in ends.items() if count]
    lines = ["error: closed-loop RMSE of the validation split over the training split's standard deviation"]
    if summary["importance"]:
        parts = [f"{field_label(name)} {share:.0%}" for name, share in summary["importance"].items() if share >= 0.01]
        lines.append(f"importance: {', '.join(parts)}")
    lines += [
        f"{', '.join([f'{len(trials)} trials', *others])}; "
        f"the winner is of trial {summary['best_trial']}, version {summary['version']} of {summary['model']}, "
        f"{_alias(summary)}",
    ]
    if confirmation := summary.get("confirmation"):
        unfinished = f" ({confirmation['unfinished']})" if confirmation["unfinished"] else ""
        lines.append(f"confirmation: {confirmation['statement']}{unfinished}")
    if summary["test"]:
        lines.append(f"on the test split: {summary['test'][OBJECTIVE]:.4f}")
    lines += _ensemble_lines(summary.get("ensemble"))
    option = _storage_option(storage)
    lines += ["", "next:", f"  python -m mcrnn.evaluate {uri}{option}"]
    if summary["alias"] == CANDIDATE:
        lines.append(f"  python -m mcrnn.promote {summary['model']}{option}")
    lines.append(f"  python -m mcrnn.ui{option}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _best_table(
    rows: list[dict[str, Any]], fields: list[str], summary: dict[str, Any], title: str, names: int
) -> Table:
    """Return the table of the best trials, with a column for each searched field.

    Args:
        rows: the trials of the summary, from above.
        fields: dotted paths of the searched fields.
        summary: the summary.
        title: line above the table.
        names: 1 where the first of the fields is the architecture, else 0.
    """
    table = new_table([*map(field_label, fields), *_best_headers(summary)], title=title, names=names)
    for row in rows:
        values = [format_value(row["values"].get(path, "")) for path in fields]
        table.add_row(*values, *_best_cells(row, summary), style=_best_style(row, summary))
    return table


def _narrow_best_table(
    rows: list[dict[str, Any]], fields: list[str], summary: dict[str, Any], title: str, names: int
) -> Table:
    """Return the same for a terminal that has no room for so many columns: the values of a trial are wrapped text."""
    headers = [*map(field_label, fields[:names]), "values", *_best_headers(summary)]
    table = new_table(headers, title=title, names=names + 1)
    for row in rows:
        values = row["values"]
        text = ", ".join(f"{field_label(f)} {format_value(values[f])}" for f in fields[names:] if f in values)
        known = [format_value(values.get(field, "")) for field in fields[:names]]
        table.add_row(*known, text, *_best_cells(row, summary), style=_best_style(row, summary))
    return table


def _best_headers(summary: dict[str, Any]) -> list[str]:
    return ["params", *(["frames/s"] if summary["front"] else []), "trial", "epochs", "error"]


def _best_cells(row: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    cells = [f"{row.get('parameters', 0) / 1000:.3g}k"]
    if summary["front"]:
        cells.append(f"{row.get('frames_per_second', 0):.0f}")
    return [*cells, str(row["trial"]), f"{row['epoch']}/{row['epochs']}", f"{row['best']:.4f}"]


def _best_style(row: dict[str, Any], summary: dict[str, Any]) -> str | None:
    return "bold green" if row["trial"] == summary["best_trial"] else None


def _ensemble_lines(ensemble: dict[str, Any] | None) -> list[str]:
    """Say what became of the ensemble, where one was asked for."""
    if ensemble is None:
        return []
    if not ensemble["members"]:
        return ["ensemble: no mean of several models is better on the validation windows than the best of them"]
    members = ", ".join(f"{each['count']} x {each['name']}" for each in ensemble["members"])
    test = f", on the test split {ensemble['test'][OBJECTIVE]:.4f}" if ensemble["test"] else ""
    won = "the champion now" if ensemble["alias"] == CHAMPION else "the champion stays"
    errors = f"validation error {ensemble['error']:.4f}, its best member {ensemble['best_member']:.4f}{test}"
    return [f"ensemble of {members}: {errors}; version {ensemble['version']}, {won}; {ensemble['comparison']}"]


def _print_confirmed(summary: dict[str, Any], console: Console) -> None:
    """Print the errors of the trials that were trained again with other seeds, the best first."""
    if not summary["confirmed"]:
        return
    title = "trained again with other seeds: mean, standard deviation and 95 % interval of the mean"
    table = new_table(["architecture", "trial", "seeds", "error", "interval", "best"], title=title, names=1)
    for row in summary["confirmed"]:
        error = f"{row['mean']:.4f} ± {row['std']:.4f}"
        interval = row.get("interval")  # which version 0.1.0 did not compute
        seeds = f"{row['seeds']}" + (f" ({row['failed']} failed)" if row["failed"] else "")
        cells = [seeds, error, f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "", f"{row['best']:.4f}"]
        style = "bold green" if row is summary["confirmed"][0] else None
        table.add_row(row["architecture"], str(row["trial"]), *cells, style=style)
    console.print(table)


def _alias(summary: dict[str, Any]) -> str:
    if summary["alias"] == CANDIDATE:
        return "a candidate beside the champion that is there"
    return "the champion before the ensemble" if (summary.get("ensemble") or {}).get("alias") else "the champion"


def _storage_option(storage: Storage) -> str:
    """Return the option with which the next command finds the storage root; empty where it finds it without."""
    if storage == Storage.open():
        return ""
    return f" --storage {storage.show(Path(storage.name)) if storage.is_local else storage.name}"
