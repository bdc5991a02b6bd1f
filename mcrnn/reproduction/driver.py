"""Train what is left of the tables, one training after the other, and print each table when it is complete.

Only one process at a time trains a run, so that several share the work: each takes the next training that no other one
has, of any table, before it waits for those of others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from rich.console import Console

from mcrnn.device import choose_device
from mcrnn.errors import UserError
from mcrnn.evaluation.compatibility import DataIdentity, data_differences
from mcrnn.evaluation.selection import SelectedModel, select_models
from mcrnn.evaluation.side_by_side import Evaluated, Windows, evaluate_side_by_side
from mcrnn.reports.evaluation_tables import Group
from mcrnn.reproduction.champions import champions
from mcrnn.reproduction.estimate import RemainingTime, estimate, estimate_table
from mcrnn.reproduction.plan import PlannedTraining, Setting
from mcrnn.reproduction.table import EQUAL, PaperTable, Row, write
from mcrnn.runners import single_run
from mcrnn.storage.lease import HeldError
from mcrnn.storage.retry import print_warning
from mcrnn.storage.root import Storage
from mcrnn.tracking.sync import is_synced
from mcrnn.training.session import End

SECONDS_BETWEEN_LOOKS = 5.0
"""Time between two looks at trainings of other processes."""


def reproduce(
    settings: Sequence[Setting], report: str, storage: Storage, *, beside: Sequence[str] = (), preview: bool = False
) -> list[str]:
    """Say how long it will take, train what is left, and print the table of each setting.

    Args:
        settings: the tables.
        report: name of the report's folder below `reports/`.
        storage: the storage root.
        beside: names of models that stand in the tables of their data; none for the champions in the registry.
        preview: True to end after it has been said how long it will take.

    Returns:
        A message for each model that could not be evaluated, and for each table without any model.

    Raises:
        UserError: a named model cannot be loaded, or belongs to no table; or a training is not possible.
        KeyboardInterrupt: a stop was asked for, and a checkpoint has been written.
    """
    console = Console()
    others = _find(beside, settings, storage)
    costs = [estimate(setting) for setting in settings]
    for setting, each in zip(settings, costs, strict=True):
        if each:
            console.print(estimate_table(setting, each))
    remaining = RemainingTime(settings, costs)
    device = choose_device(settings[0].trainings[0].config.train.device, "train.device")
    console.print(remaining.summary(device), highlight=False, soft_wrap=True)
    if (advice := remaining.advice(device)) is not None:
        console.print(advice, highlight=False, soft_wrap=True)
    if preview:
        return []
    tables: dict[int, PaperTable] = {}
    failures: list[str] = []
    for index in _complete_one_by_one(settings, remaining, storage, console):
        try:
            console.print(remaining.describe_evaluation(settings[index]), highlight=False, soft_wrap=True)
            started = time.monotonic()
            tables[index] = _evaluate(settings[index], others, storage, failures)
            remaining.note_evaluation(settings[index], time.monotonic() - started)
        except UserError as error:
            remaining.note_evaluation(settings[index], None)
            failures.append(str(error))
            continue
        console.print(tables[index].for_terminal())
        write([tables[each] for each in sorted(tables)], storage.location(f"reports/{report}"))
    if tables:
        folder = storage.show(storage.location(f"reports/{report}"))
        console.print(f"report: {folder}/table.md, table.tex and table.csv", highlight=False, soft_wrap=True)
    return failures


def _find(names: Sequence[str], settings: Sequence[Setting], storage: Storage) -> list[SelectedModel] | None:
    """Return the models that stand beside those of the tables; None where none are named.

    Raises:
        UserError: a model cannot be loaded, or was trained on the data of none of the tables.
    """
    if not names:
        return None
    found, problems = select_models(names, storage)
    for each in found:
        if not any(_is_of(each, setting) for setting in settings):
            known = ", ".join(setting.name for setting in settings)
            problems.append(f"'{each.uri}' was trained on other data than {known}, and has no place in these tables")
    if problems:
        raise UserError("\n".join(problems))
    return found


def _is_of(model: SelectedModel, setting: Setting) -> bool:
    """Say whether a model was trained on the data of a setting, so that their errors may stand in one table."""
    return not data_differences(DataIdentity.of_training(model.model), setting.identity)


def _complete_one_by_one(
    settings: Sequence[Setting], remaining: RemainingTime, storage: Storage, console: Console
) -> Iterator[int]:
    """Train what is left of the settings, and yield the index of each setting when all its trainings have ended.

    Trainings that another process is at are left to it, and looked at again when all others are done. Meanwhile the
    models of those that have ended are scored.
    """
    pending = {index: setting.trainings for index, setting in enumerate(settings)}
    waits: set[int] = set()
    scored: set[str] = set()
    while pending:
        for index, trainings in list(pending.items()):
            pending[index] = _train(trainings, settings[index], remaining, storage, console)
            if not pending[index]:
                del pending[index]
                yield index
        for index in pending.keys() - waits:
            waits.add(index)
            text = (
                f"waiting for other processes to end {len(pending[index])} of the trainings of {settings[index].name}"
            )
            console.print(text, highlight=False, soft_wrap=True)
        if pending and not any(_score_one(settings[i], left, scored, storage) for i, left in pending.items()):
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _score_one(setting: Setting, pending: Sequence[PlannedTraining], scored: set[str], storage: Storage) -> bool:
    """Score a model of a training that has ended, so that its scores are kept when the table is made.

    Args:
        setting: the setting.
        pending: its trainings that have not ended.
        scored: URIs of the models that have been scored, to which this one is added.
        storage: the storage root.

    Returns:
        Whether there was one. What is wrong with it is said when the table is made.
    """
    for training in setting.trainings:
        if training.uri in scored or training in pending:
            continue
        scored.add(training.uri)
        if training.end != End.DIVERGED:
            selected, problems = select_models([training.uri], storage)
            with contextlib.suppress(UserError):
                evaluate_side_by_side(selected, storage, _windows_of(setting), problems)
            return True
    return False


def _train(
    trainings: Sequence[PlannedTraining],
    setting: Setting,
    remaining: RemainingTime,
    storage: Storage,
    console: Console,
) -> list[PlannedTraining]:
    """Train what is left of some trainings, and send to MLflow what it lacks of those that have ended.

    Returns:
        The trainings that another process is at, or has taken over.
    """
    held = []
    for training in trainings:
        if training.end and is_synced(training.folder):
            continue
        try:
            _complete(training, setting, remaining, storage, console)
        except HeldError:
            held.append(training)
    return held


def _complete(
    training: PlannedTraining, setting: Setting, remaining: RemainingTime, storage: Storage, console: Console
) -> None:
    estimated = started = 0.0

    def begin() -> None:
        nonlocal estimated, started
        number = len(remaining.trainings) - len(remaining.left) + 1
        text = f"training {number} of {len(remaining.trainings)}, {remaining.describe()} left"
        console.print(text, highlight=False, soft_wrap=True)
        estimated, started = remaining.seconds([training]), time.monotonic()

    single_run.complete(
        training.config,
        storage,
        console,
        new=False,
        digest=setting.store.digest,
        facts={"source": setting.source},
        data=None if training.end else setting.data,
        on_start=begin,
    )
    if started:
        remaining.training.note(estimated, time.monotonic() - started)


def _evaluate(
    setting: Setting, others: Sequence[SelectedModel] | None, storage: Storage, failures: list[str]
) -> PaperTable:
    """Evaluate all models of a setting, and those that stand beside them.

    Args:
        setting: the setting, all of whose trainings have ended.
        others: models of any data, of which those of the setting's are taken; None for the champions.
        storage: the storage root.
        failures: gets a message for each model that cannot be evaluated, where others can.

    Raises:
        UserError: none of the setting's models could be evaluated; the message gives the reasons.
    """
    ended = [each for each in setting.trainings if each.end != End.DIVERGED]
    if not ended:
        raise UserError(f"all trainings of {setting.name} diverged: try a smaller train.learning_rate")
    selected, problems = select_models([each.uri for each in ended], storage)
    if not selected:
        raise UserError("\n".join([f"no model of {setting.name} can be loaded:", *problems]))
    found = _champions(selected, setting, storage) if others is None else others
    beside = [each for each in found if _is_of(each, setting)]
    evaluated = evaluate_side_by_side([*selected, *beside], storage, _windows_of(setting), problems)
    by_uri = {model.uri: (model, result) for model, result in evaluated}
    rows, groups = [], []
    for name, trainings in setting.rows.items():
        diverged = sum(each.end == End.DIVERGED for each in trainings)
        members = [by_uri[each.uri] for each in trainings if each.uri in by_uri]
        if members:
            groups.append(_group(name, members))
            rows.append(Row.of(groups[-1], diverged))
        else:
            rows.append(Row(name, None, None, diverged=diverged))
    if not groups:
        raise UserError("\n".join([f"no model of {setting.name} can be evaluated:", *problems]))
    failures += problems
    others_found = [_group(each.uri, [by_uri[each.uri]]) for each in beside if each.uri in by_uri]
    return PaperTable.of(setting.name, rows, groups, others_found)


def _windows_of(setting: Setting) -> Windows:
    return Windows(device=setting.trainings[0].config.train.device)


def _champions(selected: Sequence[SelectedModel], setting: Setting, storage: Storage) -> list[SelectedModel]:
    """Return the champions in the registry that are hardly larger than the largest of some models.

    None, with a warning, where the registry is out of reach.
    """
    try:
        found = champions(setting.store.digest, storage)
    except UserError as error:
        print_warning(f"the champions of the registry are not in the table: {error}")
        return []
    largest = max(each.model.cost.parameters for each in selected)
    return [each for each in found if each.model.cost.parameters <= EQUAL * largest]


def _group(name: str, members: Sequence[Evaluated]) -> Group:
    return Group(name, [result for _, result in members], [selected for selected, _ in members])
