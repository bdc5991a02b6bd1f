"""Read the trials of a study without Optuna, to look at a search from another process in well under a second.

Nothing is written and nothing is locked. A reader remembers how far it has read, so that looking again costs what has
changed since: the end of the journal, on object storage the parts that are new. A study in a database is read anew.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, Protocol

from mcrnn.search.attributes import COPIED_FROM, END, RESULT, STOPPED_PAUSED, TARGET
from mcrnn.search.snapshot import (
    CHECKED_BYTES,
    SnapshotLines,
    StudySnapshot,
    checksum_before,
    download_needed,
    holds,
    without_garbage_collection,
)
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.parts import UploadedParts
from mcrnn.tracking.run_folder import JOURNAL_FILE, JOURNAL_PARTS, SNAPSHOT_FILE, SNAPSHOT_PARTS


class State(IntEnum):
    """Optuna's states of a trial, with its numbers."""

    RUNNING = 0
    COMPLETE = 1
    PRUNED = 2
    FAIL = 3
    WAITING = 4


class Operation(IntEnum):
    """The changes in a journal that are read, with Optuna's numbers."""

    SET_STUDY_USER_ATTR = 2
    CREATE_TRIAL = 4
    SET_TRIAL_STATE_VALUES = 6
    SET_TRIAL_INTERMEDIATE_VALUE = 7
    SET_TRIAL_USER_ATTR = 8


SKIPPED = (b'{"op_code":5,', b'{"op_code":9,')
"""How lines begin of which nothing is read: parameters, and Optuna's own attributes."""


class Phase(StrEnum):
    """Where a trial is, as far as the study tells."""

    COPIED = "copied"
    """It was copied from an earlier search, and is none of this one."""
    WAITING = "waiting"
    RUNNING = "running"
    """It runs, or was left running by a process that is gone."""
    PAUSED = "paused"
    """It waits at a rung until it goes on, or until the end of the search stops it."""
    ENDED = "ended"


@dataclass
class SeenTrial:
    """A trial as the study has it."""

    number: int
    state: State
    attributes: dict[str, Any] = field(default_factory=dict)
    """The user attributes."""
    last_step: int = 0
    """The last epoch whose error the study has; 0 for none."""
    phase: Phase = Phase.RUNNING
    """Where the trial is."""
    best: float | None = None
    """The smallest error of its epochs so far, as far as the study has it."""

    def __post_init__(self) -> None:
        self.has_changed()

    def has_changed(self) -> None:
        """Work out what follows from the rest: once for each change, because there may be thousands of trials."""
        attributes = self.attributes
        result = attributes.get(RESULT)
        if COPIED_FROM in attributes:
            self.phase = Phase.COPIED
        elif self.state == State.WAITING:
            self.phase = Phase.WAITING
        elif self.state != State.RUNNING or attributes.get(STOPPED_PAUSED):
            self.phase = Phase.ENDED
        elif result is not None and self.last_step >= (attributes.get(TARGET) or 0):
            self.phase = Phase.PAUSED
        else:
            self.phase = Phase.RUNNING
        usable = self.phase == Phase.PAUSED or attributes.get(END) in ("finished", "stopped")
        self.best = result.get("best") if usable and result else None


class StudyReader(Protocol):
    """Reads a study again and again."""

    trials: list[SeenTrial]
    """All trials in the order of their numbers, as they were when they were read last."""
    attributes: dict[str, Any]
    """User attributes of the study."""

    def refresh(self) -> None:
        """Read what has changed.

        Raises:
            UserError: the study cannot be read.
        """


