"""Where bytes live: one root, a folder or an `s3://` prefix, under which everything finds its place.

Names given by a relative path are relative to the root; absolute paths and URLs are left alone. Under the root:
`data/` (stores), `searches/NAME/`, `runs/NAME/`, `reports/`, and by default MLflow's database and artifacts.

A `Location` is a folder wherever it is, with the few operations that a store needs, the same for all. For S3
the standard variables say where and who: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_DEFAULT_REGION, AWS_PROFILE.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3_SCHEME, S3Prefix

if TYPE_CHECKING:
    pass


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
            return cls(S3Prefix.from_url(name).url)
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
            return S3Prefix.from_url(text)
        path = Path(text).expanduser()
        if self.is_local or path.is_absolute():
            return LocalFolder(Path(self.name) / path if self.is_local else path)
        return S3Prefix.from_url(f"{self.name}/{path.as_posix()}")

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
