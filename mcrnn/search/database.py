"""The study in a database: Optuna's storage, with fewer queries, and patient where the database is away.

Optuna writes each value of a trial in a transaction of its own, and reads the trial again from each of its tables.
`Database` writes what is set of trials inside `written_together` in one transaction, and reads as
`mcrnn.search.database_rows` does. The tables and their content are Optuna's.

A call of Optuna's that finds the database away, or loses the connection to it, is made again by `PatientStorage`. The
transaction of the first call may have been committed all the same: then `Database` changes nothing in the second.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import NOT_FOUND_MSG, TrialModel, TrialParamModel, TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from mcrnn.errors import first_line
from mcrnn.passwords import mask_passwords
from mcrnn.search.database_rows import TrialQueries, distribution_of
from mcrnn.search.snapshot import without_garbage_collection
from mcrnn.storage.retry import PATIENCE_UNDER_WAY, Outage, ServiceUnavailableError, with_retries

MOST_LISTED = 1000
"""Most trials that a query lists. Where more are wanted, all trials from the first one of them on are read."""
ONE_TRIAL = TrialQueries(TrialModel.trial_id == sqlalchemy.bindparam("trial_id"))
NEWEST_TRIAL = TrialQueries(
    TrialModel.trial_id
    == sqlalchemy.select(sqlalchemy.func.max(TrialModel.trial_id))
    .where(TrialModel.study_id == sqlalchemy.bindparam("study_id"))
    .scalar_subquery()
)

_outage = Outage(
    "the study's database", meanwhile=f"asked again for {PATIENCE_UNDER_WAY / 60:.0f} min", afterwards="work goes on"
)


class PatientStorage:
    """A storage each call of which waits for the database where it is away and this process has enabled retries.

    Args:
        storage: Optuna's storage of a `Database`.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._storage, name)
        if not callable(member):
            return member
        return lambda *arguments, **options: with_retries(functools.partial(member, *arguments, **options), _outage)


