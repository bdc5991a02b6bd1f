"""Copies of remote files in the temporary folder, for formats that are read from a disk only."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import tempfile
from pathlib import Path


@functools.lru_cache(maxsize=256)
def local_copy(url: str) -> str:
    """Copy a remote file to the temporary folder (TMPDIR), and return the path of the copy.

    Each process makes its own, and deletes it when it ends.
    """
    import fsspec

    from mcrnn.storage.s3 import S3_SCHEME, filesystem

    if url.startswith(S3_SCHEME):
        files, path = filesystem(), url.removeprefix(S3_SCHEME)
    else:
        files, path = fsspec.core.url_to_fs(url)
    name = f"mcrnn-{os.getpid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}{Path(url).suffix}"
    target = os.path.join(tempfile.gettempdir(), name)
    atexit.register(_remove, target, os.getpid())
    files.get_file(path, target)
    return target


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:  # and not in a fork of it
        with contextlib.suppress(OSError):
            os.remove(path)
