"""What the tests share: one tiny store for the whole suite, and commands run as a user runs them."""

from __future__ import annotations

import os
import shutil
import sqlite3  # noqa: F401  (before xarray loads its readers: that of GRIB files may bring an older SQLite)
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # Threads that wait for each other would take the processors from other tests.

import torch

from data_prep.navier_stokes import generate
from mcrnn.data.store import FieldStore
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.postgres import PostgresServer
from tests.support.postgres import programs as postgres_programs
from tests.support.processes import Start
from tests.support.s3_server import S3Server

PROJECT = Path(__file__).parent.parent
CommandRunner = Callable[..., subprocess.CompletedProcess[str]]

torch.set_num_threads(1)


pytest_plugins = ["tests.support.live_report"]


def pytest_configure(config: pytest.Config) -> None:
    """Begin the session in which test processes share servers."""
    config.addinivalue_line("markers", "long(seconds): takes about so many seconds of `make test`, and starts early")
    if not hasattr(config, "workerinput"):
        shared.open_folder()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop these servers."""
    if not hasattr(config, "workerinput"):
        shared.close_folder()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, then the others that start Ray and MLflow, then the short ones.

    With `--dist worksteal` each test process is given an equal part of this list, without gaps, and one that has done
    its part takes over from the end of another's. So one process begins with the long tests, which wait a lot, while
    the others compute, and at the end only short tests are left, which all processes share.
    """

    def rank(item: pytest.Item) -> tuple[float, bool]:
        mark = item.get_closest_marker("long")
        return -mark.args[0] if mark is not None else 0.0, item.get_closest_marker("integration") is None

    items.sort(key=rank)


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
        words = ["-m", module, *map(str, arguments)]
        with_these = os.environ | {"MCRNN_STORAGE": str(root), "COLUMNS": "120"} | environment
        process = ForkedProcess(shared.command_server(), words, root, with_these)
        try:
            out, err = process.communicate(280)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.wait(), out, err)

    return run


@pytest.fixture
def interpreter(root: Path) -> CommandRunner:
    """The same in a Python of its own, which imports all anew."""

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


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Start commands with the root as storage, and as current folder; what still runs at the end is killed."""
    started: list[ForkedProcess] = []

    def run(module: str, *arguments: str, folder: Path = root, **environment: str) -> ForkedProcess:
        with_these = os.environ | {"MCRNN_STORAGE": str(root)} | environment
        process = ForkedProcess(shared.command_server(), ["-m", module, *arguments], folder, with_these)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.close()


@pytest.fixture
def database(root: Path) -> Path:
    """MLflow's database in the root, empty: making one takes seconds."""
    return Path(shutil.copy(shared.mlflow_database(), root / "mlflow.db"))


@pytest.fixture
def shared_ray(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a Ray that all tests share, to which the environment leads."""
    address = shared.ray_address()
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return address


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with an empty bucket `lab`, to which the standard variables point."""
    import s3fs
    from botocore.retries.standard import ExponentialBackoff

    # Clients of this process ask as often as ever, but they wait a twentieth of the time before they ask again.
    delay = ExponentialBackoff.delay_amount
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: delay(self, context) / 20)
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


@pytest.fixture(scope="session")
def postgres_folder() -> Path:
    """The folder of PostgreSQL's programs; .ci/run installs it, elsewhere a missing one skips the test."""
    programs = postgres_programs()
    if programs is None:
        assert not os.environ.get("CI"), "PostgreSQL is not installed"
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    return programs


@pytest.fixture
def postgres_url(postgres_folder: Path) -> str:
    """An empty database of the PostgreSQL server that all tests share."""
    return shared.postgres(postgres_folder)


@pytest.fixture(params=["postgresql", "sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database for studies: a real PostgreSQL, and SQLite, which differ in their types."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def postgres(postgres_folder: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own, which it may stop."""
    server = PostgresServer(postgres_folder)
    yield server
    server.remove()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder, wherever bytes can live: what holds for one must hold for all."""
    if request.param == "local":
        return LocalFolder(tmp_path / "place")
    request.getfixturevalue("s3")
    return S3Prefix("lab/place")
