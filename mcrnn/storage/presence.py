"""The presence of a process in the folder in which it works: signs of life, and requests to stop.

The process writes down who and where it is, and how far its work is, now and then again as a sign of life. Whoever can
read the folder can therefore see the work from anywhere. Whoever can write there can ask the process to stop: the
request is an object that names the process, so that it never ends a later one.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from mcrnn.errors import UserError, first_line
from mcrnn.passwords import mask_passwords
from mcrnn.storage.location import Location
from mcrnn.storage.process import is_gone, this_process
from mcrnn.storage.retry import LOGGER

PROCESS_FILE = "process.json"
STOP_FILE = "stop.json"
SECONDS_BETWEEN_POLLS = 3.0
"""Time between two looks for a request: one small read, which finds nothing."""
SECONDS_BETWEEN_SIGNS = 15.0
"""Time between two signs of life: one small write."""
SECONDS_TO_END = 10.0
"""Time that the last sign of life under way gets before the end of the work is written down."""
SILENCE = 60.0
"""Seconds without a sign of life after which a process counts as lost."""


@dataclass(frozen=True)
class StopRequest:
    """A request to a process to stop, for good or for one of its trials."""

    by: str
    """Who asks, and on which machine."""
    trial: int | None = None
    """Number of the trial that is to be stopped; None for all of the work."""


class Presence:
    """Tells others of this process, and hears of their requests, as a context manager.

    Args:
        location: the folder in which this process works.
        facts: what others are to know of the process, beside where it runs; JSON.
        on_request: called with each request, in a thread of its own; once, unless it raises.
        is_owner: whether the folder is still this process's; it writes nothing more once it is not.
    """

    def __init__(
        self,
        location: Location,
        facts: dict[str, Any],
        on_request: Callable[[StopRequest], None],
        is_owner: Callable[[], bool] = lambda: True,
    ) -> None:
        self.location, self.on_request, self.is_owner = location, on_request, is_owner
        self.id = uuid.uuid4().hex
        self._facts = {"id": self.id, **_here(), **facts}
        self.progress: dict[str, Any] = {}
        """How far the work is; JSON. It is replaced, not changed."""
        self._signs = 0
        """Signs of life so far, by which any two of them differ."""
        self._heard: set[StopRequest] = set()
        self._logged: set[type[Exception]] = set()
        """Kinds of errors that are in the log."""
        self._writing = threading.Lock()
        """Held while the process is written down, so that a late sign of life does not replace the end."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="presence")

    def start(self) -> None:
        """Show that the process is there; requests that were meant for an earlier one are deleted.

        Raises:
            UserError: the folder cannot be written to.
        """
        self.location.delete(STOP_FILE)
        self.write()
        self._thread.start()

    def __enter__(self) -> Presence:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end("finished")
        elif isinstance(error, Exception):
            self.end("failed", mask_passwords(first_line(error)))
        else:
            self.end("interrupted")

    def end(self, end: str, message: str = "") -> None:
        """Write down how the work ended, once. What cannot be written is left out: the work itself is done.

        Args:
            end: "finished", "interrupted" or "failed".
            message: what ended it, for a person.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(timeout=SECONDS_BETWEEN_POLLS)
        self._facts["ended"] = {"time": time.time(), "end": end, "message": message}
        with contextlib.suppress(UserError):
            self.write()
            if self.is_owner():
                self.location.delete(STOP_FILE)

    def write(self) -> None:
        """Give a sign of life, with the progress so far."""
        if not self._writing.acquire(timeout=SECONDS_TO_END):
            return  # the sign of life before waits for a service that is away
        try:
            if self.is_owner():
                self._signs += 1
                content = self._facts | {"progress": self.progress, "signs": self._signs}
                self.location.write(PROCESS_FILE, json.dumps(content).encode())
        finally:
            self._writing.release()

    def _keep(self) -> None:
        """Look for requests and give signs of life until the end; runs in a thread.

        No error ends it, because the work goes on, and meets what concerns it itself. What failed is tried again at the
        next poll.
        """
        written = time.monotonic()
        while not self._ended.wait(SECONDS_BETWEEN_POLLS):
            with self._errors_logged():
                self._look()
            if time.monotonic() - written >= SECONDS_BETWEEN_SIGNS:
                with self._errors_logged():
                    self.write()
                    written = time.monotonic()

    def _look(self) -> None:
        for request in _requests_to(self.location, self.id):
            if request not in self._heard:
                with self._errors_logged():
                    self.on_request(request)
                    self._heard.add(request)

    @contextlib.contextmanager
    def _errors_logged(self) -> Iterator[None]:
        """Write an error inside the block into the log, the first of each kind, and go on after the block."""
        try:
            yield
        except Exception as error:
            if type(error) not in self._logged:
                self._logged.add(type(error))
                with contextlib.suppress(Exception):  # the log may be in the same folder
                    LOGGER.warning("a sign of life or a request to stop has to wait: %s", error, exc_info=error)


@dataclass(frozen=True)
class SeenPresence:
    """What a folder says of the process that works in it, or did so last."""

    content: dict[str, Any]
    age: float
    """Seconds since its last sign of life."""
    stop_requested: bool = False
    """Whether it was asked to stop. None of its trials counts here."""

    @property
    def state(self) -> str:
        """ "running", "stopping", "lost", or how it ended: "finished", "interrupted" or "failed"."""
        if "ended" in self.content:
            return self.content["ended"]["end"]
        if self.age > SILENCE or self.is_gone:
            return "lost"
        return "stopping" if self.stop_requested else "running"

    @property
    def is_gone(self) -> bool:
        """Whether it is certain that the process is no more. One that is only silent may be cut off for a while."""
        return "ended" in self.content or is_gone(self.content)

    @property
    def is_running(self) -> bool:
        """Whether the process works."""
        return self.state in ("running", "stopping")

    @property
    def place(self) -> str:
        """Where it runs: machine and process id, and the name of the Ray job, if it is one."""
        job = f", job {self.content['job']}" if self.content.get("job") else ""
        return f"{self.content['host']} ({self.content['pid']}{job})"

    @property
    def progress(self) -> dict[str, Any]:
        """How far the work was at the last sign of life."""
        return self.content.get("progress") or {}


@dataclass(frozen=True)
class _Sight:
    """What this process has seen of a sign of life, with times of its own monotonic clock."""

    content: bytes
    first: float
    """When it was seen first."""
    last: float
    """When it was seen last."""
    before: float = -math.inf
    """When the one before it was seen last, so that it was not there yet."""


_sights: dict[str, _Sight] = {}
"""What this process saw at its last look at each folder, by URL."""


def _age(location: Location, content: bytes, age: float) -> float:
    """Return the age of a sign of life: as the storage tells it, within the bounds of what this process has seen.

    Args:
        location: the folder.
        content: what was found there.
        age: its age as the storage tells it, which is wrong where the clocks of a network differ.
    """
    now, seen = time.monotonic(), _sights.get(location.url)
    if seen is None:
        seen = _Sight(content, now, now)
    elif seen.content == content:
        seen = replace(seen, last=now)
    else:
        seen = _Sight(content, now, now, before=seen.last)
    _sights[location.url] = seen
    return min(max(age, now - seen.first), now - seen.before)


def see(location: Location) -> SeenPresence | None:
    """Return what a folder says of its process; None where it says nothing.

    Who looks again and again sees by its own clock whether the signs of life change. At the first look their age is
    what the storage says; see `Location.read_with_age`.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        content, age = location.read_with_age(PROCESS_FILE)
        seen = SeenPresence(json.loads(content), _age(location, content, age))
        if {"id", "host", "pid"} - seen.content.keys():
            return None
    except UserError:  # which is a ValueError, too, and says nothing of what is in the folder
        raise
    except (FileNotFoundError, ValueError, AttributeError):
        return None
    if seen.is_running and any(each.trial is None for each in _requests_to(location, seen.content["id"])):
        return replace(seen, stop_requested=True)
    return seen


