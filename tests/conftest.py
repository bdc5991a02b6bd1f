"""What the tests share: one tiny store for the whole suite, and commands run as a user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_prep.navier_stokes import generate
from mcrnn.fields import FieldStore

PROJECT = Path(__file__).parent.parent
CommandRunner = Callable[..., subprocess.CompletedProcess[str]]

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on, or touches, what the developer's shell points to."""
    for name in ("MCRNN_STORAGE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def _built_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    generate("tiny.zarr", train=6, val=3, test=4, seed=1, frames=14, resolution=16, storage=str(root))
    return root / "tiny.zarr"


@pytest.fixture
def root(tmp_path: Path, _built_store: Path) -> Path:
    """A storage root that holds data/tiny.zarr: 6, 3 and 4 samples of 14 frames of 16 x 16 vorticity."""
    shutil.copytree(_built_store, tmp_path / "data" / "tiny.zarr")
    return tmp_path


@pytest.fixture
def store_path(root: Path) -> Path:
    """The tiny store, a copy that the test may damage."""
    return root / "data" / "tiny.zarr"


@pytest.fixture
def store(store_path: Path) -> FieldStore:
    """The tiny store, opened."""
    return FieldStore.open(store_path)


@pytest.fixture
def command(root: Path) -> CommandRunner:
    """Run `python -m MODULE ARGUMENTS...` with the root as storage and as current folder."""

    def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=root,
            env=os.environ | {"MCRNN_STORAGE": str(root), "COLUMNS": "120"} | environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return run
