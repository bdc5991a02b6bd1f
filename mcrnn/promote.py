"""Decide which version of a model is the one in use.

    python -m mcrnn.promote mcrnn-ns                  # if the newest candidate is better beyond doubt
    python -m mcrnn.promote mcrnn-ns --version 7 --alias champion --reason "asked for by the users"
    python -m mcrnn.promote mcrnn-z --region 75/-15/30/42.5 --channel z500 --lead-times 2-12
    python -m mcrnn.promote mcrnn-ns --rollback
    python -m mcrnn.promote mcrnn-ns --history

Exit code 0: the alias points where it was asked to; 1: the candidate is not better; 2: it could not be compared; 3:
there is not enough evidence to tell.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from mcrnn.cli import StorageOption, WorkersOption, main
from mcrnn.errors import UserError
from mcrnn.storage.root import Storage

ANSWERS = {
    "better": "version {} is the champion",
    "not better": "version {} is not better; the champion stays",
    "not enough evidence": "not enough evidence that version {} is better; the champion stays",
}
EXIT_CODES = {"better": 0, "not better": 1, "not enough evidence": 3}


def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a registered model, such as mcrnn-ns.")],
    version: Annotated[
        int | None, typer.Option(metavar="N", help="Compare this version instead of the newest candidate.")
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Point this alias to --version without a comparison; needs --reason."),
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Reason, which is recorded.")] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Make the previous champion the champion again.")
    ] = False,
    margin: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share by which the candidate's error must be smaller, beyond the spread."),
    ] = 0.0,
    starts: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Where windows of a series start, as for evaluate: all, 'every N', ..."),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(metavar="N/W/S/E", help="Compare errors in this region only, in degrees: 75/-15/30/42.5."),
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare errors of this channel only. Repeatable; by default all channels."),
    ] = None,
    lead_times: Annotated[
        str | None,
        typer.Option(
            metavar="A-B", help="Compare errors at lead times A to B; by default those in closed loop, from 2."
        ),
    ] = None,
    workers: WorkersOption = 1,
    history: Annotated[bool, typer.Option("--history", help="Print all promotions and rollbacks.")] = False,
    storage: StorageOption = None,
) -> None:
    """Compare the newest candidate of NAME with its champion on the test split, and make it the champion if it wins.

    Both are evaluated on the same windows of the same store. The candidate wins if its closed-loop error is smaller
    beyond doubt, where the doubt takes into account that windows overlap, and how many candidates were tried on this
    test split before; the former champion then gets the alias `previous`. Exit code 1 if it is not better, 3 if there
    is not enough evidence; then it is said about how many more windows it would take. Region, channels and lead times
    are recorded with the move.
    """
    if alias is not None and (version is None or not reason):
        raise UserError("--alias needs --version, and --reason for the record")
    if rollback and (version is not None or alias is not None):
        raise UserError("--rollback goes to the previous champion; leave --version and --alias out")
    root = Storage.open(storage)

    from mcrnn.evaluation import promotion
    from mcrnn.evaluation.basis import WHOLE, Basis
    from mcrnn.runners.evaluation_workers import part_scorer
    from mcrnn.tracking import registry

    basis = Basis.parse(region, channel or (), lead_times)
    if basis != WHOLE and (rollback or alias is not None or history):
        raise UserError("--region, --channel and --lead-times are for a comparison; leave them out")

    client = promotion.open_registry(root, name)
    if history:
        _print_history(registry.champion_history(client, name))
    elif rollback:
        now, before = promotion.roll_back(client, name, reason or "rolled back")
        print(f"{name}: version {now} is the champion again, version {before} the previous one")
    elif alias is not None and version is not None:
        promotion.candidate_of(client, name, version)
        promotion.move_by_hand(client, name, version, alias, reason or "")
        print(f"{name}: version {version} is the {alias}")
    else:
        candidate = promotion.candidate_of(client, name, version)
        if candidate is None:
            print(f"{name}: the newest version, {registry.champion(client, name)}, is the champion already")
            return
        with part_scorer(workers, None, root.location("reports")) as score_parts:
            outcome, (figures, *advice) = promotion.promote(
                root, client, name, candidate, starts=starts, basis=basis, margin=margin, score_parts=score_parts
            )
        print(f"{name}: {figures}")
        print(ANSWERS[outcome].format(candidate), *advice, sep=": ")
        sys.exit(EXIT_CODES[outcome])


def _print_history(moves: list[dict[str, Any]]) -> None:
    from rich.console import Console

    from mcrnn.console import new_table

    table = new_table(["when", "from", "to", "who", "why", "candidate", "champion", "tried"], title="", names=0)
    for move in moves:
        errors = [f"{move[key]:.4f}" if key in move else "" for key in ("rmse_candidate", "rmse_champion")]
        before = "" if move["from"] is None else str(move["from"])
        tried = str(move.get("tried", ""))
        table.add_row(move["when"], before, str(move["to"]), move["who"], move["why"], *errors, tried)
    Console().print(table)


if __name__ == "__main__":
    main(promote)
