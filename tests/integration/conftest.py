"""What the integration tests share: a Ray folder, the storage root, a training's file, and a lab."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mcrnn.storage.root import Storage
from tests.support.lab import Lab
from tests.support.s3_server import S3Server
from tests.support.training_runs import CONTENT


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


@pytest.fixture
def file(root: Path) -> str:
    """The file of a training, in the root."""
    (root / "run.yaml").write_text(yaml.safe_dump(CONTENT))
    return "run.yaml"


@pytest.fixture
def lab(s3: S3Server, postgres_url: str, postgres_folder: Path) -> Iterator[Lab]:
    """A lab with an empty database and nothing started yet."""
    folder = Path(tempfile.mkdtemp(prefix="mcrnn-lab-", dir="/tmp"))
    lab = Lab(folder, s3, postgres_url, postgres_folder)
    yield lab
    lab.close()
    shutil.rmtree(folder, ignore_errors=True)
