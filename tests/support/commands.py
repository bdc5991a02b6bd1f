"""Commands of the project as processes that are forked from the server of `fork_server`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support.fork_server import launcher, send


class ForkedProcess:
    """A running command; it is used as a `subprocess.Popen` whose output is text."""

    def __init__(
        self,
        address: Path,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        with_output: bool = True,
        errors: Path | None = None,
    ) -> None:
        """Start it.

        Args:
            address: of the server's socket.
            command: the words after `python`.
            folder: its current folder.
            environment: its environment.
            with_output: whether what it writes is to be read; what nobody reads would stop it.
            errors: a file that what it writes to stderr is added to.
        """
        self.args = list(command)
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(address))
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        request = {
            "command": self.args,
            "folder": str(folder),
            "environment": dict(environment),
            "python": str(launcher(address)),
        }
        unread = os.open(os.devnull, os.O_WRONLY)
        outputs = [child_out, child_err] if with_output else [unread, unread]
        if errors is not None:
            os.dup2(file := os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), child_err)
            os.close(file)
        send(self._connection, request, [nothing, *outputs])
        for descriptor in (nothing, unread, child_out, child_err):
            os.close(descriptor)
        self.pid = self._answer()
        self.stdout: IO[str] = os.fdopen(out, encoding="utf-8", errors="replace")
        self.stderr: IO[str] = os.fdopen(err, encoding="utf-8", errors="replace")

    def _answer(self) -> int:
        content = b""
        while len(content) < 8:
            more = self._connection.recv(8 - len(content))
            assert more, "the server of forked processes has ended"
            content += more
        number = int.from_bytes(content, "little")
        return number - (1 << 32) if number >= 1 << 31 else number

    def poll(self) -> int | None:
        """Return the exit code, None while it runs; a signal that ended it is a negative number."""
        return self._poll(0)

    def _poll(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
            self.returncode = self._answer()
            self._connection.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        code = self._poll(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return all that it writes until it ends.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        read: dict[str, str] = {"out": "", "err": ""}

        def drain(name: str, stream: IO[str]) -> None:
            with contextlib.suppress(ValueError):  # It is closed where it was read before.
                read[name] = stream.read()

        threads = [
            threading.Thread(target=drain, args=each, daemon=True)
            for each in (("out", self.stdout), ("err", self.stderr))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.stdout.close()
        self.stderr.close()
        return read["out"], read["err"]

    def close(self) -> None:
        """Forget it: wait for its end and close what was read from it."""
        self.wait()
        self.stdout.close()
        self.stderr.close()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def said_by(code: str, folder: Path, *arguments: str, timeout: float = 120, **environment: str) -> str:
    """Return what a program says, without its last line break, in a process of its own that must end well.

    Args:
        code: the program.
        folder: its current folder.
        arguments: its arguments.
        timeout: seconds after which it is killed.
        environment: what it is told beside the environment of this process.
    """
    from tests.support.shared import command_server

    process = ForkedProcess(command_server(), ["-c", code, *arguments], folder, os.environ | environment)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out.removesuffix("\n")


def start_server(address: Path, owner: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start the server of forked processes.

    Args:
        address: of the socket that it is to listen at.
        owner: the process that it ends with.
        folder: the project's.
    """
    log = (address.parent / "fork_server.log").open("ab")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fork_server", str(address), str(owner)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not address.exists():
        assert server.poll() is None, (address.parent / "fork_server.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return server
