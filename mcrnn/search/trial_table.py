"""The table of a search's trials, as a running search and `python -m mcrnn.status` show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from mcrnn.console import MANY_COLUMNS, field_label, format_value, new_table

STYLES = {
    "running": "bold",
    "stopped": "dim",
    "paused": "dim",
    "interrupted": "dim",
    "waiting": "dim",
    "finished": None,
}
"""How the row of a trial is printed by its state; others, such as failed, are red."""


@dataclass(frozen=True)
class TrialRow:
    """A row of the table."""

    number: int
    values: dict[str, Any]
    """Value of each searched field by dotted path."""
    state: str
    """"running", "paused", "interrupted", "waiting", or how it ended."""
    epoch: int | None = None
    error: float | None = None
    """The error of this epoch."""
    seconds: float | None = None
    """How long it was trained."""
    best: float | None = None
    """Its smallest error so far."""


def trial_table(name: str, fields: Sequence[str], rows: Sequence[TrialRow], caption: str, width: int) -> Table:
    """Return the table, with as many of the searched fields as there is room for.

    Args:
        name: name of the search.
        fields: dotted paths of the searched fields, a column each.
        rows: the trials, from above.
        caption: line below the table.
        width: columns of the terminal. Numbers of the trials, errors and states are always shown.
    """
    columns = {"trial": [str(row.number) for row in rows]}
    columns |= {path: [format_value(row.values.get(path, "")) for row in rows] for path in fields}
    columns |= {
        "epoch": ["" if row.epoch is None else str(row.epoch) for row in rows],
        "error": [_error(row) for row in rows],
        "time": ["" if row.seconds is None else f"{row.seconds:.0f} s" for row in rows],
        "state": [row.state for row in rows],
    }
    shown, hidden = list(columns), list(fields)
    while hidden and _width(columns, shown) > width:
        shown.remove(hidden.pop())
    if missing := len(fields) - len(hidden):
        caption += f"; {missing} field{'s' if missing > 1 else ''} hidden"
    table = new_table(map(field_label, shown), title=f"search {name}", caption=caption, names=0)
    for index, row in enumerate(rows):
        table.add_row(*(columns[column][index] for column in shown), style=STYLES.get(row.state, "red"))
    return table


def _width(columns: dict[str, list[str]], shown: list[str]) -> int:
    """Return the width of a table of some columns, as `new_table` sets it."""
    space = 2 if len(shown) < MANY_COLUMNS else 1
    widths = (max(map(len, [*field_label(column).split(), *columns[column]])) for column in shown)
    return sum(width + space for width in widths)


def _error(row: TrialRow) -> str:
    """Return the error of a row; a trial that has ended without one has a dash."""
    if row.error is not None:
        return f"{row.error:.4f}"
    return "" if row.state in ("running", "waiting") else "-"