def request_stop(location: Location, seen: SeenPresence, trial: int | None = None) -> None:
    """Ask a process to stop.

    Args:
        location: the folder in which it works.
        seen: what the folder says of it.
        trial: number of the trial that is to be stopped; None for all of the work.

    Raises:
        UserError: the folder cannot be read, or not written to.
    """
    request, process = StopRequest(whoami(), trial), seen.content["id"]
    requests = [each for each in _requests_to(location, process) if each.trial != trial]
    content = {"process": process, "requests": [{"by": each.by, "trial": each.trial} for each in [*requests, request]]}
    location.write(STOP_FILE, json.dumps(content).encode())


def _requests_to(location: Location, process: str) -> list[StopRequest]:
    """Return the requests to a process, none of those to others.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        content = json.loads(location.read(STOP_FILE))
        if content["process"] != process:
            return []
        return [StopRequest(each["by"], each["trial"]) for each in content["requests"]]
    except UserError:
        raise
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return []


def whoami() -> str:
    """Return who uses this process, and on which machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        user = str(os.getuid())
    return f"{user} on {socket.gethostname()}"


def _here() -> dict[str, Any]:
    """Return where this process runs, how others can tell whether it still does, and as which job of a Ray cluster."""
    here = this_process()
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        here["job"] = json.loads(job or "{}")["metadata"]["job_submission_id"]
    return here
