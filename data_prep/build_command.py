"""What the commands that build a store have in common once they know what to build: show progress and report."""

from __future__ import annotations

import os

from data_prep.builder import Source, build
from data_prep.plan import StorePlan
from mcrnn.console import Bar
from mcrnn.storage.location import Location
from mcrnn.storage.root import Storage


def build_and_report(
    root: Storage,
    location: Location,
    plan: StorePlan,
    source: Source,
    *,
    workers: int | None,
    overwrite: bool,
    unit: str,
    content: str,
) -> None:
    """Build a store with a progress bar, and print a line that says what it holds.

    Args:
        root: the storage root, relative to which the store is named.
        location: folder of the store.
        plan: what the store is to hold.
        source: what computes or reads its values.
        workers: number of processes, by default one for each core.
        overwrite: replace a store of that name.
        unit: what the progress bar counts: "samples" or "frames".
        content: the content of the store in words, for the line at the end.

    Raises:
        UserError: see `data_prep.builder.build`.
    """
    with Bar(unit, sum(plan.length(split) for split in plan.splits), unit) as bar:
        was_built = build(
            location,
            plan,
            source,
            workers=workers or os.cpu_count() or 1,
            overwrite=overwrite,
            on_done=lambda count, now: bar.advance(count) if now else bar.skip(count),
        )
    print(f"{root.show(location)}: {content}" + ("" if was_built else " (complete already, nothing to do)"))
