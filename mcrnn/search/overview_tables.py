"""The tables of `python -m mcrnn.status`: all searches and runs, the trials of a search, the epochs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mcrnn.console import new_table
from mcrnn.search.overview import Overview, WatchedSearch
from mcrnn.search.trial_table import trial_table
from mcrnn.training.session import OBJECTIVE

STYLES = {"running": "bold", "stopping": "bold", "lost": "red", "failed": "red", "unreadable": "red"}
"""How a search or run is printed by its state."""
MOST_ROWS = 30
"""Most rows where there is no terminal, such as in the log of a job; the table of thousands would take seconds."""
LINES_BESIDE_ROWS = 12
"""Lines of a terminal that the header of a table and what stands below it take."""
WIDE = 110
"""Columns of a terminal from which on the list says more."""
WORK = {"search": "trials", "run": "epochs"}


def duration(seconds: float, units: int = 2) -> str:
    """Return a time in one or two units, such as `2 h 05 min`."""
    left, parts = round(seconds), list[str]()
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if parts:
            parts.append(f"{count:02d} {name}")
        elif count or name == "s":
            parts.append(f"{count} {name}")
    return " ".join(parts[:units])


def _room(console: Console) -> int:
    """Return the most rows of a table."""
    return max(3, console.height - LINES_BESIDE_ROWS) if console.is_terminal else MOST_ROWS


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"


def listing(found: Sequence[Overview], width: int) -> Table:
    """Return the table of all searches and runs.

    Args:
        found: what was seen of them.
        width: columns of the terminal.
    """
    table = Table(box=None, padding=(0, 2 if width >= WIDE else 1, 0, 0), header_style="bold")
    longest = max((len(each.name) for each in found), default=4)
    table.add_column("name", overflow="fold", width=max(4, min(longest, width // 6)))
    table.add_column("state", no_wrap=True)
    for header in ("done", "best", "rate", "ends in", "last sign"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for each in found:
        unit = f" {WORK[each.kind]}" if width >= WIDE else ""
        table.add_row(
            each.name,
            each.state if each.phase is None else each.phase,
            "" if each.done is None else f"{each.done}/{each.budget}{unit}",
            "" if each.best is None else f"{each.best:.4f}",
            "" if each.rate is None else f"{_rate(each.rate)}/h",
            "" if each.seconds_left is None else duration(each.seconds_left),
            "" if each.last_sign_seconds is None else duration(each.last_sign_seconds, units=1),
            (each.where or "") if width >= WIDE else each.process.get("host", ""),
            style=STYLES.get(each.state),
        )
    return table


def search_view(watched: WatchedSearch, console: Console) -> RenderableType:
    """Return the table of the trials of a search, as many as the terminal has room for, and lines about the search."""
    seen = watched.overview
    rows = watched.rows(_room(console))
    best = "-" if seen.best is None else f"{seen.best:.4f}"
    left = "" if seen.seconds_left is None else f", time left about {duration(seen.seconds_left)}"
    caption = f"{seen.done} of {seen.budget} trials, best {best}{left}"
    table = trial_table(watched.name, watched.fields, rows, caption, console.width)
    hidden = len(watched.trials) - len(rows)
    more = [f"{hidden:,} more trials are not shown; --json has all"] if hidden else []
    return Group(table, *_lines(seen), *more)


def run_view(seen: Overview, metrics: Sequence[dict[str, Any]], console: Console) -> RenderableType:
    """Return the table of the newest epochs of a run, and lines about it."""
    best = "-" if seen.best is None else f"{seen.best:.4f}"
    left = "" if seen.seconds_left is None else f", time left about {duration(seen.seconds_left)}"
    table = new_table(
        ["epoch", "loss", "error", "best", "time"],
        title=f"run {seen.name}",
        names=0,
    )
    for each in metrics[-_room(console) :]:
        table.add_row(
            f"{each['epoch']:.0f}",
            f"{each['loss']:.5f}" if "loss" in each else "",
            f"{each[OBJECTIVE]:.4f}" if OBJECTIVE in each else "",
            f"{each['best']:.4f}" if "best" in each else "",
            f"{each['seconds']:.0f} s" if "seconds" in each else "",
        )
    return Group(table, f"{seen.done} of {seen.budget} epochs, best {best}{left}", *_lines(seen))


def _lines(seen: Overview) -> list[Text]:
    """Return what is said below a table: state, place, and which file was read."""
    state = seen.state if seen.phase is None else f"{seen.state}: {seen.phase}"
    parts = [state]
    if seen.running:
        parts.append(f"{seen.running} trials run")
    if seen.failed:
        parts.append(f"{seen.failed} failed")
    if seen.rate is not None:
        parts.append(f"{_rate(seen.rate)} {WORK[seen.kind]} an hour")
    lines = [", ".join(parts)]
    if seen.where is not None and seen.last_sign_seconds is not None:
        lines.append(f"on {seen.where}, last sign of life {duration(seen.last_sign_seconds)} ago")
    if seen.message:
        lines.append(f"ended by: {seen.message}")
    if source := seen.process.get("source"):
        lines.append(source)
    styles = [STYLES.get(seen.state, ""), *[""] * len(lines)]
    return [Text(line, style, overflow="fold") for line, style in zip(lines, styles, strict=False)]
