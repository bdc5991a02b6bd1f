"""What a search says: before it starts what it would run and cost, at its end what it found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mcrnn.config.paths import ARCHITECTURE
from mcrnn.config.space import Search
from mcrnn.console import field_label, format_value, new_table
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import TrainingWindows
from mcrnn.models import model_cost, with_resolved_width
from mcrnn.storage.root import Storage
from mcrnn.tracking.registry import CANDIDATE, CHAMPION
from mcrnn.training.session import OBJECTIVE

if TYPE_CHECKING:
    from mcrnn.search.search_run import SearchRun


def preview(search: Search, store: FieldStore) -> None:
    """Print what a search would run and what that would cost; nothing is started or written."""
    console = Console()
    config, space = search.search, search.space
    first = search.first_configuration()
    field = FieldDescription.of(store, first.data)
    table = new_table(["field", "values", "when"], title=f"search {search.name}", names=3)
    for path, alternatives in space.entries.items():
        for entry in alternatives:
            conditions = ", ".join(f"{field_label(key)}: {'|'.join(map(str, v))}" for key, v in entry.conditions.items())
            table.add_row(path, str(entry), conditions)
    console.print(table)
    trials: int | None = config.trials
    if config.sampler == "grid":
        count = sum(1 for _ in space.grid())
        trials = min(count, trials or count)
    trials = trials or 20
    costs = []
    for values in space.corners():
        each = with_resolved_width(search.configuration(values), field.frame_shape)
        of = model_cost(each.model, field.frame_shape)
        split: Any = SimpleNamespace(shape=store.shape("train", each.data.coarsen, each.data.variables))
        windows = TrainingWindows(split, each.data, store.is_series, each.train.batch_size, each.train.seed)
        frames = windows.windows_per_epoch * each.data.sequence_length * each.train.epochs
        costs.append((of.parameters, 6 * of.multiply_adds * frames))
    (few, many), (little, much) = ((min(cost[i] for cost in costs), max(cost[i] for cost in costs)) for i in (0, 1))
    retrained = 0
    if config.confirm:
        choices = {entry for e in space.entries.get(ARCHITECTURE, []) for entry in e.corners} or {None}
        retrained = config.confirm.seeds * len(choices)
    bytes_kept = 4 * many * config.keep + 4 * many * 3 * 3 * (config.concurrency or 2) + 4 * many * retrained
    limits = [
        f"{getattr(config, name):g} {text}"
        for name, text in (("hours", "hours"), ("trial_hours", "trial hours"), ("goal", "as its goal"))
        if getattr(config, name) is not None
    ]
    stopping = "no early stopping" if config.early_stopping == "none" else f"early stopping by {config.early_stopping}"
    lines = [
        f"{trials} trials by {config.sampler}, {stopping}"
        + (f"; {retrained} trainings to confirm" if retrained else "")
        + (f"; at most {', '.join(limits)}" if limits else ""),
        f"a trial: {first.train.epochs} epochs, {few:,} to {many:,} parameters, {_operations(little)} to "
        f"{_operations(much)} floating-point operations; all at most {_operations(much * (trials + retrained))}",
        f"on disk: at most about {bytes_kept / 1e6:.0f} MB of models and checkpoints at a time",
        f"data: {store.location.url}, {field.frame_shape[1]} x {field.frame_shape[2]} after coarsening, digest "
        f"{store.digest[:12]}",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _operations(count: float) -> str:
    for size, name in ((1e18, "E"), (1e15, "P"), (1e12, "T")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count / 1e9:.3g} G"


def print_summary(opened: SearchRun) -> None:
    """The best trial of every architecture, and what to do next."""
    found = opened.summary
    assert found is not None
    console = Console()
    rows = sorted((row for row in found["trials"] if "best" in row), key=lambda row: row["best"])
    grouped = ARCHITECTURE in opened.search.space
    title = "best of every architecture" if grouped else "best trials"
    if found["front"]:
        rows = [row for row in rows if row["trial"] in found["front"]]
        title = "Pareto front: no other trial is better in everything"
    elif grouped:
        best_of: dict[str, dict[str, Any]] = {}
        for row in rows:
            best_of.setdefault(row["values"][ARCHITECTURE], row)
        rows = list(best_of.values())
    space = sorted(opened.search.space, key=lambda path: path != ARCHITECTURE)
    sizes = ["params", "frames/s"] if found["front"] else ["params"]
    table = new_table([*map(field_label, space), *sizes, "trial", "epochs", "error"], title=title, names=int(grouped))
    for row in rows[:10]:
        style = "bold green" if row["trial"] == found["best_trial"] else None
        cells = [format_value(row["values"].get(path, "")) for path in space]
        cells.append(f"{row.get('parameters', 0) / 1000:.3g}k")
        if found["front"]:
            cells.append(f"{row.get('frames_per_second', 0):.0f}")
        table.add_row(*cells, str(row["trial"]), f"{row['epoch']}/{row['epochs']}", f"{row['best']:.4f}", style=style)
    console.print(table)
    _print_confirmed(found, console)
    uri = f"models:/{found['model']}@{found['alias']}"
    trials = found["trials"]
    ends = {end: sum(row["end"] == end for row in trials) for end in ("stopped", "diverged", "out of memory", "failed")}
    others = [f"{count} {'stopped early' if end == 'stopped' else end}" for end, count in ends.items() if count]
    lines = ["error: closed-loop RMSE of the validation split over the training split's standard deviation"]
    if found["importance"]:
        parts = [f"{field_label(name)} {share:.0%}" for name, share in found["importance"].items() if share >= 0.01]
        lines.append(f"importance: {', '.join(parts)}")
    lines += [
        f"{', '.join([f'{len(trials)} trials', *others])}; "
        f"the winner is of trial {found['best_trial']}, version {found['version']} of {found['model']}, "
        f"{_alias(found)}",
    ]
    if found["test"]:
        lines.append(f"on the test split: {found['test'][OBJECTIVE]:.4f}")
    option = _storage_option(opened)
    lines += ["", "next:", f"  python -m mcrnn.evaluate {uri}{option}"]
    if found["alias"] == CANDIDATE:
        lines.append(f"  python -m mcrnn.promote {found['model']}{option}")
    lines.append(f"  python -m mcrnn.ui{option}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _print_confirmed(found: dict[str, Any], console: Console) -> None:
    if not found["confirmed"]:
        return
    title = "trained again with other seeds: mean and standard deviation"
    table = new_table(["architecture", "trial", "seeds", "error", "best"], title=title, names=1)
    for row in found["confirmed"]:
        error = f"{row['mean']:.4f} ± {row['std']:.4f}"
        seeds = f"{row['seeds']}" + (f" ({row['failed']} failed)" if row["failed"] else "")
        style = "bold green" if row is found["confirmed"][0] else None
        table.add_row(row["architecture"], str(row["trial"]), seeds, error, f"{row['best']:.4f}", style=style)
    console.print(table)


def _alias(found: dict[str, Any]) -> str:
    return "the champion" if found["alias"] == CHAMPION else "a candidate beside the champion that is there"


def _storage_option(opened: SearchRun) -> str:
    """What makes the next command find the same root as this one, where it was named on the command line."""
    here, root = Storage.open(), opened.storage
    if root == here:
        return ""
    return f" --storage {root.show(Path(root.name)) if root.is_local else root.name}"
