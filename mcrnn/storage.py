"""Where bytes live: one root, a folder or an `s3://` prefix, under which everything finds its place.

Names given by a relative path are relative to the root; absolute paths and URLs are left alone. Under the root:
`data/` (stores), `searches/NAME/`, `runs/NAME/`, `reports/`, and by default MLflow's database and artifacts.

A `Location` is a folder wherever it is, with the few operations that a store needs, the same for all. For S3
the standard variables say where and who: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_DEFAULT_REGION, AWS_PROFILE.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mcrnn.errors import UserError

if TYPE_CHECKING:
    from zarr.abc.store import Store

S3_SCHEME = "s3://"


class Location(Protocol):
    """A folder: keys below it are relative paths with slashes.

    Every operation raises UserError with what to do where the place itself is the trouble (credentials,
    permissions, a full disk, an endpoint that does not answer), and FileNotFoundError for a missing key.
    """

    @property
    def url(self) -> str:
        """What a user would type to name it from anywhere."""

    def child(self, name: str) -> Location:
        """A folder below this one."""

    def read(self, key: str) -> bytes:
        """Content of an object."""

    def write(self, key: str, data: bytes) -> None:
        """Write an object so that readers, and a crash at any moment, see the old content or the new."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; whether it was written."""

    def delete(self, key: str) -> None:
        """Delete an object; no error where there is none."""

    def sizes(self) -> dict[str, int]:
        """Size of every object below, by key."""

    def clear(self) -> None:
        """Delete everything below."""

    def zarr_store(self) -> Store:
        """For reading with Zarr."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine's file systems."""

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
            raise UserError(f"cannot read '{self.path / key}': {error.strerror}") from None

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
            with file.open("xb") as opened:
                opened.write(data)
        except FileExistsError:
            return False
        except FileNotFoundError:
            return self.create(key, data)  # the folder was empty, and another process has just removed it
        except OSError as error:
            raise self._cannot_write(key, error) from None
        return True

    def delete(self, key: str) -> None:
        file = self.path / key
        file.unlink(missing_ok=True)
        if file.parent != self.path:
            with contextlib.suppress(OSError):  # there is more in it
                file.parent.rmdir()

    def sizes(self) -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                file = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_size
        return found

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def zarr_store(self) -> Store:
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)

    def _cannot_write(self, key: str, error: OSError) -> UserError:
        return UserError(
            f"cannot write '{self.path / key}': {error.strerror}. Nothing that was finished is lost; "
            "when there is room and permission, the same command continues"
        )


@dataclass(frozen=True)
class S3Prefix:
    """A prefix of a bucket of S3, or of any service that speaks its protocol."""

    bucket_and_prefix: str

    @property
    def url(self) -> str:
        return S3_SCHEME + self.bucket_and_prefix

    @property
    def _files(self) -> Any:
        from mcrnn.s3 import filesystem

        return filesystem()

    def _key(self, key: str) -> str:
        return f"{self.bucket_and_prefix}/{key}"

    def child(self, name: str) -> Location:
        return S3Prefix(f"{self.bucket_and_prefix}/{name.strip('/')}")

    def read(self, key: str) -> bytes:
        from mcrnn.s3 import answered

        return answered(self.url, lambda: self._files.cat_file(self._key(key)))

    def write(self, key: str, data: bytes) -> None:
        from mcrnn.s3 import answered

        answered(self.url, lambda: self._files.pipe_file(self._key(key), data))

    def create(self, key: str, data: bytes) -> bool:
        from mcrnn.s3 import answered

        try:
            answered(self.url, lambda: self._files.pipe_file(self._key(key), data, mode="create"))
        except FileExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        from mcrnn.s3 import answered

        name = self._key(key).split("/", 1)[1]
        answered(self.url, lambda: self._files.call_s3("delete_object", Bucket=self._bucket, Key=name))

    @property
    def _bucket(self) -> str:
        return self.bucket_and_prefix.split("/", 1)[0]

    def sizes(self) -> dict[str, int]:
        from mcrnn.s3 import answered

        found = answered(self.url, lambda: self._files.find(self.bucket_and_prefix, detail=True))
        start = len(self.bucket_and_prefix) + 1
        return {path[start:]: entry["size"] for path, entry in found.items() if len(path) > start}

    def clear(self) -> None:
        from mcrnn.s3 import answered

        keys = [self._key(key) for key in self.sizes()]
        if keys:
            answered(self.url, lambda: self._files.rm(keys))

    def zarr_store(self) -> Store:
        from zarr.storage import FsspecStore

        from mcrnn.s3 import filesystem_for_zarr

        return FsspecStore(filesystem_for_zarr(), read_only=True, path=self.bucket_and_prefix)


