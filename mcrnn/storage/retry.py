"""Waiting for a service that is away."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mcrnn.storage.s3_errors import ServiceUnavailableError, translate_errors

Result = TypeVar("Result")

PATIENCE = 900.0
"""seconds that work under way waits for a service that is away"""
SECONDS_BETWEEN_TRIES = 2.0


_patience = 0.0
_away = threading.Event()
"""while the service does not answer a process that waits for it"""


def be_patient() -> None:
    """Have this process wait for a service that is away: one of the workers of a command, which has found it there."""
    global _patience
    _patience = PATIENCE


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """The same for a while: when a command's work is under way, a service that goes away is waited for."""
    global _patience
    before, _patience = _patience, PATIENCE
    try:
        yield
    finally:
        _patience = before


def answered(url: str, ask: Callable[[], Result]) -> Result:
    """What the service answers; it is waited for where the process is patient.

    Args:
        url: of the place, for messages.
        ask: the request.

    Raises:
        UserError: it does not do as asked; says why.
        FileNotFoundError: there is no such key.
    """
    deadline = time.monotonic() + _patience
    while True:
        try:
            with translate_errors(url):
                answer = ask()
        except ServiceUnavailableError as error:
            if time.monotonic() > deadline:
                raise
            if not _away.is_set():
                _away.set()
                print(f"warning: {error} (asked again for {_patience / 60:.0f} min)", file=sys.stderr)
            time.sleep(SECONDS_BETWEEN_TRIES)
        else:
            if _away.is_set():
                _away.clear()
                print(f"warning: '{url}' answers again; work goes on", file=sys.stderr)
            return answer
