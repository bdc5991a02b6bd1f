"""One build of a store at a time: a lease in the store's build folder, renewed while the build runs.

A thread renews the lease while the build runs. One that is not renewed for `LIFETIME` seconds, or whose process
on this machine is gone, is free again, so that a killed build can be continued at once.
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

from mcrnn.errors import UserError
from mcrnn.storage import Location
from mcrnn.store_format import BUILD_FOLDER, canonical_json

KEY = f"{BUILD_FOLDER}/lock.json"
LIFETIME = 60.0
RENEWAL = 10.0


@dataclass
class Lease:
    """The right to build a store."""

    location: Location
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewed: float = 0.0
    lost: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self) -> None:
        """Take the lease.

        Raises:
            UserError: another build that is alive has it.
        """
        while not self.location.create(KEY, self._content()):
            try:
                content = self.location.read(KEY)
            except FileNotFoundError:
                continue  # given back a moment ago
            try:
                holder = json.loads(content)
                age = time.time() - holder["time"]
            except (ValueError, KeyError, TypeError):
                holder, age = {"host": "?", "pid": 0}, LIFETIME + 1  # killed while it was written
            if age <= LIFETIME and not _is_gone(holder):
                raise UserError(
                    f"another build (process {holder['pid']} on {holder['host']}) is writing '{self.location.url}': "
                    f"wait until it ends; if it is dead, try again in {LIFETIME - age:.0f} s"
                )
            self.location.delete(KEY)
        self.renewed = time.monotonic()
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        """Renew until the end; the build itself learns of a loss when it renews."""
        while not self._ended.wait(RENEWAL / 2):
            with contextlib.suppress(UserError):
                self.renew()
            if self.lost:
                return

    def renew(self) -> None:
        """Say that the build is alive; cheap to call often.

        Raises:
            UserError: another build has taken over, because this one stood still for too long.
        """
        with self._mutex:
            if not self.lost and time.monotonic() - self.renewed >= RENEWAL:
                try:
                    self.lost = self.token.encode() not in self.location.read(KEY)
                except FileNotFoundError:
                    self.lost = True
                if not self.lost:
                    self.location.write(KEY, self._content())
                    self.renewed = time.monotonic()
        if self.lost:
            raise UserError(f"another build has taken over '{self.location.url}'; this one stops")

    def release(self) -> None:
        """Give it back, unless it is another's by now."""
        self._ended.set()
        with self._mutex:
            if not self.lost:
                self.location.delete(KEY)

    def _content(self) -> bytes:
        here = {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, "time": time.time()}
        return canonical_json(here)


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
