"""Ray for the integration tests: a cluster of their own, on its own ports, in its own folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Start


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A short path (Ray's sockets allow 107 characters) for Ray's own files."""
    folder = Path(tempfile.mkdtemp(prefix="mcrnn-ray-", dir="/tmp"))
    os.environ["RAY_TMPDIR"] = str(folder)
    yield folder
    del os.environ["RAY_TMPDIR"]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Start commands with the root as storage and as current folder; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(module: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=root,
            env=os.environ | {"MCRNN_STORAGE": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
