"""A PostgreSQL database under a storage root: dumped there every few minutes, restored from there by a new machine."""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
from pathlib import Path

import sqlalchemy

from mcrnn.errors import UserError
from mcrnn.storage.location import Location

KEPT = 12
"""dumps: an hour of them"""


class Backup:
    """Dumps of one database in one folder.

    Args:
        database: URL of the database.
        folder: of the dumps.
    """

    def __init__(self, database: str, folder: Location) -> None:
        self.url, self.folder = sqlalchemy.make_url(database), folder

    def dumps(self) -> list[str]:
        """Their names, the newest first."""
        return sorted((key for key in self.folder.sizes() if key.endswith(".dump")), reverse=True)

    def dump(self) -> str:
        """Write a dump and remove the oldest; returns its name.

        Raises:
            UserError: the database or the folder cannot be used.
        """
        name = f"mlflow-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}.dump"
        with tempfile.TemporaryDirectory(prefix="mcrnn-dump-") as place:
            file = Path(place) / name
            self._run("pg_dump", "--format=custom", f"--file={file}")
            self.folder.write(name, file.read_bytes())
        for old in self.dumps()[KEPT:]:
            self.folder.delete(old)
        return name

    def restore(self) -> str | None:
        """Fill an empty database from the newest dump that is whole; returns its name, None where nothing was done.

        Raises:
            UserError: the database or the folder cannot be used, or no dump is whole.
        """
        names = self.dumps()
        if not names or not self._is_empty():
            return None
        trouble = ""
        for name in names:
            with tempfile.TemporaryDirectory(prefix="mcrnn-dump-") as place:
                file = Path(place) / name
                file.write_bytes(self.folder.read(name))
                try:
                    self._run("pg_restore", "--no-owner", "--exit-on-error", "--single-transaction", str(file), to=True)
                except UserError as error:
                    trouble = str(error)
                    continue
                return name
        raise UserError(f"no dump in '{self.folder.url}' can be restored; the last: {trouble}")

    def _is_empty(self) -> bool:
        engine = sqlalchemy.create_engine(self.url)
        try:
            return not sqlalchemy.inspect(engine).get_table_names()
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise UserError(f"the database cannot be used: {_reason(error)}") from None
        finally:
            engine.dispose()

    def _run(self, program: str, *arguments: str, to: bool = False) -> None:
        """One of PostgreSQL's programs; where and who go by the environment, which other users do not see."""
        url = self.url
        known = {
            "PGHOST": url.host,
            "PGPORT": str(url.port) if url.port else None,
            "PGUSER": url.username,
            "PGPASSWORD": url.password,
            "PGDATABASE": url.database,
        }
        target = [f"--dbname={url.database}"] if to else []
        try:
            done = subprocess.run(
                [program, *target, *arguments],
                env=os.environ | {key: str(value) for key, value in known.items() if value},
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise UserError(f"{program} is not installed (Debian: apt-get install postgresql-client)") from None
        if done.returncode:
            raise UserError(f"{program} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else '?'}")


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
