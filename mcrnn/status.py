"""Show searches and runs from any terminal: how far they are, and where they run.

    python -m mcrnn.status                  # all searches and runs
    python -m mcrnn.status demo --watch     # the trials of a search, as its live table shows them
    python -m mcrnn.status demo --json      # the same for scripts

Only the folders below the storage root and the study are read; no Ray is started, and nothing is written.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_REMOTE_LOOKS = 5.0
"""The same where object storage or a database is asked."""


def status(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Search or run whose trials or epochs are shown; by default all are listed."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow what changes, until Ctrl-C or the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch a line for each look.")] = False,
    storage: StorageOption = None,
) -> None:
    """List searches and runs: state, trials done of how many, best error, rate, when it ends, where it runs.

    With NAME its trials are shown as in the live table, or the epochs of a run. A search is "lost" if its process
    has been silent for a minute: mostly it is gone, and its command continues it. Looking costs the search nothing.
    It works wherever the storage root can be reached, and the database where the study is in one.
    """
    root = Storage.open(storage, read_only=True)

    from rich.console import Console

    console, view = Console(), _View(root, name)
    if not watch:
        _print(view, console, as_json)
        return
    pause = SECONDS_BETWEEN_LOOKS if root.is_local and not view.is_remote else SECONDS_BETWEEN_REMOTE_LOOKS
    try:
        if as_json or not console.is_terminal:
            _follow_in_lines(view, console, as_json, pause)
        else:
            _follow(view, console, pause)
    except KeyboardInterrupt:  # nothing is interrupted but the looking
        return


def _print(view: _View, console: Console, as_json: bool) -> None:
    view.look()
    if as_json:
        print(json.dumps(view.content(), indent=1))
    else:
        console.print(view.table(console), soft_wrap=False)


def _follow(view: _View, console: Console, pause: float) -> None:
    from rich.live import Live

    view.look()
    with Live(view.table(console), console=console, auto_refresh=False) as live:
        while not view.has_ended:
            time.sleep(pause)
            if view.look_again():
                live.update(view.table(console), refresh=True)


def _follow_in_lines(view: _View, console: Console, as_json: bool, pause: float) -> None:
    """Print what has changed where no terminal shows a table in place."""
    before: Any = None
    view.look()
    is_new = True
    while True:
        if is_new and as_json:
            print(json.dumps(view.content()), flush=True)
        elif is_new and (now := view.summary()) != before:
            console.print(view.table(console))
            before = now
        if view.has_ended:
            return
        time.sleep(pause)
        is_new = view.look_again()


class _View:
    """What is looked at: all searches and runs, or one of them.

    Args:
        root: the storage root.
        name: what the user has named; None for all.

    Raises:
        UserError: there is nothing of this name.
    """

    def __init__(self, root: Storage, name: str | None) -> None:
        from mcrnn.search.overview import SEARCH, Overview, WatchedSearch, find

        self.root = root
        self.kind: str | None = None
        self.name: str | None = None
        if name is not None:
            self.kind, self.name = find(root, name)
        self.watched = WatchedSearch(root, self.name) if self.kind == SEARCH and self.name else None
        self.found: list[Overview] = []
        self.metrics: list[dict[str, Any]] = []

    @property
    def is_remote(self) -> bool:
        """Whether a look asks a database."""
        return self.watched is not None and self.watched.configuration["search"].get("storage") is not None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be seen of the search or run that is looked at."""
        return self.name is not None and self.found[0].is_over

    def look(self) -> None:
        """Read what is to be seen now."""
        from mcrnn.search.overview import overview, overviews
        from mcrnn.tracking.run_folder import RunFolder

        if self.watched is not None:
            self.found = [self.watched.refresh()]
        elif self.kind is not None and self.name is not None:
            seen = overview(self.root, self.kind, self.name)
            self.found = self.found if seen is None else [seen]
            self.metrics = RunFolder(self.root.location(f"runs/{self.name}")).read_metrics()
        else:
            self.found = overviews(self.root)

    def look_again(self) -> bool:
        """Read what is to be seen now; returns False where a service is away for a while, and nothing new was seen."""
        from mcrnn.storage.retry import ServiceUnavailableError

        try:
            self.look()
        except ServiceUnavailableError:
            return False
        return True

    def summary(self) -> Any:
        """Return what tells whether something has changed."""
        return [(each.name, each.state, each.done, each.best, each.phase) for each in self.found]

    def content(self) -> Any:
        """Return what is to be seen as JSON."""
        from dataclasses import asdict

        if self.watched is not None:
            return self.found[0].as_json() | {"trials": [asdict(row) for row in self.watched.rows()]}
        if self.name is not None:
            return self.found[0].as_json() | {"epochs": self.metrics}
        return [each.as_json() for each in self.found]

    def table(self, console: Console) -> RenderableType:
        """Return what is to be seen as a table."""
        from mcrnn.search import overview_tables

        if self.watched is not None:
            return overview_tables.search_view(self.watched, console)
        if self.name is not None:
            return overview_tables.run_view(self.found[0], self.metrics, console)
        if not self.found:
            return f"there are no searches and no runs in '{self.root.name}'"
        return overview_tables.listing(self.found, console.width)


if __name__ == "__main__":
    main(status)
