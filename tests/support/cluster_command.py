"""A command on a machine of a cluster, which a test may kill and give again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.ray_cluster import TwoNodes


class ClusterCommand:
    """`python -m ARGUMENTS...` on the head, outside of any job. It is given again by another `start`.

    Args:
        cluster: the cluster that it uses.
        folder: its current folder.
        arguments: what follows `python -m`.
    """

    def __init__(self, cluster: TwoNodes, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments
        self.environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
        self.lines: list[str] = []
        """What all starts have printed so far, on stdout and stderr."""
        self._process: ForkedProcess | None = None
        self._readers: list[threading.Thread] = []

    def start(self) -> None:
        """Give the command; the one before it must have ended."""
        words = ["-m", *self.arguments]
        self._process = ForkedProcess(shared.command_server(), words, self.folder, self.environment)
        streams = self._process.stdout, self._process.stderr
        self._readers = [threading.Thread(target=self._read, args=(each,), daemon=True) for each in streams]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append(line)

    @property
    def output(self) -> str:
        """What all starts have printed so far."""
        return "".join(self.lines)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it at once, as the system does where memory is short; nothing if it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self.wait(30)

    def wait(self, seconds: float) -> int | None:
        """Wait for its end, and return its exit code; None if it was never started."""
        if self._process is None:
            return None
        code = self._process.wait(seconds)
        for reader in self._readers:
            reader.join(10)
        return code

    def wait_until(self, condition: Callable[[], Any], seconds: float, what: str) -> None:
        """Wait until a condition holds, while the command runs.

        Args:
            condition: is asked twice a second.
            seconds: time after which the test fails.
            what: the condition in words.
        """
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, f"the command has ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}:\n{self.output}"
            time.sleep(0.5)
