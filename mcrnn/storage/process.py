"""A random identity for each process, by which others on its machine can tell whether it still runs.

Host name and process id do not tell this: containers that share a host name number their processes each by itself. So a
process takes a random identity, and locks a file of that name in a folder that is in the memory of its machine. The
system gives up the lock when the process ends, however it ends. Whoever finds the file without a lock knows that the
process has ended. Whoever finds no such file, as on another machine or in a container with a folder of its own, knows
nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

SECONDS_KEPT = 30 * 86_400.0
"""Seconds for which the file of a process that has ended is kept."""


_identity: str | None = None
_mutex = threading.Lock()


def _forget() -> None:
    """Let a forked process take an identity of its own: it does not inherit the lock."""
    global _identity, _mutex
    _identity, _mutex = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def process_identity() -> str:
    """Return the random identity of this process, the same at every call."""
    global _identity
    with _mutex:
        if _identity is None:
            identity = uuid.uuid4().hex
            with contextlib.suppress(OSError):  # without the file, others know nothing of this process
                folder = _folder()
                folder.mkdir(mode=0o700, exist_ok=True)
                _remove_old(folder)
                # The lock lasts until this process closes a descriptor of the file, so this one stays open.
                descriptor = os.open(folder / identity, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _identity = identity
        return _identity


def this_process() -> dict[str, Any]:
    """Return what others are to know of this process, as `is_gone` takes it."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "identity": process_identity(),
        "machine": machine(),
        "boot": boot(),
    }


def runs(identity: object) -> bool | None:
    """Return whether a process runs; None if that cannot be known here.

    Args:
        identity: What `process_identity` returned in that process; anything else is the identity of no process.
    """
    if not isinstance(identity, str) or not identity.isalnum():
        return None
    if identity == _identity:
        return True  # opening the file and closing it would give up the lock
    try:
        descriptor = os.open(_folder() / identity, os.O_RDONLY)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return None  # another user has put it there
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that those who ask do not meet each other
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def is_gone(process: dict[str, Any]) -> bool:
    """Return whether a process ran on this machine and runs no more, as far as that is known.

    Args:
        process: `identity`, see `process_identity`. Where it is missing, as in what version 0.1.0 has written: `host`,
            `pid` and, where it is known, `started`, the seconds since the epoch at which the process started. With
            `machine`, `boot` and `started`, processes from before a restart of this machine are gone, too.
    """
    if "identity" in process:
        return runs(process["identity"]) is False or _is_from_before_restart(process)
    if process["host"] != socket.gethostname():
        return False
    try:
        running = psutil.Process(process["pid"])
    except psutil.NoSuchProcess:
        return True
    return "started" in process and abs(running.create_time() - process["started"]) > 1


def boot() -> str | None:
    """Return what changes whenever this machine starts anew; None where the system does not say it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def machine() -> str | None:
    """Return what tells this machine from others; None where nothing does, as in a container with a network of its own.

    Host names do not: machines of one image, and containers, may share theirs, and even the id that the image holds. So
    the addresses of the network cards count, too.
    """
    cards = sorted(Path("/sys/class/net").glob("*/device"))  # what is there only in software has no device
    try:
        image = Path("/etc/machine-id").read_text().strip()
        addresses = [(card.parent / "address").read_text().strip() for card in cards]
    except OSError:
        return None
    if not image or not addresses:
        return None
    return hashlib.sha256(" ".join([image, *addresses]).encode()).hexdigest()[:16]


def _is_from_before_restart(process: dict[str, Any]) -> bool:
    """Return whether a process ran on this machine before it started anew, which is not assumed where it is unsure."""
    known = process.get("host") == socket.gethostname() and None not in (process.get("machine"), process.get("boot"))
    return (
        known
        and process["machine"] == machine()
        and process["boot"] != boot()
        and process.get("started", math.inf) < psutil.boot_time()
    )


def _folder() -> Path:
    """Return the folder of the files: in memory where there is such a folder, which no other machine sees."""
    shared_memory = Path("/dev/shm")
    parent = shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())
    return parent / f"mcrnn-processes-{os.getuid()}"


def _remove_old(folder: Path) -> None:
    """Remove the files of processes that have ended long ago."""
    for file in folder.iterdir():
        if time.time() - file.stat().st_mtime > SECONDS_KEPT and runs(file.name) is False:
            file.unlink(missing_ok=True)
