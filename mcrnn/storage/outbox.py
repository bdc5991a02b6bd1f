"""What is to be sent to a service that may be away for a while: in a thread, again until it works, nothing lost."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable

from mcrnn.errors import UserError

PATIENCE = 600.0
"""seconds that the end of a command waits for a service that is away"""
SECONDS_BETWEEN_TRIES = 2.0


class NotSent(Exception):  # noqa: N818  it is a condition that passes
    """The service could not be reached; says why."""


class Outbox:
    """Sends in the order given; of two things to be sent under one key only the later is.

    Args:
        service: its name, for messages.
        warn: takes a line when the service is away, and one when it is back.
    """

    def __init__(self, service: str, warn: Callable[[str], None] | None = None) -> None:
        self.service = service
        self._warn = warn or (lambda line: print(f"warning: {line}", file=sys.stderr))
        self._pending: dict[str, Callable[[], object]] = {}
        self._changed = threading.Condition()
        self._busy = self._closed = False
        self._trouble: str | None = None
        """why the last try failed"""
        self._bug: BaseException | None = None
        """what nothing can be sent after"""
        self._thread = threading.Thread(target=self._work, daemon=True, name=service)
        self._thread.start()

    def put(self, key: str, send: Callable[[], object]) -> None:
        """Send something, soon.

        Args:
            key: of what it replaces, where that is not sent yet.
            send: sends it; raises NotSent where it is to be tried again.
        """
        with self._changed:
            self._pending.pop(key, None)
            self._pending[key] = send
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                if not self._pending:
                    return
                key = next(iter(self._pending))
                send = self._pending.pop(key)
                self._busy = True
            try:
                send()
                failure = None
            except NotSent as error:
                failure = str(error)
            except BaseException as error:
                with self._changed:
                    self._bug, self._busy = error, False
                    self._changed.notify_all()
                return
            with self._changed:
                self._busy = False
                if failure is not None:
                    self._pending = {key: self._pending.pop(key, send)} | self._pending
                was, self._trouble = self._trouble, failure
                self._changed.notify_all()
                if failure and self._closed:
                    return
            if failure and not was:
                self._warn(
                    f"{self.service} does not answer ({failure}); work goes on, and what it misses is sent later"
                )
            if was and not failure:
                self._warn(f"{self.service} answers again; what it missed is sent")
            if failure:
                time.sleep(SECONDS_BETWEEN_TRIES)

    def wait(self, patience: float = PATIENCE) -> None:
        """Until all is sent.

        Args:
            patience: seconds to wait for a service that is away.

        Raises:
            UserError: it stays away.
        """
        if self._bug is not None:
            raise self._bug
        deadline = time.monotonic() + patience
        told = False
        with self._changed:
            while self._pending or self._busy:
                if self._trouble and not told and patience >= 60:
                    self._warn(f"waiting for {self.service}, at most {patience / 60:.0f} min; Ctrl-C loses nothing")
                    told = True
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self.service} does not answer ({self._trouble or 'it is slow'}). Nothing is lost: when it "
                        "is back, the same command sends what it has missed"
                    )
                self._changed.wait(0.2)
                if self._bug is not None:
                    raise self._bug

    def close(self, patience: float = 5.0) -> None:
        """Send what can still be sent, and end; the rest is sent when the command is given again."""
        with contextlib.suppress(UserError):  # and a bug is raised
            self.wait(patience)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=1)
