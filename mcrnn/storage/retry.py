"""Wait for a service that is away: one deadline, one warning when it goes away and one when it is back.

Four kinds of requests wait in this way: those to object storage (`mcrnn.storage.s3.s3_request`), those to the database
of a study (`mcrnn.search.database`), those to MLflow (`mcrnn.tracking.mlflow_client.mlflow_request`) and whatever an
`Outbox` sends in the background. Object storage and the database are waited for only in a process that has enabled it,
which a command does when its work is under way: a mistyped endpoint must be named at once, and an outage must not end a
training that has run for hours.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mcrnn.errors import IsolatedError, UserError
from mcrnn.passwords import mask_passwords

Result = TypeVar("Result")

PATIENCE = 600.0
"""Seconds that the end of a command waits for a service that is away."""
PATIENCE_UNDER_WAY = 900.0
"""Seconds that a training or a search under way waits for object storage and the database of its study."""
SECONDS_BETWEEN_TRIES = 2.0

LOGGER = logging.getLogger("mcrnn")
"""Takes all warnings, for the log of a search. Nothing else is printed by it."""
LOGGER.addHandler(logging.NullHandler())
LOGGER.setLevel(logging.WARNING)  # whatever a library sets for all loggers
LOGGER.propagate = False

_patience = 0.0


class ServiceUnavailableError(IsolatedError):
    """A service does not answer or is overloaded: the same request may succeed later."""


class RefusedError(UserError):
    """A service refuses what is sent to it, and would refuse it again."""


def print_warning(line: str) -> None:
    """Print a warning to stderr, without passwords; the log of a search gets it with the traceback of its cause."""
    print(f"warning: {mask_passwords(line)}", file=sys.stderr)
    LOGGER.warning("%s", line, exc_info=sys.exc_info()[0] is not None)


class Outage:
    """Knows whether a service is away, and warns once when it goes away and once when it is back.

    Threads that use the same service may share one, so that an outage is not reported by each of them.

    Args:
        service: Name of the service, for both warnings.
        meanwhile: What happens while the service is away; ends the first warning.
        afterwards: What happens when the service is back; ends the second warning.
        warn: Called with each warning; by default it is printed to stderr.
    """

    def __init__(
        self, service: str, *, meanwhile: str, afterwards: str, warn: Callable[[str], None] | None = None
    ) -> None:
        self.service, self.meanwhile, self.afterwards = service, meanwhile, afterwards
        self.reason: str | None = None
        """Why the last request failed; None while the service answers."""
        self.warn = warn or print_warning
        self._mutex = threading.Lock()

    def record_failure(self, reason: str) -> None:
        """Note that a request found the service away, and warn if it is the first to do so."""
        if self._change(reason) is None:
            self.warn(f"{self.service} does not answer ({reason}); {self.meanwhile}")

    def record_success(self) -> None:
        """Note that the service has answered, and warn if it was away before."""
        if self._change(None) is not None:
            self.warn(f"{self.service} answers again; {self.afterwards}")

    def _change(self, reason: str | None) -> str | None:
        with self._mutex:
            before, self.reason = self.reason, reason
        return before


def with_retries(
    request: Callable[[], Result],
    outage: Outage,
    patience: float | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Make a request, and repeat it while the service is away.

    Args:
        request: Makes the request; raises ServiceUnavailableError if repeating it may help. Other errors pass through.
        outage: The state of the service; it warns when that changes.
        patience: Seconds after which an unanswered request counts as failed; by default `PATIENCE_UNDER_WAY` in a
            process that has enabled retries, and 0 in any other.
        stop: Once it is set, the next failure counts as the end of the patience.

    Returns:
        The result of the request.

    Raises:
        ServiceUnavailableError: The service was still away when the patience ended.
    """
    deadline = time.monotonic() + (_patience if patience is None else patience)
    stop = stop or threading.Event()
    while True:
        try:
            result = request()
        except ServiceUnavailableError as error:
            if time.monotonic() >= deadline or stop.is_set():
                raise
            outage.record_failure(str(error))
            stop.wait(SECONDS_BETWEEN_TRIES)
        else:
            outage.record_success()
            return result


def enable_retries() -> None:
    """Have this process wait for object storage and the database of a study from now on.

    Meant for the worker processes of a command, which start after the command has found the storage reachable.
    """
    global _patience
    _patience = PATIENCE_UNDER_WAY


@contextlib.contextmanager
def retries_enabled() -> Iterator[None]:
    """Have this process wait for object storage and the database of a study inside the block, in which the work of a
    command is under way."""
    global _patience
    before, _patience = _patience, PATIENCE_UNDER_WAY
    try:
        yield
    finally:
        _patience = before
