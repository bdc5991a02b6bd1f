"""The journal of a study: the file in which Optuna writes down every change, locally or on object storage."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock
from optuna.storages.journal._storage import JournalOperation
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy

from mcrnn.errors import UserError
from mcrnn.search.snapshot import CHECKED_BYTES, StudySnapshot, StudyState, checksum_before, download_needed, holds
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.parts import UploadedParts
from mcrnn.storage.retry import ServiceUnavailableError, print_warning
from mcrnn.tracking.run_folder import JOURNAL_FILE, JOURNAL_PARTS, SNAPSHOT_FILE, SNAPSHOT_PARTS

LOGS_BETWEEN_CHECKPOINTS = 10_000
"""Lines of the journal from one checkpoint of the snapshot to the next; replaying them takes a fraction of a second."""
FLUSHED = {JournalOperation.CREATE_STUDY, JournalOperation.SET_TRIAL_STATE_VALUES}
"""Changes after which Optuna waits for the disk, with all that came before: mainly the end of a trial.

A power failure can lose other changes that came later; then a trial draws its values and reports its epochs again. The
death of a process loses none."""


class JournalFile(BaseJournalBackend):
    """The file as Optuna's journal storage reads and writes it, in the format of Optuna's own backend.

    It remembers how far it was read and which trials have changed, from which checkpoints are made.

    Args:
        file: the file; it is created where there is none.
        folder: the temporary folder that it is in, if it is in one; it is deleted when nothing refers to it.
    """

    def __init__(self, file: Path, folder: object = None) -> None:
        self.file, self._folder = file, folder
        self.file.touch()
        self._lock = JournalFileSymlinkLock(str(file))
        self.logs = self.offset = self.trials = 0
        """Lines, bytes and trials that were read so far. No line is read twice."""
        self.changed: set[int] = set()
        """Numbers of the trials that have changed since the last checkpoint."""
        self.unsaved = 0
        """Lines since the last checkpoint."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the lines that were not read before.

        Raises:
            UserError: a line in the middle of the file is damaged.
        """
        assert log_number_from == self.logs
        with self.file.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):  # another process is just writing it
                    return
                try:
                    log = json.loads(line)
                except ValueError:
                    raise UserError(f"line {self.logs + 1} of '{self.file}' is damaged") from None
                self.logs, self.offset, self.unsaved = self.logs + 1, self.offset + len(line), self.unsaved + 1
                self._note_change(log)
                yield log

    def _note_change(self, log: dict[str, Any]) -> None:
        if log["op_code"] == JournalOperation.CREATE_TRIAL:
            self.changed.add(self.trials)
            self.trials += 1
        elif "trial_id" in log:
            self.changed.add(log["trial_id"])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, which no other process does at the same time."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self.locked(), self.file.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            if any(log["op_code"] in FLUSHED for log in logs):
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing inside the block."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def repair(self) -> None:
        """Complete or remove a last line that has no end, to which the next one would be appended.

        A full disk, or a power failure, leaves such a line. The trial that wrote it goes on from what is before.
        """
        with self.locked(), self.file.open("r+b") as file:
            last_line, complete = b"", file.seek(0, os.SEEK_END)
            while complete > 0 and b"\n" not in last_line:
                complete = max(0, complete - CHECKED_BYTES)
                file.seek(complete)
                last_line = file.read()
            complete += last_line.rfind(b"\n") + 1
            last_line = last_line[last_line.rfind(b"\n") + 1 :]
            if not last_line:
                return
            with contextlib.suppress(ValueError):
                json.loads(last_line)
                file.write(b"\n")
                return
            file.truncate(complete)
        print_warning(f"the last line of '{self.file}' was cut off, as by a full disk; it has been removed")

    @property
    def position(self) -> dict[str, Any]:
        """How far the file was read, as a checkpoint notes it."""
        checksum = checksum_before(self.file, self.offset)
        return {"logs": self.logs, "offset": self.offset, "checksum": checksum}

    def holds(self, position: dict[str, Any]) -> bool:
        """Return whether a checkpoint was made of this file, and of nothing that has been cut off since."""
        return holds(self.file, position)


class _NoLogs(BaseJournalBackend):
    """A backend without lines, with which a storage is created before its state is set."""

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return ()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise AssertionError("nothing may be written before the state of the storage is set")


class SnapshotStorage(JournalStorage):
    """Optuna's journal storage, which starts from a snapshot and can say what has changed since.

    Optuna's own snapshots are pickles of the whole state, which are written anew after every hundred trials. This class
    sets the state itself instead, for which Optuna has no public way.

    Args:
        journal_file: the journal.
        state: the state of a checkpoint, None to replay the whole journal.
    """

    def __init__(self, journal_file: JournalFile, state: StudyState | None) -> None:
        super().__init__(_NoLogs())
        self._backend = self.journal_file = journal_file
        with self._thread_lock:
            if state is not None:
                self._restore(state)
            self._sync_with_backend()

    def _restore(self, state: StudyState) -> None:
        numbers, result = range(len(state.trials)), self._replay_result
        study = state.study | {"directions": [StudyDirection(each) for each in state.study["directions"]]}
        result._studies = {0: FrozenStudy(direction=None, study_id=0, **study)}
        result._next_study_id = 1
        result._study_id_to_trial_ids = {0: list(numbers)}
        result._trial_id_to_study_id = dict.fromkeys(numbers, 0)
        result._trials = dict(enumerate(state.trials))
        result.log_number_read = state.position["logs"]
        self.journal_file.logs, self.journal_file.offset = state.position["logs"], state.position["offset"]
        self.journal_file.trials = len(state.trials)

    def take_changes(self) -> StudyState | None:
        """Return what has changed since it was called last, None for a journal that holds not just one study."""
        with self._thread_lock:
            result, journal_file = self._replay_result, self.journal_file
            if list(result._studies) != [0] or journal_file.trials != len(result._trials):
                return None
            study = result._studies[0]
            state = StudyState(
                position=journal_file.position,
                study={
                    "study_name": study.study_name,
                    "directions": [int(each) for each in study._directions],
                    "user_attrs": study.user_attrs,
                    "system_attrs": study.system_attrs,
                },
                trials=[result._trials[number] for number in sorted(journal_file.changed)],
            )
            journal_file.changed, journal_file.unsaved = set(), 0
            return state


class Journal:
    """The journal of a search, with the snapshot beside it.

    Optuna writes the journal on a local file system. Where the folder of the search is on object storage, both files
    are in a temporary folder here, and what is new in them is uploaded whenever the study has changed.

    Args:
        folder: folder of the search.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._storage: SnapshotStorage | None = None
        self._parts: UploadedParts | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(folder, LocalFolder):
            folder.path.mkdir(parents=True, exist_ok=True)
            local = folder.path
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="mcrnn-study-")
            local = Path(self._temporary.name)
        self.file = local / JOURNAL_FILE
        """The file that Optuna writes. Of one on object storage, only what is needed is downloaded."""
        self._snapshot_file = local / SNAPSHOT_FILE
        if self.is_remote:
            self._parts = UploadedParts(self.file, folder.child(JOURNAL_PARTS))
            self._snapshot_parts = UploadedParts(self._snapshot_file, folder.child(SNAPSHOT_PARTS))
            download_needed(self._parts, self._snapshot_parts, folder)

    @classmethod
    def open(cls, folder: Location) -> Journal:
        """Find the journal of a search, or download it from object storage; it need not exist yet."""
        return cls(folder)

    @property
    def is_remote(self) -> bool:
        """Whether the folder is on object storage, so that the file must be uploaded."""
        return not isinstance(self.folder, LocalFolder)

    def storage(self) -> JournalStorage:
        """Return the journal as a storage of Optuna, after repairing an end that was cut off."""
        journal_file = JournalFile(self.file, self._temporary)
        journal_file.repair()
        self._snapshot = StudySnapshot(self._snapshot_file)
        state = self._snapshot.load(journal_file.holds)
        if state is None and self._parts is not None and self._parts.parts:
            self._parts.download()
            self._snapshot = StudySnapshot(self._snapshot_file)
            state = self._snapshot.load(journal_file.holds)
        self._snapshot_restarts = self.is_remote and self._snapshot.end < self._snapshot_parts.end
        self._storage = SnapshotStorage(journal_file, state)
        return self._storage

    def checkpoint(self) -> None:
        """Extend the snapshot, if enough has been written since the last checkpoint.

        Only the process that runs the search may call it, in the thread that writes into the study.
        """
        storage = self._storage
        if storage is None or storage.journal_file.unsaved < LOGS_BETWEEN_CHECKPOINTS:
            return
        changes = storage.take_changes()
        if changes is not None:
            self._snapshot.append(changes)

    def upload(self) -> None:
        """Upload what is new to the folder of the search.

        Raises:
            ServiceUnavailableError: the folder cannot be reached.
        """
        if self._parts is None or self._storage is None:
            return
        # in this order, so that the snapshot is never ahead of the journal; neither number ends within a line
        snapshot_end, end = self._snapshot.end, self._storage.journal_file.offset
        try:
            is_first = not self._parts.parts
            self._parts.upload(end)
            if is_first:
                self.folder.delete(JOURNAL_FILE)
            if self._snapshot_restarts:  # some of what was uploaded could not be used, and has been written over
                self._snapshot_parts.clear()
                self._snapshot_restarts = False
            self._snapshot_parts.upload(snapshot_end)
        except (UserError, OSError) as error:
            raise ServiceUnavailableError(str(error)) from None
