"""Commands that run while a test does something to them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

Start = Callable[..., "subprocess.Popen[str]"]
"""starts `python -m MODULE ARGUMENTS...` without waiting for its end"""


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    """Until a condition holds, while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
