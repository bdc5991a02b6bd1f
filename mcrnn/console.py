"""What commands print: a progress bar for long work, and tables.

In a terminal the bar shows the rate and the time left. Where stderr is no terminal, as in the log of a job, a line is
printed now and then instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

MANY_COLUMNS = 8
"""Number of columns from which on a table has less space between them, so that it fits into 80 characters."""

QUIET_SECONDS = 15.0
"""Least time between two lines where stderr is no terminal."""

SECONDS_BETWEEN_FRAMES = 0.1
"""Least time between two updates by `Bar.show`."""


class Bar:
    """A progress bar that counts up to a total, as a context manager.

    Args:
        title: What is done, such as "samples".
        total: How much of it there is.
        unit: Unit of the total, in the plural.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.skipped = 0
        self.started = self.last_line = time.monotonic()
        self.progress: Progress | None = None
        if sys.stderr.isatty():
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.task = self.progress.add_task(title, total=total, rate="")

    def __enter__(self) -> Bar:
        if self.progress:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress:
            self.progress.stop()

    def skip(self, count: int) -> None:
        """Count work that an earlier run of the command has done: it counts as done, but not towards the rate."""
        self.skipped += count
        self.advance(count)

    def advance(self, count: int) -> None:
        """Count work that has just been done."""
        self.done += count
        now = time.monotonic()
        rate = (self.done - self.skipped) / max(now - self.started, 1e-9)
        if self.progress:
            shown = f"{rate:.3g} {self.unit}/s" if self.done > self.skipped else ""
            self.progress.update(self.task, completed=self.done, rate=shown)
        elif now - self.last_line > QUIET_SECONDS and self.done < self.total:
            self.last_line = now
            left = f", about {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
            line = f"{self.title}: {self.done} of {self.total} {self.unit}, {rate:.3g}/s{left}"
            print(line, file=sys.stderr, flush=True)

    def show(self, title: str, done: float) -> None:
        """Set the title and how much has been done, in a terminal only.

        For commands that print lines of their own where there is no terminal.
        """
        if self.progress:
            now = time.monotonic()
            if now - self.last_line < SECONDS_BETWEEN_FRAMES and done < self.total:
                return
            self.last_line = now
            self.progress.update(self.task, description=title, completed=done)

    def print(self, line: str, console: Console) -> None:
        """Print a line: above the bar in a terminal, else to the console that is given."""
        (self.progress.console if self.progress else console).print(line, highlight=False, soft_wrap=True)


def new_table(headers: Iterable[str], *, title: str, caption: str | None = None, names: int = 1) -> Table:
    """Return an empty table.

    Args:
        headers: Headers of the columns.
        title: Line above the table.
        caption: Line below the table.
        names: Number of columns, from the left, that hold text, which may be wrapped. The others hold numbers, which
            are never cut off.
    """
    headers = list(headers)
    space = 1 if len(headers) < MANY_COLUMNS else 0  # in addition to the space that the box leaves
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, show_edge=False, padding=(0, space, 0, 0))
    for index, header in enumerate(headers):
        if index < names:
            table.add_column(header, overflow="fold")
        else:
            # one word a line, so that the header is not wider than the numbers
            table.add_column("\n".join(header.split()), justify="right", no_wrap=True)
    return table


def field_label(path: str) -> str:
    """Return the name of a field for a person: the last part of its dotted path, with spaces for underscores."""
    return path.rsplit(".", 1)[-1].replace("_", " ")


def format_value(value: Any) -> str:
    """Return the value of a field in few characters; numbers with a point have two digits."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)
