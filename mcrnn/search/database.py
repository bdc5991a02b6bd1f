"""The study in a database: Optuna's storage, with fewer queries, which waits for a database that is away.

Optuna writes each value of a trial in a transaction of its own, and reads the trial again from each of its tables.
`Database` writes what is set of trials inside `written_together` in one transaction, and reads as
`mcrnn.search.database_rows` does. The tables and their content are Optuna's.

A transaction whose connection is lost is made again, as soon as the database answers. It may have been committed all
the same: then making it again changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    NOT_FOUND_MSG,
    StudyModel,
    TrialModel,
    TrialParamModel,
    TrialUserAttributeModel,
)
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from mcrnn.passwords import mask_passwords
from mcrnn.search.database_rows import TrialQueries, distribution_of
from mcrnn.search.snapshot import without_garbage_collection
from mcrnn.storage.retry import PATIENCE_UNDER_WAY, Outage, ServiceUnavailableError, with_retries

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

MOST_LISTED = 1000
"""Most trials that a query lists. Where more are wanted, all trials from the first one of them on are read."""
ONE_TRIAL = TrialQueries(TrialModel.trial_id == sqlalchemy.bindparam("trial_id"))
AWAY = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
"""Errors of a database that stops, starts, or cannot be reached."""

_outage = Outage(
    "the study's database", meanwhile=f"asked again for {PATIENCE_UNDER_WAY / 60:.0f} min", afterwards="work goes on"
)


def _waiting(method: Callable[Concatenate[Any, Parameters], Result]) -> Callable[Concatenate[Any, Parameters], Result]:
    """Return a method of Optuna's storage that waits for the database.

    Args:
        method: may be called again although its first call has taken effect.
    """

    @functools.wraps(method)
    def call(self: Database, *arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        return self._request(lambda _: method(self, *arguments, **options))

    return call


class Database(RDBStorage):
    """Optuna's storage in a database.

    Args:
        url: URL of the database, as SQLAlchemy expects it.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._changes: list[Callable[[Session], None]] | None = None
        """What is written at the end of `written_together`; None outside of it."""
        self._params: list[dict[str, Any]] = []
        """Rows of parameters that are written then."""

    set_study_user_attr = _waiting(RDBStorage.set_study_user_attr)
    set_study_system_attr = _waiting(RDBStorage.set_study_system_attr)
    get_study_id_from_name = _waiting(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _waiting(RDBStorage.get_study_name_from_id)
    get_study_directions = _waiting(RDBStorage.get_study_directions)
    get_study_user_attrs = _waiting(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _waiting(RDBStorage.get_study_system_attrs)
    get_trial_id_from_study_id_trial_number = _waiting(RDBStorage.get_trial_id_from_study_id_trial_number)
    set_trial_system_attr = _waiting(RDBStorage.set_trial_system_attr)

    def _request(self, request: Callable[[bool], Result]) -> Result:
        """Make a request, and wait for the database where this process has enabled retries.

        Args:
            request: makes the request. It is told whether it was made before, perhaps with success.

        Raises:
            ServiceUnavailableError: the database was still away when the patience ended.
        """
        is_repeated = False

        def translated() -> Result:
            nonlocal is_repeated
            try:
                return request(is_repeated)
            except optuna.exceptions.StorageInternalError as error:
                cause = error.__cause__
                if not isinstance(cause, AWAY):
                    raise
                is_repeated = True
                reason = mask_passwords(str(cause).strip().splitlines()[0])
                raise ServiceUnavailableError(f"search.storage cannot be reached: {reason}") from error

        return with_retries(translated, _outage)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Create a trial.

        Args:
            study_id: the study's id.
            template_trial: what the trial has from the start; None for a trial that runs and has nothing yet.
        """

        def create(is_repeated: bool) -> FrozenTrial:
            if is_repeated and template_trial is None and (created := self._newest_empty_trial(study_id)) is not None:
                return created
            with _create_scoped_session(self.scoped_session) as session:
                StudyModel.find_or_raise_by_id(study_id, session, for_update=True)  # so that numbers are given once
                trial_id = self._get_prepared_new_trial(study_id, template_trial, session).trial_id
            return self.get_trial(trial_id)

        return self._request(create)

    def _newest_empty_trial(self, study_id: int) -> FrozenTrial | None:
        """Return the newest trial if it runs and has nothing yet: one whose creation was not known to have succeeded.

        Every other trial gets its values directly after it was created.
        """
        newest = sqlalchemy.select(sqlalchemy.func.max(TrialModel.trial_id)).where(TrialModel.study_id == study_id)
        with _create_scoped_session(self.scoped_session) as session:
            trial_id: Any = session.execute(newest).scalar()
        if trial_id is None:
            return None
        trial = self.get_trial(trial_id)
        has_something = trial.params or trial.user_attrs or trial.system_attrs or trial.intermediate_values
        return None if has_something or trial.state != TrialState.RUNNING else trial

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial, and its values where it has ended; returns whether this has changed it."""

        def change(is_repeated: bool) -> bool:
            if is_repeated and self.get_trial(trial_id).state == state:
                return True
            return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        return self._request(change)

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
        def read(_: bool) -> list[FrozenTrial]:
            try:
                with without_garbage_collection(), self.engine.connect() as connection:
                    # Without transactions: beginning and ending one would double the number of answers to wait for.
                    return queries.read(connection.execution_options(isolation_level="AUTOCOMMIT"), **parameters)
            except sqlalchemy.exc.SQLAlchemyError as error:
                raise optuna.exceptions.StorageInternalError("the database cannot be read") from error

        return self._request(read)

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
            self._request(lambda is_repeated: self._write(changes, params, is_repeated=is_repeated))

    def _write(
        self, changes: list[Callable[[Session], None]], params: list[dict[str, Any]], *, is_repeated: bool
    ) -> None:
        """Write parameters and other changes in one transaction."""
        with _create_scoped_session(self.scoped_session) as session:
            for trial_id in {row["trial_id"] for row in params}:
                trial: Any = TrialModel.find_or_raise_by_id(trial_id, session)
                self.check_trial_is_updatable(trial_id, trial.state)
                if is_repeated:
                    names = [row["param_name"] for row in params if row["trial_id"] == trial_id]
                    written = TrialParamModel.trial_id == trial_id, TrialParamModel.param_name.in_(names)
                    session.execute(sqlalchemy.delete(TrialParamModel).where(*written))
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
            set_param = functools.partial(super()._set_trial_param, trial_id, param_name, param_value_internal)
            self._request(lambda _: set_param(distribution, previous_distribution))
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

        def read(_: bool) -> str | None:
            with _create_scoped_session(self.scoped_session) as session:
                found: str | None = session.execute(query).scalar()
                return found

        found = self._request(read)
        return None if found is None else distribution_of(found)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial."""
        if self._changes is None:
            set_attribute = super().set_trial_user_attr
            self._request(lambda _: set_attribute(trial_id, key, value))
            return
        table = TrialUserAttributeModel
        self._changes.append(lambda session: self._set_trial_attr_without_commit(session, table, trial_id, key, value))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set the value of a trial at a step."""
        if self._changes is None:
            set_value = super().set_trial_intermediate_value
            self._request(lambda _: set_value(trial_id, step, intermediate_value))
            return
        self._changes.append(
            lambda session: self._set_trial_intermediate_value_without_commit(
                session, trial_id, step, intermediate_value
            )
        )


def written_together(study: optuna.Study) -> contextlib.AbstractContextManager[None]:
    """Write what is set of trials inside the block in one transaction, where the study is in a database.

    For a journal this changes nothing: each change is appended at once.
    """
    storage = getattr(study._storage, "_backend", None)
    return storage.written_together() if isinstance(storage, Database) else contextlib.nullcontext()
