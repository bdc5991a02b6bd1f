"""A lease lets only one process at a time work in a folder, local or on object storage.

The lease is an object in the folder that names its holder. A thread of the holder renews it. A lease that was not
renewed for `LIFETIME` seconds, or whose holder ran on this machine and has ended, can be taken by another process, so
that work that was killed can be continued at once.
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
"""Seconds after the last renewal at which a lease is free again."""
RENEWAL = 10.0
"""Seconds between two renewals."""


@dataclass
class Lease:
    """The right to work in a folder.

    Attributes:
        location: The folder.
        key: Key of the object that names the holder.
        work: What the lease is for, such as "build" or "search"; for messages.
        token: Random text by which the holder recognises its own lease.
        renewed: Time of the last renewal, of the monotonic clock.
        lost: Whether another process has taken the lease.
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
            UserError: Another process has it, and renewed it less than `LIFETIME` seconds ago.
        """
        while not self.location.create(self.key, self._content()):
            try:
                content = self.location.read(self.key)
            except FileNotFoundError:
                continue  # its holder has just released it
            try:
                holder = json.loads(content)
                age = time.time() - holder["time"]
            except (ValueError, KeyError, TypeError):
                holder, age = {"host": "?", "pid": 0}, LIFETIME + 1  # its holder was killed while writing it
            if age <= LIFETIME and not is_gone(holder):
                raise UserError(
                    f"another {self.work} (process {holder['pid']} on {holder['host']}) is writing "
                    f"'{self.location.url}': "
                    f"wait until it ends; if it is dead, try again in {LIFETIME - age:.0f} s"
                )
            self.location.delete(self.key)
        self.renewed = time.monotonic()
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        """Renew the lease until it is released or lost; runs in a thread.

        Errors are ignored here, because the work itself meets them when it calls `renew`.
        """
        while not self._ended.wait(RENEWAL / 2):
            with contextlib.suppress(UserError):
                self.renew()
            if self.lost:
                return

    def renew(self) -> None:
        """Write down that the work goes on, at most once in `RENEWAL` seconds, so that it can be called often.

        Raises:
            UserError: Another process has taken the lease, because this one was suspended for too long.
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
        """Delete the lease, unless another process has taken it."""
        self._ended.set()
        with self._mutex:
            if not self.lost:
                self.location.delete(self.key)

    def _content(self) -> bytes:
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, "time": time.time()}
        return json.dumps(holder).encode()


def is_gone(process: dict[str, Any]) -> bool:
    """Return whether a process ran on this machine and runs no more.

    Of a process on another machine nothing is known, so it counts as running.

    Args:
        process: `host` and `pid`, and where it is known `started`, the seconds since the epoch at which the process
            started, which tells it from a later process that the system has given the same id.
    """
    if process["host"] != socket.gethostname():
        return False
    try:
        running = psutil.Process(process["pid"])
    except psutil.NoSuchProcess:
        return True
    return "started" in process and abs(running.create_time() - process["started"]) > 1
