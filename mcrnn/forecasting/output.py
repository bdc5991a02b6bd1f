"""Write forecasts as a NetCDF file or a Zarr group, local or on S3, completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcrnn.errors import UserError
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3_SCHEME, S3Prefix

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Output:
    """A file or group that is to be written.

    Attributes:
        name: the name that the user has given: a path relative to the current folder, or a URL on S3, which ends with
            .nc or .zarr.
    """

    name: str

    @property
    def is_zarr(self) -> bool:
        """Whether a Zarr group is written, and not a NetCDF file."""
        return self.name.rstrip("/").endswith(".zarr")

    @property
    def _on_s3(self) -> bool:
        return self.name.startswith(S3_SCHEME)

    @property
    def _path(self) -> Path:
        return Path(self.name).expanduser().resolve()

    @property
    def _parts(self) -> tuple[Location, str]:
        """The folder on S3, and the key of the file or the start of the keys of the group in it."""
        folder, _, key = self.name.rstrip("/").rpartition("/")
        return S3Prefix.from_url(folder), key

    def check(self, *, overwrite: bool) -> None:
        """Refuse a name that nothing can be written to, before any work is done.

        Raises:
            UserError: the ending is neither .nc nor .zarr, the folder is missing, or there is something of this name.
        """
        if not self.name.rstrip("/").endswith((".nc", ".zarr")):
            raise UserError(f"--out ends with .nc or .zarr, which says what is written, not '{self.name}'")
        if self._on_s3:
            folder, key = self._parts
            found = bool(folder.child(key).sizes() if self.is_zarr else folder.sizes_of([key]))
        else:
            if not self._path.parent.is_dir():
                raise UserError(f"there is no folder '{self._path.parent}' for '{self.name}'")
            found = self._path.exists()
        if found and not overwrite:
            raise UserError(f"there is a '{self.name}' already: give another --out, or replace it with --overwrite")

    def write(self, data: xr.Dataset) -> None:
        """Write a data set in place of what is there.

        Raises:
            UserError: it cannot be written.
        """
        if self._on_s3:
            with tempfile.TemporaryDirectory(prefix="mcrnn-forecast-") as temporary:
                self._upload(self._write(data, Path(temporary)))
            return
        # beside its place, so that it gets there in one step
        folder = self._path.parent / f".{self._path.name}.{uuid.uuid4().hex[:8]}.partial"
        try:
            folder.mkdir()
            written = self._write(data, folder)
            if self._path.is_dir():
                shutil.rmtree(self._path)
            os.replace(written, self._path)
        except OSError as error:
            raise UserError(f"cannot write '{self.name}': {error.strerror or error}") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, data: xr.Dataset, folder: Path) -> Path:
        path = folder / Path(self.name.rstrip("/")).name
        if self.is_zarr:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Zarr warns of what its specification does not have yet
                data.to_zarr(path, mode="w", consolidated=True)
        else:
            compressed = {name: {"zlib": True, "complevel": 1} for name in data.data_vars}
            data.to_netcdf(path, engine="netcdf4", encoding=compressed)
        return path

    def _upload(self, path: Path) -> None:
        folder, key = self._parts
        if not self.is_zarr:
            folder.write(key, path.read_bytes())
            return
        group = folder.child(key)
        group.clear()
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        # the root last: without it there is no group for readers
        for file in sorted(files, key=lambda file: file.parent == path):
            group.write(file.relative_to(path).as_posix(), file.read_bytes())
