"""Studies of many trials for `benchmarks.growth`, which no search has to run, and workers on a simulated clock."""

from __future__ import annotations

import heapq
import itertools
import json
import random
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import optuna
import sqlalchemy
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages.journal import JournalFileBackend

from mcrnn.config.loading import load_search
from mcrnn.config.space import Search
from mcrnn.search.journal import Journal
from mcrnn.search.study import open_study
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.training.session import OBJECTIVE

SPACE = Path(__file__).parent.parent / "search_spaces/ns.yaml"
EPOCHS = 30
CREATE_TRIAL = 4
"""Optuna's code for the line of a journal that creates a trial."""
TEMPLATES = 30
"""Trials that are really proposed; all others are copies of them with other errors."""


def space(**options: object) -> Search:
    """Return the search that is measured."""
    options = {"trials": 1_000_000, "confirm": None, "cover": None, **options}
    return load_search(str(SPACE), [f"search.{name}={json.dumps(value)}" for name, value in options.items()])


def result(error: float, epoch: int) -> dict[str, Any]:
    """Return a report of a trial as Ray Tune passes it on."""
    return {
        "epoch": epoch, "epochs": EPOCHS, OBJECTIVE: error, "best": error, "diverged": 0.0, "parameters": 1e5,
        "time_total_s": 20.0 * epoch, "rmse_closed_loop": error, "rmse_teacher_forced": error / 2,
        "frames_per_second": 1234.5,
    }  # fmt: skip


def journal_lines(count: int, folder: Path) -> list[str]:
    """Return the lines of a journal: those before all trials, then the lines of each trial.

    Args:
        count: number of trials.
        folder: an empty folder for the search whose trials are copied.
    """
    search = space(sampler="random", trials=TEMPLATES)
    journal = Journal.open(LocalFolder(folder))
    searcher = StudySearcher(open_study(journal, search), search)
    draw = random.Random(0)
    # most trials stay paused, the best are trained to the end
    while isinstance(proposal := searcher.suggest("t"), dict):
        epoch = proposal["target"]
        searcher.on_trial_complete("t", result(draw.random() + 1 / epoch, epoch))
    logs = [json.loads(line) for line in journal.file.read_text().splitlines()]
    first = next(index for index, log in enumerate(logs) if log["op_code"] == CREATE_TRIAL)
    templates: list[list[dict[str, Any]]] = []
    for log in logs[first:]:
        if log["op_code"] == CREATE_TRIAL:
            templates.append([])
        number = log.get("trial_id", len(templates) - 1)
        templates[number].append(log)
    lines = ["".join(_line(log) for log in logs[:first])]
    lines += ["".join(_copies(templates[number % TEMPLATES], number, draw)) for number in range(count)]
    return lines


def _copies(template: list[dict[str, Any]], number: int, draw: random.Random) -> list[str]:
    factor, started = 1 + 0.1 * draw.random(), datetime(2026, 1, 1).astimezone() + timedelta(minutes=number)
    lines = []
    for log in template:
        copy = log | ({"trial_id": number} if "trial_id" in log else {})
        for time_of in ("datetime_start", "datetime_complete"):
            if time_of in copy:
                copy[time_of] = (started + timedelta(minutes=10)).isoformat(timespec="microseconds")
        if "intermediate_value" in copy:
            copy["intermediate_value"] *= factor
        if copy.get("values"):
            copy["values"] = [value * factor for value in copy["values"]]
        if "result" in copy.get("user_attr", {}):
            copy["user_attr"] = {
                "result": copy["user_attr"]["result"] | {"best": log["user_attr"]["result"]["best"] * factor}
            }
        lines.append(_line(copy))
    return lines


def _line(log: dict[str, Any]) -> str:
    return json.dumps(log, separators=(",", ":")) + "\n"


