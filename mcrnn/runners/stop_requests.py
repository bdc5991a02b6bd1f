"""Requests of `python -m mcrnn.stop` to a run or search, handed to whoever can fulfil them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from mcrnn.storage.presence import StopRequest

SAVES = "it saves and ends"
"""What a request to end does, as a user reads it."""
FINISHES = "its trials have ended, it registers the best model and finishes"
"""The same once a search has nothing more to train."""


class StopRequests:
    """Takes the requests to end, in the thread of a `Presence`, and hands them to whoever can fulfil them.

    Args:
        name: name of the run or search.
        print_line: takes a line for each request.
    """

    def __init__(self, name: str, print_line: Callable[[str], None]) -> None:
        self.name, self.print_line = name, print_line
        self.effect = SAVES
        """What a request does now, `SAVES` or `FINISHES`."""
        self._is_requested = False
        self._stop: Callable[[], None] | None = None
        self._mutex = threading.Lock()

    def hear(self, request: StopRequest) -> None:
        """Take a request. It is fulfilled first, because there may be no terminal any more that takes a line."""
        with self._mutex:
            self._is_requested = True
            if self._stop is not None:
                self._stop()
        self.say(f"{request.by} has asked for a stop by python -m mcrnn.stop; {self.effect}")

    @contextlib.contextmanager
    def handled_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """Fulfil requests inside the block, also one that has come before it.

        Args:
            stop: asks all that runs to save and stop, as the first Ctrl-C does.
        """
        with self._mutex:
            self._stop = stop
            if self._is_requested:
                stop()
        try:
            yield
        finally:
            with self._mutex:
                self._stop = None

    def say(self, text: str) -> None:
        """Print a line."""
        self.print_line(f"{self.name}: {text}")
