"""What the integration tests share: a folder for a Ray of their own, and the storage root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcrnn.storage.root import Storage


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A short path (Ray's sockets allow 107 characters) for Ray's own files."""
    folder = Path(tempfile.mkdtemp(prefix="mcrnn-ray-", dir="/tmp"))
    os.environ["RAY_TMPDIR"] = str(folder)
    yield folder
    del os.environ["RAY_TMPDIR"]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def storage(root: Path) -> Storage:
    """The storage root, opened."""
    return Storage.open(str(root))
