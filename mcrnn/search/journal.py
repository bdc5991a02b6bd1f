"""The journal file of a study, locally or on object storage."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.retry import ServiceUnavailableError
from mcrnn.tracking.run_folder import JOURNAL_FILE


@dataclass(frozen=True)
class Journal:
    """The journal file of a study.

    Optuna writes it on a local file system. Where the folder of the search is on object storage, the file is in a
    temporary folder here, and is uploaded whenever the study has changed.
    """

    folder: Location
    """The folder of the search."""
    file: Path

    @classmethod
    def open(cls, folder: Location) -> Journal:
        """Find the file, or download it from object storage; it need not exist yet."""
        if isinstance(folder, LocalFolder):
            folder.path.mkdir(parents=True, exist_ok=True)
            return cls(folder, folder.path / JOURNAL_FILE)
        file = Path(tempfile.mkdtemp(prefix="mcrnn-study-")) / JOURNAL_FILE
        with contextlib.suppress(FileNotFoundError):
            file.write_bytes(folder.read(JOURNAL_FILE))
        return cls(folder, file)

    @property
    def is_remote(self) -> bool:
        """Whether the folder is on object storage, so that the file must be uploaded."""
        return not isinstance(self.folder, LocalFolder)

    def storage(self) -> JournalStorage:
        """Return the journal as a storage of Optuna, after repairing an end that was cut off."""
        lock = JournalFileSymlinkLock(str(self.file))
        if self.file.exists():
            lock.acquire()  # nobody is writing a line while this process holds it
            try:
                self._repair()
            finally:
                lock.release()
        return JournalStorage(JournalFileBackend(str(self.file), lock_obj=lock))

    def _repair(self) -> None:
        """Complete or remove a last line that has no end, to which Optuna would append the next one.

        A full disk, or a power failure, leaves such a line. The trial that wrote it goes on from what is before.
        """
        content = self.file.read_bytes()
        complete = content.rfind(b"\n") + 1
        last_line = content[complete:]
        if not last_line:
            return
        with contextlib.suppress(ValueError):
            json.loads(last_line)
            with self.file.open("ab") as file:
                file.write(b"\n")
            return
        with self.file.open("r+b") as file:
            file.truncate(complete)
        print(
            f"warning: the last line of '{self.file}' was cut off, as by a full disk; it has been removed",
            file=sys.stderr,
        )

    def upload(self) -> None:
        """Upload the file to the folder of the search.

        Raises:
            ServiceUnavailableError: the folder cannot be reached.
        """
        content = self.file.read_bytes()
        content = content[: content.rfind(b"\n") + 1]  # without a line that another thread is just writing
        try:
            self.folder.write(JOURNAL_FILE, content)
        except (UserError, OSError) as error:
            raise ServiceUnavailableError(str(error)) from None
