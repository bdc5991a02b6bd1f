"""A folder in a file system of this machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcrnn.errors import DiskError
from mcrnn.storage.location import Location, NoConditionalWritesError

if TYPE_CHECKING:
    from zarr.abc.store import Store

SECONDS_FOR_LOCK = 10.0
"""Longest wait for the lock of a file, which others keep for milliseconds."""
WITHOUT_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of a file system that has no hard links."""
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of a file system that has no locks."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder in a file system of this machine, as a `Location`.

    Attributes:
        path: Path of the folder, which need not exist yet.
    """

    path: Path

    @property
    def url(self) -> str:
        return str(self.path)

    def child(self, name: str) -> Location:
        return LocalFolder(self.path / name)

    def read(self, key: str) -> bytes:
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(key) from None
        except OSError as error:
            raise DiskError(f"cannot read '{self.path / key}': {error.strerror}") from None

    def read_with_age(self, key: str) -> tuple[bytes, float]:
        content = self.read(key)
        try:
            return content, max(0.0, time.time() - (self.path / key).stat().st_mtime)
        except FileNotFoundError:  # another process has just deleted it
            raise FileNotFoundError(key) from None

    def write(self, key: str, data: bytes) -> None:
        try:
            write_atomically(self.path / key, data)
        except OSError as error:
            raise self._cannot_write(key, error) from None

    def read_version(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, _version(data)

    def create(self, key: str, data: bytes) -> str | None:
        file = self.path / key
        try:
            return _version(data) if create_atomically(file, data) else None
        except FileNotFoundError:
            return self.create(key, data)  # another process has just removed the folder, which was empty
        except OSError as error:
            raise self._cannot_write(key, error) from None

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        file = self.path / key
        try:
            with _locked(file):
                if _version(file.read_bytes()) != version:
                    return None
                write_atomically(file, data)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                raise NoConditionalWritesError(f"no locks: {error.strerror}") from None
            raise self._cannot_write(key, error) from None
        return _version(data)

    def delete(self, key: str) -> None:
        file = self.path / key
        file.unlink(missing_ok=True)
        if file.parent != self.path:
            with contextlib.suppress(OSError):  # the folder is not empty
                file.parent.rmdir()

    def sizes(self) -> dict[str, int]:
        sizes, waiting = {}, [("", str(self.path))]
        while waiting:
            prefix, folder = waiting.pop()
            with contextlib.suppress(OSError), os.scandir(folder) as entries:  # another process may have removed it
                for entry in entries:
                    if not entry.is_dir():
                        with contextlib.suppress(FileNotFoundError):  # or the file
                            sizes[prefix + entry.name] = entry.stat().st_size
                    elif not entry.is_symlink():
                        waiting.append((f"{prefix}{entry.name}/", entry.path))
        return sizes

    def sizes_of(self, keys: Collection[str]) -> dict[str, int]:
        # A chunk of a Zarr array lies in a folder for each of its dimensions, so that listing takes ten times as long.
        sizes, folder = {}, str(self.path)
        for key in keys:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                sizes[key] = os.stat(f"{folder}/{key}").st_size
        return sizes

    def folders(self) -> list[str]:
        try:
            with os.scandir(self.path) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DiskError(f"cannot read '{self.path}': {error.strerror}") from None

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def zarr_store(self) -> Store:
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)

    def _cannot_write(self, key: str, error: OSError) -> DiskError:
        return DiskError(
            f"cannot write '{self.path / key}': {error.strerror}. Nothing that was finished is lost; "
            "when there is room and permission, the same command continues"
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file of which readers see the old content or the new, never a part, also after a crash at any moment."""
    with _written_beside(path, data) as partial:
        partial.replace(path)


def create_atomically(path: Path, data: bytes) -> bool:
    """Write a file unless there is one, so that readers see all of it or none, and return whether it was written.

    A file system without hard links shows a file while it is being written.
    """
    with _written_beside(path, data) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LINKS:
                raise
            return _create_in_place(path, data)
    return True


def _create_in_place(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Write data to a temporary file in the folder of another one, which is removed at the end if it is still there.

    Its name is random: processes of two containers may have the same id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep others out that lock the same file; a file that replaces it has a lock of its own.

    The system gives up the lock of a process that ends.

    Raises:
        FileNotFoundError: There is no such file.
        TimeoutError: Another process had the lock for `SECONDS_FOR_LOCK`, as one that was suspended meanwhile.
    """
    deadline = time.monotonic() + SECONDS_FOR_LOCK
    while True:
        with path.open("r+b") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(errno.ETIMEDOUT, "another process locks it") from None
                    time.sleep(0.01)
            with path.open("rb") as now:  # a look at the name alone may be answered from a cache on NFS
                is_same = os.path.samestat(os.fstat(now.fileno()), os.fstat(file.fileno()))
            if is_same:
                yield
                return


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
