"""A folder in a file system of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcrnn.errors import DiskError
from mcrnn.storage.location import Location

if TYPE_CHECKING:
    from zarr.abc.store import Store


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

    def create(self, key: str, data: bytes) -> bool:
        file = self.path / key
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(key, error) from None
        try:
            with file.open("xb") as new:
                new.write(data)
        except FileExistsError:
            return False
        except FileNotFoundError:
            return self.create(key, data)  # another process has just removed the folder, which was empty
        except OSError as error:
            raise self._cannot_write(key, error) from None
        return True

    def delete(self, key: str) -> None:
        file = self.path / key
        file.unlink(missing_ok=True)
        if file.parent != self.path:
            with contextlib.suppress(OSError):  # the folder is not empty
                file.parent.rmdir()

    def sizes(self) -> dict[str, int]:
        sizes = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                file = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):  # another process has just removed the file
                    sizes[file.relative_to(self.path).as_posix()] = file.stat().st_size
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
