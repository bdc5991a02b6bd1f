"""The outbox pattern: a thread sends what a service is to receive, and repeats it while the service is away.

The work that puts something into the outbox never waits for the service, and nothing is lost when it is away. What the
service refuses is left out, with a warning, so that it does not keep back what comes after it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable

from mcrnn.errors import UserError
from mcrnn.storage.retry import PATIENCE, Outage, RefusedError, ServiceUnavailableError, with_retries

LONG_WAIT = 60.0
"""Seconds of patience from which on a user is told that the end of a command waits."""


class Outbox:
    """Sends in the order given; of two entries put under one key, only the later is sent.

    Args:
        service: Name of the service, for messages.
        warn: Called with a line when the service goes away, when it is back, when it refuses something, and when a
            command waits for it; by default the line is printed to stderr.
    """

    def __init__(self, service: str, warn: Callable[[str], None] | None = None) -> None:
        self.service = service
        self._outage = Outage(
            service,
            meanwhile="work goes on, and what it misses is sent later",
            afterwards="what it missed is sent",
            warn=warn,
        )
        self._pending: dict[str, Callable[[], object]] = {}
        """What is still to be sent, by key, in order; an entry stays in it until it has been sent."""
        self._refused: set[str] = set()
        """Keys of the entries of which something was refused."""
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._bug: BaseException | None = None
        """The unexpected error after which the thread has stopped sending."""
        self._thread = threading.Thread(target=self._work, daemon=True, name=service)
        self._thread.start()

    def put(self, key: str, send: Callable[[], object]) -> None:
        """Send something soon.

        Args:
            key: Name of the entry. An entry of the same name that has not been sent yet is replaced.
            send: Sends it; raises ServiceUnavailableError if it is to be tried again, and RefusedError, which says what
                is refused and why, if there is no use in that.
        """
        with self._changed:
            self._pending.pop(key, None)
            self._pending[key] = send
            self._changed.notify_all()

    def _work(self) -> None:
        """Send the entries one after another until the outbox is closed."""
        try:
            while self._wait_for_entry():
                key, send = with_retries(self._send_first, self._outage, math.inf, stop=self._closed)
                with self._changed:
                    if self._pending[key] is send:  # else it was replaced meanwhile, and is still to be sent
                        del self._pending[key]
                    self._changed.notify_all()
        except ServiceUnavailableError:
            pass  # the outbox was closed during an outage
        except BaseException as error:
            with self._changed:
                self._bug = error
                self._changed.notify_all()

    def _wait_for_entry(self) -> bool:
        """Wait until there is something to send; False if the outbox was closed and there is nothing left."""
        with self._changed:
            while not self._pending and not self._closed.is_set():
                self._changed.wait()
            return bool(self._pending)

    def _send_first(self) -> tuple[str, Callable[[], object]]:
        """Send the first entry and return it; the next try after an outage sends the one that is first by then."""
        with self._changed:
            key, send = next(iter(self._pending.items()))
        try:
            send()
        except RefusedError as error:
            if key not in self._refused:
                self.warn(f"{self.service} refuses {error}; it is left out")
            self._refused.add(key)
        return key, send

    def warn(self, line: str) -> None:
        """Give a line to whoever takes the warnings."""
        self._outage.warn(line)

    def wait(self, patience: float = PATIENCE) -> None:
        """Wait until everything is sent.

        Args:
            patience: Seconds to wait for a service that is away or slow.

        Raises:
            UserError: The patience ended first.
            BaseException: The unexpected error that sending an entry has raised.
        """
        deadline = time.monotonic() + patience
        is_told = False
        with self._changed:
            while self._pending and self._bug is None:
                if self._outage.reason and not is_told and patience >= LONG_WAIT:
                    self.warn(f"waiting for {self.service}, at most {patience / 60:.0f} min; Ctrl-C loses nothing")
                    is_told = True
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self.service} does not answer ({self._outage.reason or 'it is slow'}). Nothing is lost: "
                        "when it is back, the same command sends what it has missed"
                    )
                self._changed.wait(0.2)
        if self._bug is not None:
            raise self._bug

    def close(self, patience: float = 5.0) -> None:
        """Send what can still be sent, and end the thread.

        What cannot be sent in time is not lost: it is sent when the command is given again.

        Args:
            patience: Seconds to wait for a service that is away or slow.
        """
        with contextlib.suppress(UserError):  # an unexpected error is raised
            self.wait(patience)
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout=1)
