"""Dump a PostgreSQL database below the storage root, and restore it from there on a new machine."""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
from pathlib import Path

import sqlalchemy

from mcrnn.errors import UserError
from mcrnn.storage.location import Location

DUMPS_KEPT = 12
"""Number of dumps that are kept: those of one hour at an interval of five minutes."""


class Backup:
    """The dumps of one database in one folder.

    Args:
        database: URL of the database, postgresql://USER:PASSWORD@HOST/NAME.
        folder: The folder that holds the dumps.
    """

    def __init__(self, database: str, folder: Location) -> None:
        self.url, self.folder = sqlalchemy.make_url(database), folder

    def dumps(self) -> list[str]:
        """Return the names of the dumps, the newest first."""
        return sorted((key for key in self.folder.sizes() if key.endswith(".dump")), reverse=True)

    def dump(self) -> str:
        """Dump the database and delete all but the newest `DUMPS_KEPT` dumps.

        Returns:
            The name of the new dump.

        Raises:
            UserError: The database or the folder cannot be used.
        """
        name = f"mlflow-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}.dump"
        with tempfile.TemporaryDirectory(prefix="mcrnn-dump-") as folder:
            file = Path(folder) / name
            self._run("pg_dump", "--format=custom", f"--file={file}")
            self.folder.write(name, file.read_bytes())
        for old in self.dumps()[DUMPS_KEPT:]:
            self.folder.delete(old)
        return name

    def restore(self) -> str | None:
        """Restore an empty database from the newest dump that is complete.

        Returns:
            The name of the dump; None if there is no dump or the database is not empty, so that nothing was done.

        Raises:
            UserError: The database or the folder cannot be used, or no dump is complete.
        """
        names = self.dumps()
        if not names or not self._is_empty():
            return None
        reason = ""
        for name in names:
            with tempfile.TemporaryDirectory(prefix="mcrnn-dump-") as folder:
                file = Path(folder) / name
                file.write_bytes(self.folder.read(name))
                try:
                    self._run(
                        "pg_restore",
                        "--no-owner",
                        "--exit-on-error",
                        "--single-transaction",
                        f"--dbname={self.url.database}",
                        str(file),
                    )
                except UserError as error:
                    reason = str(error)
                    continue
                return name
        raise UserError(f"no dump in '{self.folder.url}' can be restored; the last: {reason}")

    def _is_empty(self) -> bool:
        engine = sqlalchemy.create_engine(self.url)
        try:
            return not sqlalchemy.inspect(engine).get_table_names()
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise UserError(f"the database cannot be used: {first_line(error)}") from None
        finally:
            engine.dispose()

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs.

        Host, user and password are passed in the environment, because every user of the machine sees arguments.

        Raises:
            UserError: The program is not installed or fails.
        """
        url = self.url
        variables = {
            "PGHOST": url.host,
            "PGPORT": str(url.port) if url.port else None,
            "PGUSER": url.username,
            "PGPASSWORD": url.password,
            "PGDATABASE": url.database,
        }
        try:
            done = subprocess.run(
                [program, *arguments],
                env=os.environ | {key: str(value) for key, value in variables.items() if value},
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise UserError(f"{program} is not installed (Debian: apt-get install postgresql-client)") from None
        if done.returncode:
            raise UserError(f"{program} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else '?'}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; SQLAlchemy adds several more."""
    return str(error).strip().splitlines()[0]
