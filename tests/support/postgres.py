"""A real PostgreSQL on loopback, started from Debian's package."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.processes import free_port


def programs() -> Path | None:
    """Where its programs are, None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    here = shutil.which("initdb")
    return Path(here).parent if here else None


def create_database(url: str, name: str) -> str:
    """Create a database on the server of another one.

    Args:
        url: URL of the other one.
        name: name of the new one.

    Returns:
        Its URL.
    """
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{url.rsplit('/', 1)[0]}/{name}"


class PostgresServer:
    """A server in a folder of its own."""

    def __init__(self, programs: Path, folder: Path | None = None) -> None:
        self.programs = programs
        self.folder = folder or Path(tempfile.mkdtemp(prefix="mcrnn-postgres-", dir="/tmp"))
        self.folder.mkdir(exist_ok=True)
        self.port = free_port()
        (self.folder / "password").write_text("secret")
        if os.geteuid() == 0:  # which PostgreSQL refuses
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", "mcrnn", "-A", "scram-sha-256", "--pwfile", f"{self.folder}/password")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://mcrnn:secret@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        return int((self.folder / "data/postmaster.pid").read_text().splitlines()[0])

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        log = str(self.folder / "log")
        self._run("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-o", options, "-l", log)

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "-w", "-D", str(self.folder / "data"), "-m", mode)

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # the test has stopped it
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run(
            [str(self.programs / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **user,  # type: ignore[call-overload]
        )