def fill_database(url: str, study: optuna.Study, lines: list[str]) -> None:
    """Insert the trials of some lines into the study of a database, without its checks, which take minutes."""
    file = Path(f"/tmp/mcrnn-growth-{study._study_id}.journal")
    header = {"op_code": 0, "worker_id": "w", "study_name": "filled", "directions": [1]}
    file.write_text(_line(header) + "".join(lines))
    trials = JournalStorage(JournalFileBackend(str(file))).get_all_trials(0, deepcopy=False)
    file.unlink()
    engine = RDBStorage(url).engine
    with engine.begin() as connection:
        first = (
            connection.execute(sqlalchemy.select(sqlalchemy.func.max(models.TrialModel.trial_id))).scalar() or 0
        ) + 1
        tables: dict[Any, list[dict[str, Any]]] = {
            models.TrialModel: [], models.TrialParamModel: [], models.TrialValueModel: [],
            models.TrialUserAttributeModel: [], models.TrialSystemAttributeModel: [],
            models.TrialIntermediateValueModel: [],
        }  # fmt: skip
        for trial in trials:
            trial_id = {"trial_id": first + trial.number}
            tables[models.TrialModel].append(
                trial_id
                | {"number": trial.number, "study_id": study._study_id, "state": trial.state}
                | {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
            )
            for name, value in trial.params.items():
                kind = trial.distributions[name]
                tables[models.TrialParamModel].append(
                    trial_id
                    | {"param_name": name, "param_value": kind.to_internal_repr(value)}
                    | {"distribution_json": optuna.distributions.distribution_to_json(kind)}
                )
            finite = models.TrialValueModel.TrialValueType.FINITE
            for value in trial.values or []:
                tables[models.TrialValueModel].append(trial_id | {"objective": 0, "value": value, "value_type": finite})
            for model, attributes in (
                (models.TrialUserAttributeModel, trial.user_attrs),
                (models.TrialSystemAttributeModel, trial.system_attrs),
            ):
                for key, content in attributes.items():
                    tables[model].append(trial_id | {"key": key, "value_json": json.dumps(content)})
            kind_of = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
            for step, error in trial.intermediate_values.items():
                tables[models.TrialIntermediateValueModel].append(
                    trial_id | {"step": step, "intermediate_value": error, "intermediate_value_type": kind_of}
                )
        for model, content in tables.items():
            connection.execute(sqlalchemy.insert(model), content)
        connection.execute(sqlalchemy.text("SELECT setval('trials_trial_id_seq', (SELECT MAX(trial_id) FROM trials))"))


class Timed(Protocol):
    """A search each of whose steps returns the seconds that it took."""

    def propose(self, trial_id: str) -> float:
        """Propose a trial, or let one go on."""

    def last_epoch(self, trial_id: str) -> int:
        """Return the epoch to which a trial is trained that was proposed last."""

    def first_epoch(self, trial_id: str) -> int:
        """Return the epoch from which it is trained."""

    def report(self, trial_id: str, epoch: int, error: float) -> float:
        """Take the report of an epoch."""

    def end(self, trial_id: str, error: float) -> float:
        """Take the end of a trial, or of the part of one up to a rung."""


def simulated_workers(
    search: Timed, workers: int, trial_seconds: float = 600.0, rounds: float = 2.0, real_seconds: float = 280.0
) -> dict[str, float]:
    """Let workers train trials on a simulated clock, to which the time that the search really takes is added.

    One process runs the search, so that its steps come one after another: a worker waits for its next trial, and for
    the answer to each of its reports, until the search has done all that came before.

    Args:
        search: the search.
        workers: trials at a time.
        trial_seconds: length of a trial on the simulated clock.
        rounds: simulated seconds, in lengths of a trial.
        real_seconds: seconds after which the simulation ends.

    Returns:
        The share of the workers' time in which they trained, and what was simulated.
    """
    draw, numbers = random.Random(0), itertools.count()
    events: list[tuple[float, int, str | None, int]] = [(0.0, next(numbers), None, 0) for _ in range(workers)]
    names, began = itertools.count(), time.monotonic()
    now = free_at = trained = 0.0
    until, trials, reports, proposing = rounds * trial_seconds, 0, 0, 0.0
    heapq.heapify(events)
    while events and time.monotonic() - began < real_seconds:
        at, _, name, epoch = heapq.heappop(events)
        if at > until:
            break
        now = max(at, free_at)  # the search is still busy with what came before
        if name is not None and epoch < search.last_epoch(name):
            now += search.report(name, epoch, draw.random() + 1 / epoch)
            reports += 1
        else:
            if name is not None:
                now += search.end(name, draw.random())
            name, trials = f"simulated-{next(names)}", trials + 1
            took = search.propose(name)
            epoch = search.first_epoch(name) - 1
            now, proposing = now + took, proposing + took
        free_at = now
        seconds = trial_seconds / EPOCHS * draw.uniform(0.8, 1.2)
        trained += min(seconds, max(0.0, until - now))
        heapq.heappush(events, (now + seconds, next(numbers), name, epoch + 1))
    end = min(now, until)
    return {
        "workers": workers,
        "busy": round(min(1.0, trained / (workers * end)), 4),
        "simulated_seconds": round(end),
        "parts_of_trials": trials,
        "reports": reports,
        "milliseconds_of_a_proposal": round(1000 * proposing / trials),
        "real_seconds": round(time.monotonic() - began),
    }
