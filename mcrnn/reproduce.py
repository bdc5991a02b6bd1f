"""Train the configurations of the paper and print its tables: Horuz et al. (2025), arXiv 2508.03614.

    python -m mcrnn.reproduce                                    # all 75 trainings of the three tables
    python -m mcrnn.reproduce --preview                          # how long that takes on this machine
    python -m mcrnn.reproduce search_spaces/paper/ns_s15_tf5.yaml --set train.epochs=3 --seeds 2
    python -m mcrnn.reproduce search_spaces/paper/ns_s25_tf20.yaml --beside models:/mcrnn-ns@champion

Each training is a run below runs/, with a name of its own. The same command again continues what is unfinished and
skips what is done. The report below reports/ has the tables as Markdown, LaTeX and CSV.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import typer

from mcrnn.cli import SetOption, StorageOption, main, report_failures
from mcrnn.storage.root import Storage

LONGEST_NAME = 100
"""Most characters of a report's name."""


def reproduce(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Tables to reproduce; by default the three files of search_spaces/paper/."),
    ] = None,
    architectures: Annotated[
        list[str] | None,
        typer.Option("--architecture", metavar="NAME", help="Train this architecture only. Repeatable."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds of each architecture; by default all of the file.")
    ] = None,
    settings: SetOption = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Model that also stands in the table of its data, such as models:/mcrnn-ns@champion. Repeatable. By "
            "default the champions in the registry with no more parameters than the paper's networks.",
        ),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Say how long it will take on this machine, and train nothing.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Train the paper's configurations, and print mean and standard deviation over seeds of their test errors.

    Errors are the paper's: the root of the mean at each step, then the mean over the steps. First a short training of
    each architecture is timed, to say how long all will take. The same command again continues after anything: each
    training is a run with a name. Started several times at once, on one machine or on several with the same storage
    root, it shares the trainings. Persistence, climatology and the champions of your own searches stand beside the
    networks.
    """
    root = Storage.open(storage)

    from mcrnn.reproduction import driver
    from mcrnn.reproduction.plan import PAPER_FILES, check_names, read_setting

    tables = [
        read_setting(file, root, settings or (), architectures or (), seeds)
        for file in dict.fromkeys(files or PAPER_FILES)
    ]
    check_names(tables)
    part = [*(architectures or []), *([f"{seeds}-seeds"] if seeds else [])]
    report = _report_name(["reproduce", "+".join(table.name for table in tables), *part])
    report_failures(driver.reproduce(tables, report, root, beside=beside or (), preview=preview))


def _report_name(parts: Sequence[str]) -> str:
    """Join the parts. Where they are too long, they are cut, and a hash of the whole tells them from others."""
    name = "-".join(parts)
    if len(name) <= LONGEST_NAME:
        return name
    ending = "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return name[: LONGEST_NAME - len(ending)] + ending


if __name__ == "__main__":
    main(reproduce)
