"""What the tests share: one tiny store for the whole suite, and commands run as a user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data_prep.navier_stokes import generate
from mcrnn.data.store import FieldStore
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from tests.support.postgres import PostgresServer
from tests.support.postgres import programs as postgres_programs
from tests.support.s3_server import S3Server

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
    generate("tiny.zarr", train=6, val=3, test=4, seed=1, frames=14, resolution=16, workers=1, storage=str(root))
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
    return FieldStore.open(LocalFolder(store_path))


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


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with an empty bucket `lab`, to which the standard variables point."""
    import s3fs

    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    client = _s3_server.client()
    client.create_bucket(Bucket="lab")
    s3fs.S3FileSystem.clear_instance_cache()
    yield _s3_server
    _s3_server.fault = None
    s3fs.S3FileSystem.clear_instance_cache()
    while keys := client.list_objects_v2(Bucket="lab").get("Contents"):
        client.delete_objects(Bucket="lab", Delete={"Objects": [{"Key": k["Key"]} for k in keys]})
    client.delete_bucket(Bucket="lab")


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of its own; .ci/run installs it, elsewhere a missing one skips the test."""
    programs = postgres_programs()
    if programs is None:
        assert not os.environ.get("CI"), "PostgreSQL is not installed"
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    server = PostgresServer(programs)
    yield server
    server.remove()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder, wherever bytes can live: what holds for one must hold for all."""
    if request.param == "local":
        return LocalFolder(tmp_path / "place")
    request.getfixturevalue("s3")
    return S3Prefix("lab/place")
