"""The tracking server of a cluster: MLflow with a database, artifacts on object storage, and passwords.

    python cluster/mlflow_server.py --database postgresql://USER:PASSWORD@HOST/NAME

It listens on this machine's address in the cluster, answers only to known host names and users, and is started again
when it dies. A PostgreSQL database is dumped below the storage root every few minutes. If the database is empty and
there is a dump, it is restored first, so that a new machine continues the work of one that was lost.

MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD name the administrator. Clients set the same two variables, with
these values or those of a user that the administrator has created.
"""

from __future__ import annotations

import configparser
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Annotated

import sqlalchemy
import typer

sys.path.insert(0, str(Path(__file__).parent.parent))  # the file is run by its path, also where nothing is installed

from cluster.backup import Backup, first_line
from mcrnn.cli import StorageOption, main
from mcrnn.errors import UserError
from mcrnn.passwords import mask_passwords
from mcrnn.storage.location import check
from mcrnn.storage.retry import print_warning
from mcrnn.storage.root import Storage

DATABASE = "MCRNN_MLFLOW_DATABASE"
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
LEAST_PASSWORD = 12
"""Least number of characters of the administrator's password."""
SECONDS_TO_START = 120.0
SECONDS_BEFORE_RESTART = 2.0


class Server:
    """The MLflow server, as a process of its own.

    Args:
        database: URL of the database with runs, models and users.
        artifacts: URI below which artifacts are kept; clients reach them through the server.
        host: Address to listen on.
        port: Port to listen on.
        names: Host names by which clients may call the server, in addition to its address.
    """

    def __init__(self, database: str, artifacts: str, host: str, port: int, names: list[str]) -> None:
        self.url = f"http://{host}:{port}"
        hosts = {host, "localhost", "127.0.0.1", *names}
        self.arguments = [
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
            *("--host", host, "--port", str(port), "--workers", "2"),
            *("--serve-artifacts", "--artifacts-destination", artifacts),
            *("--allowed-hosts", ",".join(sorted({*hosts, *(f"{name}:{port}" for name in hosts)}))),
        ]
        self.folder = tempfile.TemporaryDirectory(prefix="mcrnn-mlflow-")
        self.environment = os.environ | {
            "MLFLOW_BACKEND_STORE_URI": database,  # no argument, because every user of the machine sees arguments
            "MLFLOW_AUTH_CONFIG_PATH": str(self._write_configuration(database)),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for jobs that nobody sends
        }
        self.environment.pop("MLFLOW_TRACKING_URI", None)  # it may name this very server
        self.process: subprocess.Popen[bytes] | None = None

    def _write_configuration(self, database: str) -> Path:
        """Write the configuration of MLflow's authentication to a file that only this user can read."""
        config = configparser.ConfigParser(interpolation=None)
        config["mlflow"] = {
            "default_permission": "MANAGE",  # every user may change all runs: a team shares its cluster
            "database_uri": database,
            "admin_username": os.environ[USER],
            "admin_password": os.environ[PASSWORD],
            # check a password once a minute: hashing it at every request would take longer than the request itself
            "auth_cache_ttl_seconds": "60",
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        path = Path(self.folder.name) / "auth.ini"
        path.touch(mode=0o600)
        with path.open("w") as file:
            config.write(file)
        return path

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            UserError: It ends, or does not answer within `SECONDS_TO_START`.
        """
        self.process = subprocess.Popen(self.arguments, env=self.environment, stdout=sys.stderr, start_new_session=True)
        deadline = time.monotonic() + SECONDS_TO_START
        while not self.answers():
            if self.process.poll() is not None:
                raise UserError("the tracking server ended before it answered; its own messages are above")
            if time.monotonic() > deadline:
                raise UserError(f"the tracking server does not answer at {self.url}")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Return whether the server answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """End the server and its worker processes."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def private_address() -> str:
    """Return the address of this machine in its own network."""
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def serve(
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"Database, postgresql://USER:PASSWORD@HOST/NAME; by default that of {DATABASE}, which keeps the "
            "password out of the list of processes.",
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where artifacts are kept; by default mlartifacts/ below the storage root."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; by default this machine's private address.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Host name by which clients may call the server. Repeatable.")
    ] = None,
    dump_every: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Seconds between dumps of PostgreSQL below the storage root; 0 for no dumps."
        ),
    ] = 300.0,
    storage: StorageOption = None,
) -> None:
    """Run the MLflow tracking server of a cluster until SIGTERM or Ctrl-C."""
    root = Storage.open(storage)
    database = database or os.environ.get(DATABASE)
    if not database:
        raise UserError(f"give --database, or set {DATABASE}, to postgresql://USER:PASSWORD@HOST/NAME")
    _check_database(database)
    for variable in (USER, PASSWORD):
        if not os.environ.get(variable):
            raise UserError(f"set {variable}: the tracking server is never open to everybody")
    if len(os.environ[PASSWORD]) < LEAST_PASSWORD:
        raise UserError(f"{PASSWORD} needs at least {LEAST_PASSWORD} characters")
    check(root.location("backups"))
    is_dumped = dump_every and database.startswith("postgresql")
    backup = Backup(database, root.location("backups")) if is_dumped else None
    if backup is not None and (restored := backup.restore()):
        print(f"restored {root.show(backup.folder)}/{restored}", flush=True)

    from mcrnn.tracking.mlflow_client import artifact_folder

    artifacts = artifacts or artifact_folder(root)
    server = Server(database, artifacts, host or private_address(), port, name or [])
    signals: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _frame: signals.append(number))
    try:
        server.start()
        print(f"tracking server: {server.url}, artifacts in {artifacts}", flush=True)
        _watch(server, backup, dump_every, signals)
    finally:
        server.stop()
        if backup is not None and signals:
            _dump(backup)


def _check_database(database: str) -> None:
    """Connect to the database once.

    Raises:
        UserError: It cannot be used; the message has no password in it.
    """
    try:
        engine = sqlalchemy.create_engine(database)
        with engine.connect():
            pass
        engine.dispose()
    except Exception as error:
        reason = mask_passwords(first_line(error))
        raise UserError(f"the database cannot be used: {reason}; it is postgresql://USER:PASSWORD@HOST/NAME") from None


def _watch(server: Server, backup: Backup | None, seconds: float, signals: list[int]) -> None:
    """Start the server again when it dies, and dump the database, until a signal arrives.

    Args:
        server: The server.
        backup: The dumps of its database; None for no dumps.
        seconds: Time between dumps.
        signals: The signals that have arrived.
    """
    dumped = time.monotonic()
    while not signals:
        time.sleep(0.2)
        if server.process is not None and server.process.poll() is not None and not signals:
            print_warning("the tracking server died and is started again")
            time.sleep(SECONDS_BEFORE_RESTART)
            try:
                server.start()
            except UserError as error:
                print_warning(str(error))
        if backup is not None and time.monotonic() - dumped >= seconds:
            _dump(backup)
            dumped = time.monotonic()


def _dump(backup: Backup) -> None:
    """Dump the database, or warn: a dump that fails does not end the server."""
    try:
        backup.dump()
    except UserError as error:
        print_warning(f"the database was not dumped: {error}; tried again later")


if __name__ == "__main__":
    main(serve)
