"""Rank all models of one field store: those in the registry, and those that reports name.

python -m mcrnn.leaderboard data/ns.zarr
python -m mcrnn.leaderboard data/z500.zarr --warm-up 8 --horizon 40 --starts biweekly --out leaderboard
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.passwords import mask_passwords
from mcrnn.storage.root import Storage


def leaderboard(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Field store that the models were trained on.")],
    warm_up: Annotated[
        int | None, typer.Option(min=1, help="Number of given frames; by default as in the first model's validation.")
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(min=1, help="Number of closed-loop steps; by default as in the first model's validation."),
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Where windows of a series start, as for evaluate: all, 'every N', ..."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")] = None,
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

    from mcrnn.reports import leaderboard as board

    failures = board.make(store, root, board.Options(warm_up, horizon, starts, device, out))
    for failure in failures:
        print(f"error: {mask_passwords(failure)}", file=sys.stderr)
    if failures:
        sys.exit(2)


if __name__ == "__main__":
    main(leaderboard)
