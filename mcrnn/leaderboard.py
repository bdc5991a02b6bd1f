"""Rank all models of one field store: those in the registry, and those that reports name.

python -m mcrnn.leaderboard data/ns.zarr
python -m mcrnn.leaderboard data/z500.zarr --warm-up 8 --horizon 40 --starts biweekly --out leaderboard
"""

from __future__ import annotations

from typing import Annotated

import typer

from mcrnn.cli import DeviceOption, HorizonOption, StorageOption, WarmUpOption, WorkersOption, main, report_failures
from mcrnn.storage.root import Storage


def leaderboard(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Field store that the models were trained on.")],
    warm_up: WarmUpOption = None,
    horizon: HorizonOption = None,
    starts: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Where windows of a series start, as for evaluate: all, 'every N', ..."),
    ] = None,
    device: DeviceOption = None,
    workers: WorkersOption = 1,
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Also write leaderboard.md, leaderboard.tex and leaderboard.json there."),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Evaluate all models with the digest of STORE on the same windows of its test split, and rank them.

    Models in one rank group cannot be told apart on these windows. Scores are kept, so that only new models take time.
    Models that cannot be loaded are named at the end (exit code 2); the others are ranked.
    """
    root = Storage.open(storage)

    from mcrnn.evaluation.side_by_side import Windows
    from mcrnn.reports import leaderboard as board

    windows = Windows(store, warm_up, horizon, starts, device=device)
    report_failures(board.make(store, root, windows, out, workers))


if __name__ == "__main__":
    main(leaderboard)
