"""S3 through s3fs, with its errors in words that a user can act on."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcrnn.errors import UserError
from mcrnn.storage.location import Location
from mcrnn.storage.s3_errors import ATTEMPTS

if TYPE_CHECKING:
    from zarr.abc.store import Store


S3_SCHEME = "s3://"
TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}


def filesystem(asynchronous: bool = False) -> Any:
    """The file system of this process; made where it is used, for it does not survive a fork."""
    import s3fs

    return s3fs.S3FileSystem(
        asynchronous=asynchronous,
        use_listings_cache=False,
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None,
        config_kwargs={"retries": {"max_attempts": ATTEMPTS, "mode": "standard"}, **TIMEOUTS},
    )


@functools.cache
def filesystem_for_zarr() -> Any:
    """One for Zarr's own event loop, which nobody else would close at the end of the process."""
    from zarr.core.sync import sync

    files = filesystem(asynchronous=True)

    def close() -> None:
        with contextlib.suppress(Exception):
            sync(files._s3.close(), timeout=5)

    atexit.register(close)
    return files


@dataclass(frozen=True)
class S3Prefix:
    """A prefix of a bucket of S3, or of any service that speaks its protocol."""

    bucket_and_prefix: str

    @property
    def url(self) -> str:
        return S3_SCHEME + self.bucket_and_prefix

    @property
    def _files(self) -> Any:

        return filesystem()

    def _key(self, key: str) -> str:
        return f"{self.bucket_and_prefix}/{key}"

    def child(self, name: str) -> Location:
        return S3Prefix(f"{self.bucket_and_prefix}/{name.strip('/')}")

    def read(self, key: str) -> bytes:
        from mcrnn.storage.retry import answered

        return answered(self.url, lambda: self._files.cat_file(self._key(key)))

    def write(self, key: str, data: bytes) -> None:
        from mcrnn.storage.retry import answered

        answered(self.url, lambda: self._files.pipe_file(self._key(key), data))

    def create(self, key: str, data: bytes) -> bool:
        from mcrnn.storage.retry import answered

        try:
            answered(self.url, lambda: self._files.pipe_file(self._key(key), data, mode="create"))
        except FileExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        from mcrnn.storage.retry import answered

        name = self._key(key).split("/", 1)[1]
        answered(self.url, lambda: self._files.call_s3("delete_object", Bucket=self._bucket, Key=name))

    @property
    def _bucket(self) -> str:
        return self.bucket_and_prefix.split("/", 1)[0]

    def sizes(self) -> dict[str, int]:
        from mcrnn.storage.retry import answered

        found = answered(self.url, lambda: self._files.find(self.bucket_and_prefix, detail=True))
        start = len(self.bucket_and_prefix) + 1
        return {path[start:]: entry["size"] for path, entry in found.items() if len(path) > start}

    def clear(self) -> None:
        from mcrnn.storage.retry import answered

        keys = [self._key(key) for key in self.sizes()]
        if keys:
            answered(self.url, lambda: self._files.rm(keys))

    def zarr_store(self) -> Store:
        from zarr.storage import FsspecStore

        return FsspecStore(filesystem_for_zarr(), read_only=True, path=self.bucket_and_prefix)


def _s3(url: str) -> S3Prefix:
    prefix = url.removeprefix(S3_SCHEME).rstrip("/")
    if not url.startswith(S3_SCHEME) or not prefix:
        raise UserError(f"'{url}' is neither a folder nor a URL of the form s3://bucket/prefix")
    return S3Prefix(prefix)
