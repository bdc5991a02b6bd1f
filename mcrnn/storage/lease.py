"""A lease lets only one process at a time work in a folder, local or on object storage.

The lease is an object in the folder that names its holder and counts its renewals. A thread of the holder renews it.
It is created, renewed and taken over by conditional writes, of which only one can succeed, so that of any number of
processes that start at the same moment one works and the others are refused.

No clock of another machine is relied on. Who finds a lease watches it: one that is renewed meanwhile is in use, and one
that is not renewed for `LIFETIME` seconds of the watcher's own clock is taken over. A watcher on the machine of the
holder need not wait, because it can tell whether that process still runs; see `mcrnn.storage.process`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from mcrnn.errors import UserError
from mcrnn.storage.location import Location, has_conditional_writes
from mcrnn.storage.process import process_identity, runs
from mcrnn.storage.retry import print_warning

LIFETIME = 60.0
"""Seconds without a renewal after which a watcher takes a lease over."""
RENEWAL = 10.0
"""Seconds between two renewals."""
POLL = 1.0
"""Seconds between two looks of a watcher."""
SECONDS_TO_RELEASE = 10.0
"""Seconds that a release waits for a renewal under way."""
SETTLING = 3.0
"""Seconds after which a lease is read back where there are no conditional writes, and for which a lease that cannot be
read is given the time to be written completely."""


class HeldError(UserError):
    """Another process has the lease."""


def _holder(data: bytes) -> dict[str, Any]:
    """Return what a lease says of its holder, nothing of one that was written in part, or by something else."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) and "token" in content else {}


@dataclass
class Lease:
    """The right to work in a folder. In a `with` statement it is held inside the block.

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
    _renewals: int = 0
    _version: str = ""
    _conditional: bool = True
    _ended: threading.Event = field(default_factory=threading.Event)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lease. It may watch the lease of a process of which nothing is known for up to `LIFETIME` seconds.

        Raises:
            HeldError: Another process has it.
            UserError: The folder cannot be written to.
        """
        self._conditional = has_conditional_writes(self.location)
        if not self._conditional:
            print_warning(
                f"'{self.location.url}' has no conditional writes: that only one {self.work} runs there is ensured by "
                f"waiting for {SETTLING:.0f} s"
            )
        self._take_when_free()
        threading.Thread(target=self._keep, daemon=True).start()

    def _take_when_free(self) -> None:
        """Take the lease as soon as nobody has it.

        Raises:
            HeldError: Another process has it.
        """
        seen: str | None = None  # the version that is watched
        since = looked = time.monotonic()
        while True:
            try:
                data, version = self.location.read_version(self.key)
            except FileNotFoundError:
                if self._take(None):
                    return
                continue  # another process was faster, or has just released it
            now, holder = time.monotonic(), _holder(data)
            if holder.get("token") == self.token:  # a request was repeated whose answer had been lost
                self._version, self.renewed = version, now
                return
            who = f"another {self.work} (process {holder.get('pid', '?')} on {holder.get('host', '?')})"
            alive = runs(holder.get("process"))
            if alive or (seen is not None and version != seen):
                raise HeldError(f"{who} is writing '{self.location.url}': wait until it ends, or stop it")
            needed = LIFETIME if holder else SETTLING
            if now - looked > RENEWAL:
                since = now  # neither this process nor the storage was there, and perhaps the holder was neither
            looked = now
            if alive is False or (seen is not None and now - since >= needed):
                if self._take(version):
                    return
                seen = version  # whoever was faster has it
                continue
            if seen is None:
                seen, since = version, now
                print(
                    f"{who} was writing '{self.location.url}': "
                    f"waiting for up to {needed:.0f} s to see whether it still does",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(min(POLL, needed / 10))

    def _take(self, version: str | None) -> bool:
        """Write the lease, and return whether it is this one's.

        Args:
            version: Version of the lease that is replaced; None if there is none.
        """
        self.renewed = time.monotonic()
        content = self._content()
        if self._conditional:
            if version is None:
                written = self.location.create(self.key, content)
            else:
                written = self.location.replace(self.key, content, version)
            self._version = written or ""
            return written is not None
        self.location.write(self.key, content)
        time.sleep(SETTLING)
        return self._is_own()

    def _keep(self) -> None:
        """Renew the lease until it is released or lost; runs in a thread.

        Errors are ignored here: the next try may succeed, and the work meets them itself when it writes.
        """
        while not self._ended.wait(RENEWAL / 2):
            with contextlib.suppress(Exception):
                self.renew()
            if self.lost:
                return

    def check(self) -> None:
        """Check that this process still has the lease, as far as is known. It takes no time and may be called often.

        A storage that is away, or full, for a while is no reason to stop: the thread tries again to renew the lease.

        Raises:
            HeldError: Another process has taken the lease, because this one was suspended for too long.
        """
        if self.lost:
            raise HeldError(f"another {self.work} has taken over '{self.location.url}'; this one stops")

    def confirm(self) -> None:
        """Ask the storage whether this process still has the lease, before something that could not be undone.

        Raises:
            HeldError: Another process has taken the lease.
            UserError: The storage cannot be used.
        """
        with self._mutex:
            if not self.lost:
                self._renew()
        self.check()

    def renew(self) -> None:
        """Write down that the work goes on, at most once in `RENEWAL` seconds.

        Raises:
            HeldError: Another process has taken the lease.
            UserError: The storage cannot be used.
        """
        with self._mutex:
            if not self.lost and time.monotonic() - self.renewed >= RENEWAL:
                self._renew()
        self.check()

    def _renew(self) -> None:
        now = time.monotonic()
        self._renewals += 1
        content = self._content()
        if self._conditional:
            version = self.location.replace(self.key, content, self._version)
            # A request that was repeated is refused where its first try has succeeded.
            self.lost = version is None and not self._is_own()
            self._version = version or self._version
        else:
            self.lost = not self._is_own()
            if not self.lost:
                self.location.write(self.key, content)
        if not self.lost:
            self.renewed = now

    def _is_own(self) -> bool:
        """Return whether the lease is this one's, and note its version."""
        try:
            data, version = self.location.read_version(self.key)
        except FileNotFoundError:
            return False
        own = bool(_holder(data).get("token") == self.token)
        if own:
            self._version = version
        return own

    def release(self) -> None:
        """Delete the lease, unless another process has taken it. One that cannot be deleted runs out by itself."""
        self._ended.set()
        if not self._mutex.acquire(timeout=SECONDS_TO_RELEASE):
            return  # its thread waits for a service that is away
        try:
            with contextlib.suppress(UserError):
                if not self.lost and time.monotonic() - self.renewed >= RENEWAL:
                    self._renew()  # After this, no watcher takes it over before it is deleted.
                if not self.lost:
                    self.location.delete(self.key)
        finally:
            self._mutex.release()

    def _content(self) -> bytes:
        """Return the lease as it is written. Host, pid and time are for people and for earlier versions only."""
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": process_identity(),
            "token": self.token,
            "time": time.time(),
            "renewals": self._renewals,
        }
        return json.dumps(holder).encode()
