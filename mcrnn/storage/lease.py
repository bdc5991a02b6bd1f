"""One process at a time: a lease in a folder, wherever it lives, renewed while the work goes on.

A thread renews the lease. One that is not renewed for `LIFETIME` seconds, or whose process on this machine is gone, is
free again, so that what was killed can be continued at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import psutil

from mcrnn.errors import UserError
from mcrnn.storage.location import Location

LIFETIME = 60.0
RENEWAL = 10.0


@dataclass
class Lease:
    """The right to work in a folder.

    Attributes:
        location: the folder.
        key: of the object that says who has it.
        work: what it is for, such as "build", for messages.
    """

    location: Location
    key: str
    work: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewed: float = 0.0
    lost: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self) -> None:
        """Take the lease.

        Raises:
            UserError: another process that is alive has it.
        """
        while not self.location.create(self.key, self._content()):
            try:
                content = self.location.read(self.key)
            except FileNotFoundError:
                continue  # given back a moment ago
            try:
                holder = json.loads(content)
                age = time.time() - holder["time"]
            except (ValueError, KeyError, TypeError):
                holder, age = {"host": "?", "pid": 0}, LIFETIME + 1  # killed while it was written
            if age <= LIFETIME and not _is_gone(holder):
                raise UserError(
                    f"another {self.work} (process {holder['pid']} on {holder['host']}) is writing "
                    f"'{self.location.url}': "
                    f"wait until it ends; if it is dead, try again in {LIFETIME - age:.0f} s"
                )
            self.location.delete(self.key)
        self.renewed = time.monotonic()
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        """Renew until the end; the work itself learns of a loss when it renews."""
        while not self._ended.wait(RENEWAL / 2):
            with contextlib.suppress(UserError):
                self.renew()
            if self.lost:
                return

    def renew(self) -> None:
        """Say that the work goes on; cheap to call often.

        Raises:
            UserError: another process has taken over, because this one stood still for too long.
        """
        with self._mutex:
            if not self.lost and time.monotonic() - self.renewed >= RENEWAL:
                try:
                    self.lost = self.token.encode() not in self.location.read(self.key)
                except FileNotFoundError:
                    self.lost = True
                if not self.lost:
                    self.location.write(self.key, self._content())
                    self.renewed = time.monotonic()
        if self.lost:
            raise UserError(f"another {self.work} has taken over '{self.location.url}'; this one stops")

    def release(self) -> None:
        """Give it back, unless it is another's by now."""
        self._ended.set()
        with self._mutex:
            if not self.lost:
                self.location.delete(self.key)

    def _content(self) -> bytes:
        here = {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, "time": time.time()}
        return json.dumps(here).encode()


def _is_gone(holder: dict) -> bool:
    """Whether the holder was a process of this machine that no longer runs."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def is_gone(process: dict[str, Any]) -> bool:
    """Whether a process, as `origin` describes it, was one of this machine and no longer runs."""
    if process["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(process["pid"]).create_time() - process["started"]) > 1
    except psutil.NoSuchProcess:
        return True