def check(location: Location) -> None:
    """Write, read, list and delete one small object, so that trouble shows before any work is done.

    Raises:
        UserError: one of them fails; says which and why.
    """
    key, content = f".mcrnn-check-{uuid.uuid4().hex}", b"mcrnn"
    location.write(key, content)
    try:
        if location.read(key) != content:
            raise UserError(f"'{location.url}' does not return what was written to it")
        if key not in location.sizes():
            raise UserError(f"'{location.url}' does not list what was written to it")
    finally:
        location.delete(key)


@dataclass(frozen=True)
class Storage:
    """The storage root. `Storage.open` finds it; `location` resolves names against it."""

    name: str
    """an absolute folder, or an s3:// URL without a slash at its end"""

    @classmethod
    def open(cls, root: str | None = None) -> Storage:
        """The root given, else MCRNN_STORAGE, else the current folder; a missing folder is created.

        Raises:
            UserError: the root is not a folder that can be written to, a URL of an unknown kind, or below the folder of
                a Ray job.
        """
        name = root or os.environ.get("MCRNN_STORAGE") or "."
        if "://" in name:
            return cls(_s3(name).url)
        path = Path(name).expanduser()
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not path.is_absolute():
            raise UserError(
                f"the storage root '{name}' is relative to the folder of a Ray job, which disappears with it: set "
                "MCRNN_STORAGE of the cluster to s3://BUCKET/PREFIX or to an absolute folder"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot use '{name}' as storage: {error.strerror}") from None
        if not os.access(path, os.W_OK):
            raise UserError(f"cannot write to the storage folder '{path}'")
        return cls(str(path.resolve()))

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return not self.name.startswith(S3_SCHEME)

    def location(self, name: str | os.PathLike[str]) -> Location:
        """Where `name` lives: relative names under the root, absolute ones and URLs where they say.

        Raises:
            UserError: `name` is a URL of an unknown kind.
        """
        text = os.fspath(name)
        if "://" in text:
            return _s3(text)
        path = Path(text).expanduser()
        if self.is_local or path.is_absolute():
            return LocalFolder(Path(self.name) / path if self.is_local else path)
        return _s3(f"{self.name}/{path.as_posix()}")

    def show(self, place: Path | Location) -> str:
        """A place as a user would type it: relative to the current folder where it is below it."""
        if isinstance(place, S3Prefix):
            return place.url
        path = place if isinstance(place, Path) else Path(place.url)
        here = Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    @property
    def tracking_uri(self) -> str:
        """MLFLOW_TRACKING_URI where it is set, else the SQLite database under the root, or here for a remote root."""
        folder = Path(self.name) if self.is_local else Path.cwd()
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"

    @property
    def artifact_root(self) -> str | None:
        """URI of MLflow's artifacts: under the root for a database of ours; None where a tracking server decides."""
        database = re.match("(sqlite|postgresql|mysql|mssql)[+:]", self.tracking_uri)
        return self.artifact_folder if database else None

    @property
    def artifact_folder(self) -> str:
        """URI of the folder under the root where artifacts of MLflow are kept."""
        return (Path(self.name) / "mlartifacts").as_uri() if self.is_local else f"{self.name}/mlartifacts"


def _s3(url: str) -> S3Prefix:
    prefix = url.removeprefix(S3_SCHEME).rstrip("/")
    if not url.startswith(S3_SCHEME) or not prefix:
        raise UserError(f"'{url}' is neither a folder nor a URL of the form s3://bucket/prefix")
    return S3Prefix(prefix)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new, never a part."""
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
