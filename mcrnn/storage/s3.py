"""S3, and services that speak its protocol, through s3fs.

The standard variables say where the service is and who asks: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_PROFILE. s3fs is imported only where it is used.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mcrnn.errors import UserError
from mcrnn.storage import s3_errors
from mcrnn.storage.location import Location, NoConditionalWritesError
from mcrnn.storage.retry import PATIENCE_UNDER_WAY, Outage, with_retries

if TYPE_CHECKING:
    from zarr.abc.store import Store

S3_SCHEME = "s3://"
TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}
"""Timeouts of a request, in seconds."""

Result = TypeVar("Result")

_outage = Outage("S3", meanwhile=f"asked again for {PATIENCE_UNDER_WAY / 60:.0f} min", afterwards="work goes on")


def s3_request(url: str, request: Callable[[], Result]) -> Result:
    """Make a request to S3, and wait for the service where this process has enabled retries.

    Args:
        url: URL of the prefix, for messages.
        request: Makes the request through s3fs, boto3 or Zarr; it may be called several times.

    Returns:
        The result of the request.

    Raises:
        UserError: The service refuses the request or stays away; the message names the cause.
        FileNotFoundError: There is no such key.
    """

    def translated() -> Result:
        with s3_errors.translate_errors(url):
            return request()

    return with_retries(translated, _outage)


def filesystem(asynchronous: bool = False) -> Any:
    """Return the s3fs file system for the current environment.

    It is asked for at every use, because it does not survive a fork; s3fs keeps one per process and set of options.
    """
    import s3fs

    return s3fs.S3FileSystem(
        asynchronous=asynchronous,
        use_listings_cache=False,
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None,
        max_concurrency=1,  # otherwise s3fs asks for the size of each object before it reads it
        config_kwargs={"retries": {"max_attempts": s3_errors.ATTEMPTS, "mode": "standard"}, **TIMEOUTS},
    )


@functools.cache
def filesystem_for_zarr() -> Any:
    """Return the file system that Zarr uses on its own event loop; it is closed when the process ends."""
    from zarr.core.sync import sync

    files = filesystem(asynchronous=True)

    def close() -> None:
        with contextlib.suppress(Exception):
            sync(files._s3.close(), timeout=5)

    atexit.register(close)  # neither s3fs nor Zarr closes it, and aiohttp would complain at exit
    return files


@dataclass(frozen=True)
class S3Prefix:
    """A prefix in a bucket, as a `Location`.

    Attributes:
        bucket_and_prefix: Bucket and prefix without the scheme, such as `lab/mcrnn/data`.
    """

    bucket_and_prefix: str

    @classmethod
    def from_url(cls, url: str) -> S3Prefix:
        """Read a URL such as `s3://bucket/prefix`.

        Raises:
            UserError: The URL is of another kind or names no bucket.
        """
        prefix = url.removeprefix(S3_SCHEME).rstrip("/")
        if not url.startswith(S3_SCHEME) or not prefix:
            raise UserError(f"'{url}' is neither a folder nor a URL of the form s3://bucket/prefix")
        return cls(prefix)

    @property
    def url(self) -> str:
        return S3_SCHEME + self.bucket_and_prefix

    @property
    def _files(self) -> Any:
        return filesystem()

    def _path(self, key: str) -> str:
        """Return bucket and full key of an object, as s3fs takes them."""
        return f"{self.bucket_and_prefix}/{key}"

    def _named(self, key: str) -> dict[str, str]:
        """Return bucket and full key of an object, as the service takes them."""
        bucket, name = self._path(key).split("/", 1)
        return {"Bucket": bucket, "Key": name}

    def child(self, name: str) -> Location:
        return S3Prefix(f"{self.bucket_and_prefix}/{name.strip('/')}")

    def read(self, key: str) -> bytes:
        return s3_request(self.url, lambda: self._files.cat_file(self._path(key)))

    def read_with_age(self, key: str) -> tuple[bytes, float]:
        import email.utils  # only here, because it takes a while to import

        content, answer = self._get(key)
        now = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return content, max(0.0, (now - answer["LastModified"]).total_seconds())

    def write(self, key: str, data: bytes) -> None:
        s3_request(self.url, lambda: self._files.pipe_file(self._path(key), data))

    def read_version(self, key: str) -> tuple[bytes, str]:
        content, answer = self._get(key)
        return content, answer["ETag"]

    def _get(self, key: str) -> tuple[bytes, dict[str, Any]]:
        """Return the content of an object, with the answer of the service, of which s3fs itself returns nothing."""
        from fsspec.asyn import sync

        files = self._files

        async def get() -> tuple[bytes, dict[str, Any]]:
            answer = await files._call_s3("get_object", **self._named(key))
            async with answer["Body"] as body:
                return await body.read(), answer

        return s3_request(self.url, lambda: sync(files.loop, get))

    def create(self, key: str, data: bytes) -> str | None:
        return self._write_if(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        return self._write_if(key, data, IfMatch=version)

    def _write_if(self, key: str, data: bytes, **condition: str) -> str | None:
        """Write an object under a condition, and return its version; None if the condition does not hold."""

        def put() -> str | None:
            try:
                answer = self._files.call_s3("put_object", **self._named(key), Body=data, **condition)
            except Exception as error:
                code = s3_errors.code_of(error)
                if code in s3_errors.CONDITION_FAILED:
                    return None
                if code in s3_errors.NOT_IMPLEMENTED:
                    raise NoConditionalWritesError(f"{condition}: {code}") from None
                raise
            return answer["ETag"]

        return s3_request(self.url, put)

    def delete(self, key: str) -> None:
        # rm of s3fs first asks whether there is such an object, and fails where there is none
        s3_request(self.url, lambda: self._files.call_s3("delete_object", **self._named(key)))

    def sizes(self) -> dict[str, int]:
        found = s3_request(self.url, lambda: self._files.find(self.bucket_and_prefix, detail=True))
        start = len(self.bucket_and_prefix) + 1
        return {path[start:]: entry["size"] for path, entry in found.items() if len(path) > start}

    def sizes_of(self, keys: Collection[str]) -> dict[str, int]:
        if len(keys) == 1:
            (key,) = keys
            try:
                found = s3_request(self.url, lambda: self._files.info(self._path(key)))
            except FileNotFoundError:
                return {}
            return {key: found["size"]} if found["type"] == "file" else {}
        sizes = self.sizes()
        return {key: sizes[key] for key in keys if key in sizes}

    def folders(self) -> list[str]:
        try:
            found = s3_request(self.url, lambda: self._files.ls(self.bucket_and_prefix, detail=True))
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "directory")

    def clear(self) -> None:
        paths = [self._path(key) for key in self.sizes()]
        if paths:
            s3_request(self.url, lambda: self._files.rm(paths))

    def zarr_store(self) -> Store:
        from zarr.storage import FsspecStore

        return FsspecStore(filesystem_for_zarr(), read_only=True, path=self.bucket_and_prefix)
