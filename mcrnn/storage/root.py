"""The storage root: a folder or an `s3://` prefix, below which every store, search, run and report has its place.

Names given by a relative path are relative to the root; absolute paths and URLs are left alone. Below the root are
`data/` (stores), `searches/NAME/`, `runs/NAME/` and `reports/`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3_SCHEME, S3Prefix


@dataclass(frozen=True)
class Storage:
    """The storage root, against which names are resolved; `Storage.open` finds it.

    Attributes:
        name: An absolute folder, or an `s3://` URL without a slash at its end.
    """

    name: str

    @classmethod
    def open(cls, root: str | None = None, *, read_only: bool = False) -> Storage:
        """Return the root that is given, else MCRNN_STORAGE, else the current folder; a missing folder is created.

        Args:
            root: A folder or an `s3://` URL.
            read_only: Whether nothing is to be written; then the folder must be there, and is not checked further.

        Raises:
            UserError: The root is no folder that can be written to, or a URL of an unknown kind; or it is relative to
                the working folder of a Ray job, which Ray deletes with the job.
        """
        name = root or os.environ.get("MCRNN_STORAGE") or "."
        if "://" in name:
            return cls(S3Prefix.from_url(name).url)
        path = Path(name).expanduser()
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not path.is_absolute():
            raise UserError(
                f"the storage root '{name}' is relative to the folder of a Ray job, which disappears with it: set "
                "MCRNN_STORAGE of the cluster to s3://BUCKET/PREFIX or to an absolute folder"
            )
        if read_only:
            if not path.is_dir():
                raise UserError(f"there is no storage folder '{path}'")
            return cls(str(path.resolve()))
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
        """Return the location of a name: a relative one is below the root, an absolute one and a URL stand alone.

        Raises:
            UserError: `name` is a URL of an unknown kind.
        """
        text = os.fspath(name)
        if "://" in text:
            return S3Prefix.from_url(text)
        path = Path(text).expanduser()
        if self.is_local or path.is_absolute():
            return LocalFolder(Path(self.name) / path)  # an absolute path replaces what it is appended to
        return S3Prefix.from_url(f"{self.name}/{path.as_posix()}")

    def show(self, location: Path | Location) -> str:
        """Return a path or location as a user would type it: relative to the current folder if it is below that."""
        if isinstance(location, S3Prefix):
            return location.url
        path = location if isinstance(location, Path) else Path(location.url)
        here = Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
