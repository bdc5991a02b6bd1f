"""Write the page of a search: everything that is known of it, in one HTML file for any browser.

    python -m mcrnn.report demo                     # writes searches/demo/report.html
    python -m mcrnn.report demo --out demo.html     # writes a file of the current folder, and nothing below the root

A search writes the same page itself while it runs and when it ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.errors import UserError
from mcrnn.storage.root import Storage


def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Search, such as demo.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the page goes; by default report.html in the folder of the search."),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Write the page of a search, whether it runs, was interrupted or has ended, and whoever runs it.

    The page has the best of every architecture, the learning curves of all trials, why trials were stopped, the
    importance of the fields, parallel coordinates, error against cost, failures, confirmation and test result, and how
    to continue the search and use its model. It is one file that needs no network.
    """
    root = Storage.open(storage, read_only=True)

    from mcrnn.search.overview import SEARCH, find

    kind, name = find(root, name)
    if kind != SEARCH:
        raise UserError(f"'{name}' is a run and no search; python -m mcrnn.status {name} shows its epochs")

    from mcrnn.reports.search_page import render
    from mcrnn.search.page_content import PageReader
    from mcrnn.tracking.run_folder import PAGE_FILE

    reader = PageReader(root, name)
    page = render(reader.read())
    if out is None:
        folder = reader.watched.folder.location
        folder.write(PAGE_FILE, page.encode())
        print(f"{root.show(folder)}/{PAGE_FILE}")
        return
    try:
        out.write_text(page)
    except OSError as error:
        raise UserError(f"cannot write '{out}': {error.strerror}") from None
    print(out)


if __name__ == "__main__":
    main(report)