class JournalReader:
    """Reads a study from its journal.

    Args:
        folder: folder of the search.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._parts: tuple[UploadedParts, UploadedParts] | None = None
        """The parts of the journal and of the snapshot, where they are on object storage."""
        if isinstance(folder, LocalFolder):
            local = folder.path
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="mcrnn-status-")
            local = Path(self._temporary.name)
            self._parts = (
                UploadedParts(local / JOURNAL_FILE, folder.child(JOURNAL_PARTS)),
                UploadedParts(local / SNAPSHOT_FILE, folder.child(SNAPSHOT_PARTS)),
            )
        self._file, self._snapshot_file = local / JOURNAL_FILE, local / SNAPSHOT_FILE
        self._inode = 0
        self._restart()

    def _restart(self) -> None:
        self.trials: list[SeenTrial] = []
        self.attributes: dict[str, Any] = {}
        self._offset = self._checksum = 0
        self._is_first = True

    def refresh(self) -> None:
        """Read what has changed; the first time all, as far as possible from the snapshot."""
        if self._parts is not None and not self._download(*self._parts):
            return
        try:
            file = self._file.stat()
            if file.st_size < self._offset or file.st_ino != self._inode:  # it was deleted, and another has begun
                self._restart()
            self._inode = file.st_ino
            with without_garbage_collection():
                if self._is_first:
                    self._read_snapshot()
                self._is_first = False
                self._read_journal()
            if self._parts is not None:
                self._checksum = checksum_before(self._file, self._offset)
        except FileNotFoundError:
            self._restart()

    def _download(self, journal: UploadedParts, snapshot: UploadedParts) -> bool:
        """Download what is new of the journal, the first time what is needed; returns whether there is something."""
        if not self._is_first and (end := journal.find()):
            if end == self._offset:
                return False
            if end > self._offset:
                journal.download(max(0, self._offset - CHECKED_BYTES))
                if checksum_before(self._file, self._offset) == self._checksum:
                    return True
            self._restart()  # it was deleted, and another has begun
        is_there = download_needed(journal, snapshot, self.folder)
        if not is_there:
            self._restart()
        return is_there

    def _read_snapshot(self) -> None:
        lines = next(StudySnapshot(self._snapshot_file).lines(lambda position: holds(self._file, position)), None)
        if lines is not None:
            self.trials = list(_trials_of(lines))
            self.attributes, self._offset = dict(lines.study["user_attrs"]), lines.position["offset"]
        elif self._parts is not None and self._parts[0].parts:
            self._parts[0].download()

    def _read_journal(self) -> None:
        wanted = []
        with self._file.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is just being written
                    break
                self._offset += len(line)
                if not line.startswith(SKIPPED):
                    wanted.append(line)
        for log in _parsed(wanted):
            with contextlib.suppress(LookupError, TypeError, ValueError):  # as Optuna leaves out what it cannot apply
                self._apply(log)

    def _apply(self, log: dict[str, Any]) -> None:
        """Take up a change, as Optuna's own replay does."""
        operation = log["op_code"]
        if operation == Operation.SET_STUDY_USER_ATTR:
            self.attributes |= log["user_attr"]
        elif operation == Operation.CREATE_TRIAL:
            steps = map(int, log.get("intermediate_values", ()))
            state = State(log.get("state", State.RUNNING))
            self.trials.append(SeenTrial(len(self.trials), state, log.get("user_attrs", {}), max(steps, default=0)))
        elif "trial_id" in log and (trial := self.trials[log["trial_id"]]).state in (State.RUNNING, State.WAITING):
            if operation == Operation.SET_TRIAL_USER_ATTR:
                trial.attributes |= log["user_attr"]
            elif operation == Operation.SET_TRIAL_INTERMEDIATE_VALUE:
                trial.last_step = max(trial.last_step, log["step"])
            elif operation == Operation.SET_TRIAL_STATE_VALUES:
                trial.state = State(log["state"])
            trial.has_changed()


def _trials_of(lines: SnapshotLines) -> Iterable[SeenTrial]:
    states = {int(state): state for state in State}
    for number, content in enumerate(_parsed(lines.trials)):
        state, _, _, _, _, attributes, _, (steps, _) = content
        yield SeenTrial(number, states[state], attributes, max(steps, default=0))


def _parsed(lines: list[bytes]) -> Iterable[Any]:
    """Return the content of lines of JSON, without those that are damaged. All at once takes half of the time."""
    try:
        return json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found
