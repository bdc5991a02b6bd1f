"""Progress of long work: a bar with rate and time left in a terminal, a line now and then anywhere else."""

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
"""from which on they stand close, so that 80 characters hold them"""

QUIET_SECONDS = 15.0
"""least time between two lines where there is no terminal"""


class Bar:
    """Counts up to a total of some unit.

    What is done before the clock starts (`skip`) counts as done but not towards the rate.
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
        """Some of it was done earlier."""
        self.skipped += count
        self.advance(count)

    def advance(self, count: int) -> None:
        """Some more is done."""
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
        """The title and how much is done, in a terminal only: for what prints lines of its own anywhere else."""
        if self.progress:
            now = time.monotonic()
            if now - self.last_line < 0.1 and done < self.total:
                return
            self.last_line = now
            self.progress.update(self.task, description=title, completed=done)

    def print(self, line: str, console: Console) -> None:
        """A line above the bar."""
        (self.progress.console if self.progress else console).print(line, highlight=False, soft_wrap=True)


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
