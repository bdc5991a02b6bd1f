"""The log of a search's driver: what went wrong, with tracebacks, in the folder of the search.

All warnings that a command prints go to Python's logger `mcrnn` as well. While a search runs, `DriverLog` is a handler
of it, and writes them to `driver.log`, locally or on object storage. What ends the search is the last entry.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from types import TracebackType

from mcrnn.errors import LoggedError, UserError
from mcrnn.passwords import mask_passwords
from mcrnn.storage.location import Location
from mcrnn.storage.retry import LOGGER
from mcrnn.tracking.provenance import code_version
from mcrnn.tracking.run_folder import DRIVER_LOG

LARGEST = 512 * 1024
"""Characters that are kept; older entries are left out."""
SECONDS_TO_WRITE = 10.0
"""Time that a write waits for another one of the same file."""


class DriverLog(logging.Handler):
    """Writes what goes wrong while a search runs into its folder, as a context manager.

    An error that leaves the context is written with its traceback. One that is no `UserError` becomes a `LoggedError`,
    whose message is one line that names the file.

    Args:
        location: folder of the search.
        shown_folder: the same as a user would type it.
        is_owner: returns whether the folder is still this process's; nothing is written where another has it.
    """

    def __init__(self, location: Location, shown_folder: str, is_owner: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s mcrnn {code_version()}: %(message)s"))
        self.location, self.file, self.is_owner = location, f"{shown_folder}/{DRIVER_LOG}", is_owner
        self.put: Callable[[str, Callable[[], object]], None] | None = None
        """Takes what is to be written in the background, as `Outbox.put` does; None to write at the end only."""
        self._new = ""
        """The entries of this process."""
        self._earlier: str | None = None
        """What earlier starts of the search have written; None until it has been read."""
        self._writing = threading.Lock()
        """Held while the file is written, so that older content does not replace newer."""

    def __enter__(self) -> DriverLog:
        LOGGER.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.put = None
        if isinstance(error, Exception):
            LOGGER.error("the search has ended: %s", error, exc_info=error)
        LOGGER.removeHandler(self)
        self._try_to_write()  # where the folder cannot be written to, the error itself says it
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = next(iter(str(error).strip().splitlines()), "no message")
            raise LoggedError(
                f"{type(error).__name__}: {reason} (see {self.file}); the same command continues"
            ) from error

    def emit(self, record: logging.LogRecord) -> None:
        """Add an entry. The file is neither read nor written here, because all threads that warn wait for this."""
        self._new = (self._new + mask_passwords(self.format(record)) + "\n")[-LARGEST:]
        if self.put is not None:
            self.put(DRIVER_LOG, self._try_to_write)

    def _try_to_write(self) -> None:
        """Write the file, if that is possible. Otherwise the next entry, or the end, writes it: no error gets out.

        What else an outbox has to send is not to be kept back by a log.
        """
        if not self._writing.acquire(timeout=SECONDS_TO_WRITE):
            return  # another thread waits for a service that is away
        try:
            with contextlib.suppress(Exception):
                self._write()
        finally:
            self._writing.release()

    def _write(self) -> None:
        """Write the entries behind those of earlier starts; as long as these cannot be read, they are not replaced."""
        if not self._new or not self.is_owner():
            return
        if self._earlier is None:
            self._earlier = self._read()
        self.location.write(DRIVER_LOG, (self._earlier + self._new)[-LARGEST:].encode())

    def _read(self) -> str:
        """Return what earlier starts of the search have written."""
        try:
            return self.location.read(DRIVER_LOG).decode(errors="replace")
        except FileNotFoundError:
            return ""
