"""Tables in the terminal, all of one look."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

MANY_COLUMNS = 8
"""from which on they stand close, so that 80 characters hold them"""


def new_table(headers: Iterable[str], *, title: str, caption: str | None = None, names: int = 1) -> Table:
    """A table whose first `names` columns are text and whose others are figures, never cut off."""
    headers = list(headers)
    space = 1 if len(headers) < MANY_COLUMNS else 0  # beside the one that the box leaves
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, show_edge=False, padding=(0, space, 0, 0))
    for index, header in enumerate(headers):
        if index < names:
            table.add_column(header, overflow="fold")
        else:
            # a word a line, so that a header is no wider than it must be
            table.add_column("\n".join(header.split()), justify="right", no_wrap=True)
    return table


def short(path: str) -> str:
    """The last part of a dotted path, in words."""
    return path.rsplit(".", 1)[-1].replace("_", " ")


def show(value: Any) -> str:
    """A value of the space in few characters."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)
