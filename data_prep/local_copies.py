"""Where remote sources are, and copies of them in the temporary folder for formats that are read from a disk only."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from mcrnn.errors import UserError, first_line
from mcrnn.storage.s3 import S3_SCHEME, filesystem


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        UserError: the package for it is not installed.
    """
    if url.startswith(S3_SCHEME):
        return filesystem(), url.removeprefix(S3_SCHEME)
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url, **options_of(url))
    except (ImportError, ValueError) as error:
        raise UserError(f"'{url}' cannot be read: {first_line(error)}") from None


def options_of(url: str) -> dict[str, Any]:
    """Return the options of fsspec for a URL: web servers get the login that ~/.netrc has for them."""
    return {"client_kwargs": {"trust_env": True}} if url.startswith(("http://", "https://")) else {}


@functools.lru_cache(maxsize=256)
def local_copy(url: str) -> str:
    """Copy a remote file to the temporary folder (TMPDIR), and return the path of the copy.

    Each process makes its own, and deletes it when it ends.
    """
    files, path = filesystem_of(url)
    name = f"mcrnn-{os.getpid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}{Path(url).suffix}"
    target = os.path.join(tempfile.gettempdir(), name)
    atexit.register(_remove, target, os.getpid())
    files.get_file(path, target)
    return target


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:  # and not in a fork of it
        with contextlib.suppress(OSError):
            os.remove(path)
