"""Reading trials from the tables of Optuna's storage, any number of them with two queries.

Optuna makes an object of SQLAlchemy's ORM of each row, which takes a millisecond for each trial. Here the rows of all
tables that belong to trials come as plain tuples from one query. The trials are equal to those that Optuna reads.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, cast

import sqlalchemy
from optuna.distributions import json_to_distribution
from optuna.storages._rdb.models import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial
from sqlalchemy import ColumnElement, Connection, Select, String, literal, select

Row = tuple[int, int, int, str, int, Any, str]
"""A row of a table that belongs to a trial: the table's number, the trial's id, the row's own id, then a name, an
integer, a number and a text, as far as the table has them."""
FINITE = TrialValueModel.TrialValueType.FINITE.name
"""How the tables of values say that a value is neither infinite nor NaN."""

distribution_of = functools.lru_cache(maxsize=10_000)(json_to_distribution)
"""Trials whose parameters have the same range share its distribution, which nothing changes."""


class TrialQueries:
    """The two queries for some trials: for their own rows, and for those of all tables that belong to them.

    Args:
        wanted: condition for the trials' own rows.
    """

    def __init__(self, wanted: ColumnElement[bool]) -> None:
        trial = TrialModel
        self._trials = (
            select(
                trial.trial_id,
                trial.number,
                trial.state,
                trial._datetime_start_utc.label("started"),
                trial._datetime_complete_utc.label("completed"),
            )
            .where(wanted)
            .order_by(trial.trial_id)
        )
        ids = select(trial.trial_id).where(wanted)
        param, value, step = TrialParamModel, TrialValueModel, TrialIntermediateValueModel
        user, system = TrialUserAttributeModel, TrialSystemAttributeModel
        self._contents = sqlalchemy.union_all(
            _rows(
                0, param.param_id, ids, name=param.param_name, number=param.param_value, text=param.distribution_json
            ),
            _rows(1, user.trial_user_attribute_id, ids, name=user.key, text=user.value_json),
            _rows(2, system.trial_system_attribute_id, ids, name=system.key, text=system.value_json),
            _rows(3, value.trial_value_id, ids, integer=value.objective, number=value.value, text=value.value_type),
            _rows(
                4,
                step.trial_intermediate_value_id,
                ids,
                integer=step.step,
                number=step.intermediate_value,
                text=step.intermediate_value_type,
            ),
        )

    def read(self, connection: Connection, **parameters: Any) -> list[FrozenTrial]:
        """Return the trials in the order of their ids.

        Args:
            connection: connection to the database.
            parameters: values of the parameters of the condition.
        """
        # The states come first: of a trial that had ended by then, nothing has changed since.
        trials = connection.execute(self._trials, parameters).all()
        tables: list[dict[int, list[Row]]] = [defaultdict(list) for _ in range(5)]
        if trials:
            for row in cast("list[Row]", connection.execute(self._contents, parameters).all()):
                tables[row[0]][row[1]].append(row)
        return [_frozen_trial(trial, *(rows[trial.trial_id] for rows in tables)) for trial in trials]


def _rows(
    table: int,
    row_id: Any,
    trial_ids: Select[Any],
    *,
    name: Any = None,
    integer: Any = None,
    number: Any = None,
    text: Any,
) -> Select[Any]:
    """Return the query for the rows of a table that belong to trials.

    Args:
        table: number of the table in the answer.
        row_id: the column of the rows' own ids.
        trial_ids: query for the ids of the trials.
        name: a column of short texts; None for none, which is then empty in the answer.
        integer: a column of integers, or None.
        number: a column of numbers, or None.
        text: a column of texts or of one of Optuna's enumerations.
    """
    return select(
        literal(table).label("table"),
        row_id.class_.trial_id,
        row_id.label("row_id"),
        (literal("") if name is None else name).label("name"),
        (literal(0) if integer is None else integer).label("integer"),
        (literal(0.0) if number is None else number).label("number"),
        sqlalchemy.cast(text, String).label("text"),
    ).where(row_id.class_.trial_id.in_(trial_ids))


def _frozen_trial(
    trial: Any,
    params: list[Row],
    user_attrs: list[Row],
    system_attrs: list[Row],
    values: list[Row],
    steps: list[Row],
) -> FrozenTrial:
    """Build a trial from its own row and the rows that belong to it."""
    params.sort(key=itemgetter(2))  # in the order in which they were written
    distributions = {name: distribution_of(text) for _, _, _, name, _, _, text in params}
    by_objective = {objective: _value(number, kind) for _, _, _, _, objective, number, kind in values}
    return FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=[by_objective[objective] for objective in sorted(by_objective)] or None,
        datetime_start=_local(trial.started),
        datetime_complete=_local(trial.completed),
        params={name: distributions[name].to_external_repr(number) for _, _, _, name, _, number, _ in params},
        distributions=distributions,
        user_attrs={name: json.loads(text) for _, _, _, name, _, _, text in user_attrs},
        system_attrs={name: json.loads(text) for _, _, _, name, _, _, text in system_attrs},
        intermediate_values={
            step: _value(number, kind) for _, _, _, _, step, number, kind in sorted(steps, key=itemgetter(4))
        },
        trial_id=trial.trial_id,
    )


def _value(number: float | None, kind: str) -> float:
    """Return a value, which the tables hold as a finite number or as the name of one that is not."""
    if kind == FINITE:
        assert number is not None
        return number
    return TrialIntermediateValueModel.stored_repr_to_intermediate_value(
        None, TrialIntermediateValueModel.TrialIntermediateValueType[kind]
    )


def _local(time: datetime | None) -> datetime | None:
    """Return a time of the database, which is in UTC, as the local one."""
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
