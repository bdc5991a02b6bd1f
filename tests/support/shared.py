"""What is started once for all tests, whichever of the test processes needs it first.

The first that needs a service starts it under a lock, and writes down where it is in a folder of the session. The
process that began the session, the controller of the others, stops the services at its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.commands import start_server
from tests.support.fork_server import launcher
from tests.support.postgres import PostgresServer, create_database
from tests.support.processes import free_port
from tests.support.ray_cluster import RAY_WITH_PYTHON

FOLDER_VARIABLE = "MCRNN_TESTS_SHARED"
"""This environment variable leads test processes to the folder of their session."""


def folder() -> Path:
    """Return the folder of this session: a short path, for sockets of Ray's are below it."""
    return Path(os.environ[FOLDER_VARIABLE])


def open_folder() -> None:
    """Begin a session, in the process that is its controller."""
    os.environ[FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="mcrnn-", dir="/tmp")
    folder().chmod(0o711)  # PostgreSQL runs as a user of its own.


def close_folder() -> None:
    """End the session."""
    stop_all(folder())


def stop_all(place: Path) -> None:
    """Stop what was started in the folder of a session, and remove the folder."""
    for file in place.glob("*.json"):
        content = json.loads(file.read_text())
        if content.get("group", os.getpgrp()) != os.getpgrp():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(content["group"], content.get("signal", signal.SIGKILL))
    shutil.rmtree(place, ignore_errors=True)


def once(name: str, start: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `start` returned, in whichever test process it was called.

    Args:
        name: of the service.
        start: starts it; returns where it is, as "group" the process group that is to be killed at the end, and as
            "signal" by which signal.
    """
    with (folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder() / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(start()))
        return json.loads(file.read_text())


def owner() -> int:
    """Return the process id of the controller of this session, which outlives its test processes."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


PROJECT = Path(__file__).parent.parent.parent


def command_server() -> Path:
    """Return the socket of the server that forks commands; it starts with the first test that needs it."""
    address = folder() / "commands"

    def start() -> dict[str, Any]:
        return {"group": start_server(address, owner(), PROJECT).pid}

    once("command_server", start)
    return address


def mlflow_database() -> Path:
    """Return an SQLite database as MLflow makes it, for tests to copy: making one takes seconds."""
    file = folder() / "mlflow.db"

    def start() -> dict[str, Any]:
        from mcrnn.tracking.mlflow_client import client_of

        client_of(f"sqlite:///{file}").search_experiments()
        return {}

    once("mlflow", start)
    return file


def postgres(programs: Path) -> str:
    """Return the URL of a new database of the PostgreSQL server.

    Args:
        programs: where its programs are.
    """

    def start() -> dict[str, Any]:
        server = PostgresServer(programs, folder() / "postgres")
        return {"url": server.url, "group": server.pid, "signal": signal.SIGQUIT}

    return create_database(once("postgres", start)["url"], f"test_{secrets.token_hex(6)}")


RAY_CPUS = 4
"""These may be more than the machine has: searches of two test processes are not to wait for each other."""


def ray_address(name: str = "ray") -> str:
    """Return the address of a Ray of one node, without authentication, whose workers are forked as commands are.

    Workers have the environment of the test that asks for it first. Tests that need another one give it another name.
    """
    command_server()
    return once(name, lambda: _start_ray(name))["address"]


def _start_ray(name: str) -> dict[str, Any]:
    python = str(launcher(command_server()))
    place = folder() / name
    place.mkdir()
    port = free_port()
    log = (folder() / f"{name}.log").open("wb")
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", RAY_WITH_PYTHON, python, "start", "--head", "--block"),
            *("--node-ip-address", "127.0.0.1"),
            *("--port", str(port), "--num-cpus", str(RAY_CPUS), "--include-dashboard", "false"),
            *("--temp-dir", str(place), "--min-worker-port", "0", "--max-worker-port", "0"),
            *("--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())),
        ],
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=log,
        stderr=log,
        cwd=folder(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    try:
        while b"Ray runtime started" not in (folder() / f"{name}.log").read_bytes():
            assert process.poll() is None, (folder() / f"{name}.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    return {"address": f"127.0.0.1:{port}", "group": process.pid}