class Database(RDBStorage):
    """Optuna's storage in a database.

    Args:
        url: URL of the database, as SQLAlchemy expects it.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        sqlalchemy.event.listen(self.engine, "handle_error", _translate_error)
        self._creating = False
        """Whether a trial was to be created, and it is not known whether it was."""
        self._changes: list[Callable[[Session], None]] | None = None
        """What is written at the end of `written_together`; None outside of it."""
        self._params: list[dict[str, Any]] = []
        """Rows of parameters that are written then."""

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Create a trial, or return the one that the call before has created, whose answer was lost.

        Args:
            study_id: the study's id.
            template_trial: what the trial has from the start; None for a trial that runs and has nothing yet.
        """
        newest = self._read(NEWEST_TRIAL, study_id=study_id) if self._creating and template_trial is None else []
        self._creating = True
        # every other trial that runs got its values directly after it was created
        is_created = newest and newest[0].state == TrialState.RUNNING and not newest[0].user_attrs
        trial = newest[0] if is_created else super()._create_new_trial(study_id, template_trial)
        self._creating = False
        return trial

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial, and its values where it has ended; returns whether it has this state now.

        Raises:
            UpdateFinishedTrialError: it has ended in another state.
        """
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            if self.get_trial(trial_id).state != state:
                raise
            return True

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial.

        Raises:
            KeyError: there is none with this id.
        """
        trials = self._read(ONE_TRIAL, trial_id=trial_id)
        if not trials:
            raise KeyError(NOT_FOUND_MSG)
        return trials[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Return some trials of a study, in the order of their ids.

        Args:
            study_id: the study's id.
            states: only trials in these states; None for all.
            included_trial_ids: ids of trials that are read.
            trial_id_greater_than: all trials with greater ids are read too.
        """
        listed = {each for each in included_trial_ids if each <= trial_id_greater_than}
        wanted = TrialModel.trial_id > trial_id_greater_than
        if len(listed) > MOST_LISTED:
            wanted = TrialModel.trial_id >= min(listed)
        elif listed:
            wanted = sqlalchemy.or_(wanted, TrialModel.trial_id.in_(listed))
        trials = self._read(TrialQueries(sqlalchemy.and_(TrialModel.study_id == study_id, wanted)))
        if not trials:
            self.get_study_name_from_id(study_id)  # raises KeyError where there is no such study
        return [
            trial
            for trial in trials
            if (trial._trial_id > trial_id_greater_than or trial._trial_id in listed)
            and (states is None or trial.state in states)
        ]

    def _read(self, queries: TrialQueries, **parameters: Any) -> list[FrozenTrial]:
        try:
            with without_garbage_collection(), self.engine.connect() as connection:
                # Without transactions: beginning and ending one would double the number of answers to wait for.
                return queries.read(connection.execution_options(isolation_level="AUTOCOMMIT"), **parameters)
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise optuna.exceptions.StorageInternalError("the database cannot be read") from error

    @contextlib.contextmanager
    def written_together(self) -> Iterator[None]:
        """Write what is set inside the block in one transaction at its end; nothing if the block raises.

        It holds for parameters, user attributes and intermediate values of trials. Reads inside the block do not see
        them. Only one thread may write into the storage at that time.
        """
        self._changes, self._params = [], []
        try:
            yield
            changes, params = self._changes, self._params
        finally:
            self._changes = None
        if changes or params:
            with_retries(lambda: self._write(changes, params), _outage)

    def _write(self, changes: list[Callable[[Session], None]], params: list[dict[str, Any]]) -> None:
        """Write parameters and other changes in one transaction, unless it has been made, so that they are there."""
        with _create_scoped_session(self.scoped_session, ignore_integrity_error=True) as session:
            for trial_id in {row["trial_id"] for row in params}:
                trial: Any = TrialModel.find_or_raise_by_id(trial_id, session)
                self.check_trial_is_updatable(trial_id, trial.state)
            if params:
                session.execute(sqlalchemy.insert(TrialParamModel.__table__), params)
            for change in changes:
                change(session)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        if self._changes is None:
            super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, previous_distribution)
            return
        previous = previous_distribution or self._previous_distribution(trial_id, param_name)
        if previous is not None:
            check_distribution_compatibility(previous, distribution)
        self._params.append(
            {
                "trial_id": trial_id,
                "param_name": param_name,
                "param_value": param_value_internal,
                "distribution_json": distribution_to_json(distribution),
            }
        )

    def _previous_distribution(self, trial_id: int, param_name: str) -> BaseDistribution | None:
        """Return the distribution of a parameter in a trial of the same study, None where none has it yet."""
        study_id = sqlalchemy.select(TrialModel.study_id).where(TrialModel.trial_id == trial_id).scalar_subquery()
        query = (
            sqlalchemy.select(TrialParamModel.distribution_json)
            .join(TrialModel)
            .where(TrialModel.study_id == study_id, TrialParamModel.param_name == param_name)
            .limit(1)
        )
        with _create_scoped_session(self.scoped_session) as session:
            found = session.execute(query).scalar()
        return None if found is None else distribution_of(found)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial."""
        if self._changes is None:
            super().set_trial_user_attr(trial_id, key, value)
            return
        table = TrialUserAttributeModel
        self._changes.append(lambda session: self._set_trial_attr_without_commit(session, table, trial_id, key, value))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set the value of a trial at a step."""
        if self._changes is None:
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)
            return
        self._changes.append(
            lambda session: self._set_trial_intermediate_value_without_commit(
                session, trial_id, step, intermediate_value
            )
        )


def _translate_error(context: sqlalchemy.engine.ExceptionContext) -> ServiceUnavailableError | None:
    """Return the error for a database that stops, starts, or cannot be reached; None for another error."""
    if not isinstance(context.sqlalchemy_exception, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
        return None
    reason = mask_passwords(first_line(context.original_exception))
    return ServiceUnavailableError(f"search.storage cannot be reached: {reason}")


def written_together(study: optuna.Study) -> contextlib.AbstractContextManager[None]:
    """Write what is set of trials inside the block in one transaction, where the study is in a database.

    For a journal this changes nothing: each change is appended at once.
    """
    storage = getattr(study._storage, "_backend", None)
    return storage.written_together() if isinstance(storage, Database) else contextlib.nullcontext()
