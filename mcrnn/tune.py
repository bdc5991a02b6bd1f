"""Search the hyperparameters of a forecaster.

    python -m mcrnn.tune search_spaces/demo.yaml

Trials run on Ray Tune, Optuna proposes them, MLflow records them; the best model is registered.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mcrnn.cli import SetOption, StorageOption, main
from mcrnn.config.loading import load_search
from mcrnn.storage.root import Storage


def tune(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Search space, such as search_spaces/demo.yaml.")],
    settings: SetOption = None,
    show: Annotated[
        bool, typer.Option("--preview", help="Print what would be run and what it would cost, and start nothing.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Start a new search beside one of the same name.")] = False,
    storage: StorageOption = None,
) -> None:
    """Search the hyperparameters that FILE leaves open and register the best model.

    The same command again continues an unfinished search, whatever ended it, and prints the summary of a finished one.
    With a larger budget (--set search.trials=200) a finished search goes on. Ctrl-C stops the search after saving it,
    Ctrl-C twice at once. Its first line says which file was read, with its digest and the version of the code.
    `python -m mcrnn.status` shows the search from anywhere, and `python -m mcrnn.stop` stops it.
    """
    search = load_search(file, settings or ())
    root = Storage.open(storage)

    if show:
        from mcrnn.reports.search_tables import preview
        from mcrnn.search.search_run import check

        preview(search, check(search, root))
        return

    from mcrnn.tracking.provenance import source_line

    source = source_line(file)
    print(source, flush=True)

    from mcrnn.reports.search_tables import print_summary
    from mcrnn.runners.ray_cluster import check_reach
    from mcrnn.search.driver import run
    from mcrnn.search.search_run import open_search

    check_reach(root.location("searches"))
    with open_search(search, root, new=new) as search_run:
        if not search_run.finished:
            run(search_run, {"source": source})
        summary = search_run.folder.read_summary()
    assert summary is not None
    print_summary(summary, search, root)


if __name__ == "__main__":
    main(tune)
