"""Read the trials of a study in a database without Optuna, and without writing anything there."""

from __future__ import annotations

import json
import time
from typing import Any

from mcrnn.errors import UserError
from mcrnn.passwords import mask_passwords
from mcrnn.search.study_reader import SeenTrial, State
from mcrnn.storage.retry import ServiceUnavailableError

MASKED = "***"
"""What is recorded in place of a password."""
STUDY = "SELECT study_id FROM studies WHERE study_name = :name"
STUDY_ATTRIBUTES = "SELECT key, value_json FROM study_user_attributes WHERE study_id = :study"
TRIALS = "SELECT trial_id, number, state FROM trials WHERE study_id = :study ORDER BY number"
ATTRIBUTES = """
    SELECT attribute.trial_id, attribute.key, attribute.value_json
    FROM trial_user_attributes AS attribute JOIN trials USING (trial_id) WHERE trials.study_id = :study
"""
STEPS = """
    SELECT step.trial_id, MAX(step.step)
    FROM trial_intermediate_values AS step JOIN trials USING (trial_id) WHERE trials.study_id = :study
    GROUP BY step.trial_id
"""
FINGERPRINT = """
    SELECT
        (SELECT COUNT(*) FROM trials WHERE study_id = :study),
        (SELECT COUNT(*) FROM trials WHERE study_id = :study AND state = 'RUNNING'),
        (SELECT COUNT(*) FROM trial_intermediate_values JOIN trials USING (trial_id) WHERE study_id = :study),
        (SELECT COUNT(*) FROM trial_user_attributes JOIN trials USING (trial_id) WHERE study_id = :study),
        (SELECT SUM(CAST(value_json AS INTEGER)) FROM trial_user_attributes JOIN trials USING (trial_id)
         WHERE study_id = :study AND key = 'target')
"""
"""Query for numbers that change with every start, pause and end of a trial, and cost a fraction of reading all."""
QUICK = 0.1
"""Seconds of a reading after which the next one may follow at once. A longer one has to be a twentieth of the time, so
that the database of a large search is not kept busy by whoever watches it."""
CONNECT_TIMEOUT = 10
"""Seconds in which PostgreSQL has to take a connection; the system would wait for minutes for a host that is away."""


class DatabaseReader:
    """Reads a study from a database, as a `StudyReader`.

    Args:
        url: URL of the database. A password that was masked in it is left to PGPASSWORD or ~/.pgpass.
        name: name of the study.
        has_answered: whether the database has answered with this URL, so that a connection which fails is an outage
            and no mistake of the user.

    Raises:
        UserError: the URL is of no known kind of database.
    """

    def __init__(self, url: str, name: str, *, has_answered: bool = False) -> None:
        import sqlalchemy

        self.trials: list[SeenTrial] = []
        self.attributes: dict[str, Any] = {}
        self.name = name
        self._has_answered = has_answered
        self._fingerprint: Any = None
        self._not_before = 0.0
        try:
            given = sqlalchemy.make_url(url)
            address = sqlalchemy.URL.create(
                given.drivername,
                given.username,
                None if given.password == MASKED else given.password,
                given.host,
                given.port,
                given.database,
                {key: value for key, value in given.query.items() if value != MASKED},
            )
            self._engine = sqlalchemy.create_engine(
                address,
                isolation_level="AUTOCOMMIT",
                poolclass=sqlalchemy.pool.NullPool,  # nobody closes a reader, and a listing makes many
                connect_args=_timeout(address),
            )
        except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
            raise UserError(f"search.storage: {mask_passwords(str(error))}") from None

    def refresh(self) -> None:
        """Read the study, if it has changed since the last look.

        Raises:
            UserError: the database cannot be used, or there is no such study.
            ServiceUnavailableError: the database has answered before, and does not answer now.
        """
        import sqlalchemy

        try:
            with self._engine.connect() as connection:
                study = connection.execute(sqlalchemy.text(STUDY), {"name": self.name}).scalar()
                if study is None:
                    raise UserError(f"the database has no study '{self.name}'")

                def rows(query: str) -> list[Any]:
                    return list(connection.execute(sqlalchemy.text(query), {"study": study}))

                started = time.monotonic()
                self._has_answered = True
                self.attributes = {key: json.loads(value) for key, value in rows(STUDY_ATTRIBUTES)}
                (fingerprint,) = rows(FINGERPRINT)
                if started < self._not_before or fingerprint == self._fingerprint:
                    return
                trials = {trial_id: SeenTrial(number, State[state]) for trial_id, number, state in rows(TRIALS)}
                for trial_id, key, value in rows(ATTRIBUTES):
                    if trial_id in trials:  # it may have been created between the queries
                        trials[trial_id].attributes[key] = json.loads(value)
                for trial_id, step in rows(STEPS):
                    if trial_id in trials:
                        trials[trial_id].last_step = step
        except sqlalchemy.exc.SQLAlchemyError as error:
            reason = mask_passwords(str(error).strip().splitlines()[0])
            is_away = isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
            # at the first look the same kind of error may be a wrong password or host
            raise (ServiceUnavailableError if is_away and self._has_answered else UserError)(
                f"search.storage: the database cannot be read ({type(error).__name__}: {reason}); a password is taken "
                "from PGPASSWORD or ~/.pgpass"
            ) from None
        took = time.monotonic() - started
        self._not_before = time.monotonic() + (20 * took if took > QUICK else 0.0)
        self._fingerprint = fingerprint
        for trial in trials.values():
            trial.has_changed()
        self.trials = list(trials.values())


def _timeout(address: Any) -> dict[str, int]:
    """Return the timeout as the driver takes it, unless the URL has one.

    Args:
        address: a `sqlalchemy.URL`.
    """
    takes_it = address.get_backend_name() == "postgresql" and address.get_driver_name() in ("psycopg", "psycopg2")
    return {"connect_timeout": CONNECT_TIMEOUT} if takes_it and "connect_timeout" not in address.query else {}
