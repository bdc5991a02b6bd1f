"""Writes the page of a search into its folder while the search runs, and at its end into MLflow as well.

A thread of its own writes it, so rarely that it takes less than a hundredth of the time. No error of it ever reaches
the search: what goes wrong is one warning, unless a service is away for a while, of which the search itself warns.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mcrnn.errors import first_line
from mcrnn.reports.search_page import render
from mcrnn.search.page_content import PageReader
from mcrnn.storage.retry import ServiceUnavailableError, print_warning
from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import Run, tracking_uri
from mcrnn.tracking.run_folder import PAGE_FILE

SECONDS_BETWEEN_PAGES = 60.0
"""Least time between two pages."""
SHARE = 0.01
"""Largest share of the time that pages take."""
SECONDS_TO_READ = 20.0
"""Time that reading learning curves may take for one page. Those of a search on object storage that is taken up again
are then read page by page."""
SECONDS_TO_END = 30.0
"""Time that a page which is being written gets at the end of the search."""


class PageWriter:
    """Writes the page of a search now and then, and when the search ends, as a context manager.

    Args:
        storage: the storage root.
        name: name of the search's folder.
        is_owner: whether the folder is still this process's; nothing is written where another has it.
        database: URL of the database of the study with its password; None where the study is a journal.
    """

    def __init__(self, storage: Storage, name: str, is_owner: Callable[[], bool], database: str | None = None) -> None:
        self.storage, self.name, self.is_owner, self.database = storage, name, is_owner, database
        self._reader: PageReader | None = None
        self._has_warned = False
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="page")

    def __enter__(self) -> PageWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._writing.acquire(timeout=SECONDS_TO_END):
            try:
                self._write(at_end=True)
            finally:
                self._writing.release()

    def _keep(self) -> None:
        """Write pages until the end."""
        pause = SECONDS_BETWEEN_PAGES
        while not self._ended.wait(pause):
            started = time.monotonic()
            with self._writing:
                self._write(at_end=False)
            pause = max(SECONDS_BETWEEN_PAGES, (time.monotonic() - started) / SHARE)

    def _write(self, *, at_end: bool) -> None:
        """Write the page, if that is possible."""
        if not self.is_owner():
            return
        try:
            if self._reader is None:
                self._reader = PageReader(self.storage, self.name, self.database)
            page = render(self._reader.read(SECONDS_TO_READ)).encode()
            folder = self._reader.watched.folder
            if not self.is_owner():  # reading took its time
                return
            folder.location.write(PAGE_FILE, page)
            run_id = folder.read_sync_state().get("run_id")
            if at_end and run_id is not None:
                with tempfile.TemporaryDirectory(prefix="mcrnn-page-") as temporary:
                    file = Path(temporary) / PAGE_FILE
                    file.write_bytes(page)
                    Run(tracking_uri(self.storage), run_id, patience=0).log_files([file])
        except Exception as error:
            # the search itself says that a service is away, and the next page comes soon
            is_passing = isinstance(error, ServiceUnavailableError) and not at_end
            if not is_passing and not self._has_warned:
                self._has_warned = True
                print_warning(
                    f"the page of the search could not be written: {first_line(error)}; "
                    f"python -m mcrnn.report {self.name} writes it"
                )
