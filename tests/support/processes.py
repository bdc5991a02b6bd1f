"""Commands that run while a test does something to them."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.commands import ForkedProcess

Start = Callable[..., ForkedProcess]
"""starts `python -m MODULE ARGUMENTS...` without waiting for its end"""

WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""With these variables an MLflow server starts no processes for jobs: eight that each import MLflow, and have no work
here."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port for a server that starts later, or again: one that no process is given in between, since systems give
    those from 32768 on to whoever asks for any, and Ray gives its workers 10002 to 19999."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind((host, port))
            except OSError:
                continue
            return port


def wait_for(
    condition: Callable[[], Any], process: ForkedProcess | subprocess.Popen[Any] | None = None, seconds: float = 120
) -> None:
    """Until a condition holds, while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """Keep a process from writing into any file inside the block, as where its disks are full.

    It needs no privileges. The error is that of a file that is too large (EFBIG) in place of that of a full disk
    (ENOSPC), which nothing here tells apart.

    Args:
        pid: id of the process. Processes that it has started before are not concerned.
    """
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
