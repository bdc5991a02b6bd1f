"""Where bytes live: one root folder under which stores, searches, runs and reports find their place.

Names given by a relative path are relative to the root; absolute paths are left alone. Under the root:
`data/` (stores), `searches/NAME/`, `runs/NAME/`, `reports/`, and by default MLflow's database and artifacts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mcrnn.errors import UserError


@dataclass(frozen=True)
class Storage:
    """The storage root. `Storage.open` finds it; `path` resolves names against it."""

    root: Path

    @classmethod
    def open(cls, root: str | None = None) -> Storage:
        """The root given, else MCRNN_STORAGE, else the current folder; it is created where it is missing.

        Raises:
            UserError: the root is a URL of object storage, or not a folder that can be written to.
        """
        name = root or os.environ.get("MCRNN_STORAGE") or "."
        path = _local(name)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot use '{name}' as storage: {error.strerror}") from None
        if not os.access(path, os.W_OK):
            raise UserError(f"cannot write to the storage folder '{path}'")
        return cls(path.resolve())

    def path(self, name: str | os.PathLike[str]) -> Path:
        """Where `name` lives: relative names under the root, absolute ones where they say.

        Raises:
            UserError: `name` is a URL of object storage.
        """
        return self.root / _local(os.fspath(name))

    def show(self, path: Path) -> str:
        """`path` as a user would type it: relative to the current folder where it is below it."""
        here = Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    @property
    def tracking_uri(self) -> str:
        """MLFLOW_TRACKING_URI where it is set, else the SQLite database under the root."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifact_root(self) -> str | None:
        """URI of MLflow's artifacts under the root; None where a tracking server decides."""
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return None
        return (self.root / "mlartifacts").as_uri()


def _local(name: str) -> Path:
    if "://" in name:
        raise UserError(f"'{name}' is a URL; stores and results are kept in local folders")
    return Path(name).expanduser()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
