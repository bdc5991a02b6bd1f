"""SIGTERM (sent before a preemption) and the first Ctrl-C ask a command to save and stop; the next one kills it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_stop(request: Callable[[], None]) -> Iterator[None]:
    """Handle SIGTERM and SIGINT within the context, and restore the handlers of before at its end.

    Outside the main thread, where Python allows no handlers, this does nothing.

    Args:
        request: called on the first signal; from the second on, KeyboardInterrupt is raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    asked = False

    def handle(_: int, __: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        request()

    before = [signal.signal(each, handle) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
