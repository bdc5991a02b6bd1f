"""What the page of a search shows, read from its folder and its study by any process; `reports.search_page` draws it.

Nothing is written. Optuna is imported for the importance of the fields, and only while there is no summary.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor

from mcrnn.config.paths import default_of, value_at
from mcrnn.config.search_yaml import as_yaml
from mcrnn.errors import DamagedFileError
from mcrnn.passwords import mask_passwords
from mcrnn.reports.search_page import Group, PageContent, PageTrial
from mcrnn.search.attributes import ERROR, RESULT, STOPPED_PAUSED, VALUES_ATTRIBUTE
from mcrnn.search.overview import WatchedSearch
from mcrnn.search.study_reader import SeenTrial
from mcrnn.search.trial_table import TrialRow
from mcrnn.storage.root import Storage
from mcrnn.training.session import OBJECTIVE, PENALTY

READS_AT_ONCE = 16
USABLE = ("finished", "stopped", "paused", "running", "interrupted")
"""States of the trials whose smallest error so far says something."""


class PageReader:
    """Reads a search again and again for its page; what has ended is read once.

    Args:
        storage: the storage root.
        name: name of the search's folder.
        database: URL of the database of the study with its password, which the folder lacks; None to look there.
    """

    def __init__(self, storage: Storage, name: str, database: str | None = None) -> None:
        self.storage, self.name = storage, name
        self.watched = WatchedSearch(storage, name, database)
        self.configuration = self.watched.configuration
        """The configuration as it was written down, without passwords."""
        self._curves: dict[int, list[float | None]] = {}
        """Errors of the epochs of each trial that were read, by number."""
        self._read_at: dict[int, tuple[str, int | None]] = {}
        """State and epoch of each trial when its curve was read."""
        self._trainings: dict[str, float | None] = {}
        """Smallest errors of the trainings of the confirmation that have ended, by name."""

    def read(self, seconds: float = math.inf) -> PageContent:
        """Read what the page shows.

        Args:
            seconds: how long reading learning curves may take; those that are left out are read the next time.

        Raises:
            UserError: the folder, or the study, cannot be read.
            ServiceUnavailableError: the database of the study, which was read before, does not answer now.
        """
        watched = self.watched
        seen = watched.refresh()
        configuration = self.configuration
        summary = watched.folder.read_summary() or {}
        rows, trials = watched.rows(), watched.trials
        curves = self._read_curves(trials, rows, time.monotonic() + seconds)
        left = {row.number for row in rows if row.state in ("paused", "stopped")}
        places = _places(curves, left)
        shown = [self._trial(*pair, curves, places) for pair in zip(trials, rows, strict=True)]
        if summary:
            shares = summary["importance"]
        else:
            from mcrnn.search.importance import importance_of

            shares = importance_of(configuration, trials)
        option = "" if self.storage == Storage.open() else f" --storage {self.storage.name}"
        return PageContent(
            name=self.name,
            state=seen.state if seen.phase is None else f"{seen.state}: {seen.phase}",
            overview=seen.as_json(),
            written=time.time(),
            fields=watched.fields,
            choices=[path for path, entries in configuration["space"].items() if "choice" in entries[0]],
            trials=shown,
            missing_curves=sum(1 for trial in trials if trial.attributes and trial.number not in curves),
            importance=shares,
            summary={key: value for key, value in summary.items() if key != "trials"},
            confirmation=[] if summary.get("confirmed") else self._read_confirmation(),
            yaml=as_yaml(configuration),
            data={
                "store": value_at(configuration, "data.store"),
                "store digest": configuration.get("store_digest", "")[:12],
                "given frames": value_at(configuration, "validation.warm_up", default_of("validation.warm_up")),
                "steps in closed loop": value_at(configuration, "validation.horizon", default_of("validation.horizon")),
            },
            continued=configuration["name"] == self.name,
            option=option,
        )

    def _read_curves(
        self, trials: list[SeenTrial], rows: list[TrialRow], until: float
    ) -> dict[int, list[float | None]]:
        """Return the errors of the epochs of each trial by number, of which those are read that may have changed."""
        now = {row.number: (row.state, row.epoch) for row in rows}
        changed = {n for n, state in now.items() if state[0] == "running" or self._read_at.get(n) != state}
        wanted = [each.number for each in trials if each.attributes and each.number in changed]

        def read(number: int) -> list[float | None] | None:
            if time.monotonic() > until:
                return None
            try:
                metrics = self.watched.folder.trial(number).read_metrics()
            except DamagedFileError:
                return []
            return [_finite(each.get(OBJECTIVE)) for each in metrics]

        with ThreadPoolExecutor(READS_AT_ONCE) as threads:
            for number, curve in zip(wanted, threads.map(read, wanted), strict=True):
                if curve is not None:
                    self._curves[number], self._read_at[number] = curve, now[number]
        return self._curves

    def _trial(
        self,
        trial: SeenTrial,
        row: TrialRow,
        curves: dict[int, list[float | None]],
        places: dict[int, tuple[int, int]],
    ) -> PageTrial:
        """Return what the page shows of a trial."""
        result, values = trial.attributes.get(RESULT) or {}, trial.attributes.get(VALUES_ATTRIBUTE, {})
        base = value_at(self.configuration, "train.epochs", default_of("train.epochs"))
        best = _finite(row.best) if row.state in USABLE else None
        return PageTrial(
            number=trial.number,
            state=row.state,
            values=values,
            epoch=row.epoch,
            epochs=values.get("train.epochs", base),
            best=None if best is None or best >= PENALTY else best,
            parameters=result.get("parameters"),
            frames_per_second=result.get("frames_per_second"),
            seconds=row.seconds,
            curve=curves.get(trial.number, []),
            why=_why(trial, row, places),
        )

    def _read_confirmation(self) -> list[Group]:
        """Return the trainings with other seeds so far, by the trial whose configuration they have."""
        groups: dict[int, Group] = {}
        for name in self.watched.folder.confirmation.folders():
            if (found := re.fullmatch(r"trial-(\d+)-seed-\d+", name)) is None:
                continue  # not of the search
            number = int(found[1])
            group = groups.setdefault(number, Group(number, []))
            if name not in self._trainings:
                folder = self.watched.folder.retraining(name)
                metrics = folder.read_metrics()
                error = _finite(metrics[-1].get("best")) if metrics else None
                if folder.read_end() is None:
                    group.unfinished += 1
                    continue
                self._trainings[name] = error
            group.errors.append(self._trainings[name])
        return list(groups.values())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _places(curves: dict[int, list[float | None]], left: set[int]) -> dict[int, tuple[int, int]]:
    """Return the places of trials at their last epochs: among all trials that came so far, and how many these are.

    Args:
        curves: errors of the epochs of all trials, by number.
        left: numbers of the trials whose places are asked for.
    """
    smallest = {
        number: list(itertools.accumulate((math.inf if error is None else error for error in curve), min))
        for number, curve in curves.items()
    }
    places = {}
    for epoch in {len(curves[number]) for number in left if curves.get(number)}:
        reached = sorted((each[epoch - 1], number) for number, each in smallest.items() if len(each) >= epoch)
        for place, (_, number) in enumerate(reached, 1):
            if number in left and len(curves[number]) == epoch:
                places[number] = place, len(reached)
    return places


def _why(trial: SeenTrial, row: TrialRow, places: dict[int, tuple[int, int]]) -> str:
    """Say why a trial has not been trained to its end; empty where it was, or still runs."""
    epoch = row.epoch or 0
    place = ""
    if trial.number in places:
        place = ", where its smallest error was number {} of {}".format(*places[trial.number])
    if row.state == "paused":
        return f"waits after epoch {epoch}{place}"
    if row.state == "stopped":
        paused = "paused until the search ended, " if trial.attributes.get(STOPPED_PAUSED) else "stopped "
        return f"{paused}after epoch {epoch}{place}"
    if row.state == "diverged":
        return f"diverged in epoch {epoch}" if epoch else "diverged"
    if row.state == "out of memory":
        return "memory was not enough"
    if row.state == "failed":
        return mask_passwords(trial.attributes.get(ERROR) or "its processes were lost too often")
    return ""
