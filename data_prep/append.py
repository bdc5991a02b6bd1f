"""Append later times to a series, or samples: what is there is not written anew, and keeps its splits and statistics.

python -m data_prep.append 'geopotential_500_5.625deg/*2019*.nc' data/z500.zarr
python -m data_prep.append 'runs/later-*.h5' data/runs.zarr --split train
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.storage.location import check
from mcrnn.storage.root import Storage


def append(
    files: Annotated[
        list[str],
        typer.Argument(metavar="SOURCES...", help="Files, Zarr stores, URLs or patterns with what is appended."),
    ],
    store: Annotated[str, typer.Argument(metavar="STORE", help="Name of the store: data/z500.zarr, or a URL.")],
    split: Annotated[
        str | None,
        typer.Option(help="Split that they become part of: of a series by default the one whose times are the latest."),
    ] = None,
    gaps: Annotated[
        bool,
        typer.Option("--gaps", help="Times may be missing: between the store and the sources, and within the sources."),
    ] = False,
    new_statistics: Annotated[
        bool,
        typer.Option("--new-statistics", help="Add them to the statistics, which they leave as they are otherwise."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; by default one for each core.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Append later times to the store of a series, or samples to a store of samples, as the store was made.

    Variables, area, grid and inputs are those of the store. Its digest changes. Searches, runs and models of an earlier
    digest go on with what they had. The same command again continues an interrupted one.
    """
    root = Storage.open(storage)
    location = root.location(store)
    check(location)

    from data_prep import appending
    from data_prep.append_plan import plan_append
    from data_prep.common_units import describe_conversions
    from data_prep.shard_records import LEASE
    from data_prep.sources import find_sources
    from mcrnn.console import Bar
    from mcrnn.data.root_document import read_root
    from mcrnn.data.store import FieldStore
    from mcrnn.storage.lease import Lease

    read_root(location)  # refuses what is no store before a lease is written there
    urls = find_sources(files)
    with Lease(location, LEASE, "build") as lease:
        plan = plan_append(appending.open_store(location), urls, split, gaps=gaps)
        if plan is None:
            appending.clear(location)
            print(f"{root.show(location)}: the same sources are appended already, nothing to do")
            return
        if conversions := describe_conversions(plan.source.field):
            print(conversions)
        unit = "frames" if plan.store.is_series else "samples"
        with Bar(unit, len(plan.added), unit) as bar:
            count = workers or os.cpu_count() or 1
            appending.append(plan, lease, new_statistics=new_statistics, workers=count, on_done=bar.advance)
    longer = FieldStore.open(location)
    segments = len(longer.segments(plan.split))
    print(
        f"{root.show(location)}: {len(plan.added)} {unit} appended to {plan.split}, which has "
        f"{longer.lengths[plan.split]} now{f' in {segments} segments between gaps' if segments > 1 else ''}; "
        f"digest {longer.digest[:12]}, before {plan.store.digest[:12]}"
    )


if __name__ == "__main__":
    main(append)
