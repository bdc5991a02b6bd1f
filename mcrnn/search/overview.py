"""What there is to see of searches and runs from another process: their state, how far they are, and their trials.

Everything is read from the folders below the storage root, and from the study. Nothing is written, and neither Ray nor
Optuna, MLflow or PyTorch is imported, so that a look takes a fraction of a second.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from mcrnn.errors import UserError, did_you_mean
from mcrnn.search.attributes import END, HOURS, RESULT, VALUES_ATTRIBUTE, TrialEnd
from mcrnn.search.study_reader import JournalReader, Phase, SeenTrial, StudyReader
from mcrnn.search.trial_table import TrialRow
from mcrnn.storage.location import Location
from mcrnn.storage.presence import SILENCE, SeenPresence, see
from mcrnn.storage.process import is_gone
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import LEASE_FILE, RunFolder, SearchFolder
from mcrnn.training.session import OBJECTIVE

SEARCH, RUN = "search", "run"
FOLDERS = {SEARCH: "searches", RUN: "runs"}
"""Folder below the storage root of each kind of work."""
WORKING = ("running", "stopping")
"""States of a search or run whose process works on it."""
READS_AT_ONCE = 8


@dataclass
class Overview:
    """What is to be seen of a search or a run, without its trials or epochs."""

    kind: str
    """"search" or "run"."""
    name: str
    state: str
    """"running", "stopping", "lost" (its process is gone, or cut off from its folder), "interrupted", "failed" or
    "finished"; for a run that has ended also how, such as "diverged"; "unreadable" where files in the folder are
    damaged, or its database is away."""
    done: int | None = None
    """Trials that have ended or are paused; of a run its epochs."""
    budget: int | None = None
    """How many of them there shall be."""
    running: int = 0
    """Trials that run."""
    failed: int = 0
    """Trials that failed."""
    best: float | None = None
    """The smallest error so far."""
    hours: float | None = None
    """Hours that it has run, over all its starts."""
    hours_budget: float | None = None
    """Hours that it may run; None for no limit."""
    phase: str | None = None
    """What is done after the trials, such as "confirmation"."""
    where: str | None = None
    """Machine and process."""
    last_sign_seconds: float | None = None
    """Seconds since the last sign of life of its process."""
    message: str | None = None
    """What has ended it, where that was an error."""
    process: dict[str, Any] = field(default_factory=dict)
    """All that its process has written down of itself."""

    @property
    def is_running(self) -> bool:
        """Whether a process works on it."""
        return self.state in WORKING

    @property
    def rate(self) -> float | None:
        """Trials, or epochs, an hour, over all starts; None where nothing is known of it yet."""
        return self.done / self.hours if self.done and self.hours else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until it is expected to end; None where it does not run, or that is not known.

        Trials that have all been tried once may still be paused and go on, which is not counted.
        """
        if self.state != "running" or self.phase or self.rate is None or self.budget is None or self.done is None:
            return None
        if self.done >= self.budget:
            return None
        assert self.hours is not None
        left = (self.budget - self.done) / self.rate
        return 3600 * (left if self.hours_budget is None else min(left, max(0.0, self.hours_budget - self.hours)))

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be seen of it. What is lost may come back, unless its process is surely gone."""
        if self.state == "lost":
            return bool(self.process) and is_gone(self.process)
        return not self.is_running

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON, with what follows from it."""
        left = self.seconds_left
        ends_at = None if left is None else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() + left))
        return asdict(self) | {"rate_per_hour": self.rate, "seconds_left": left, "ends_at": ends_at}


def overviews(storage: Storage) -> list[Overview]:
    """Return all searches and runs below a storage root: what runs first, then by kind and name.

    Raises:
        UserError: the root cannot be read.
    """
    names = [(kind, name) for kind, folder in FOLDERS.items() for name in storage.location(folder).folders()]

    def look(kind: str, name: str) -> Overview | None:
        try:
            return overview(storage, kind, name)
        except (ValueError, LookupError, TypeError) as error:  # one damaged folder does not hide the others
            return Overview(kind, name, "unreadable", message=str(error) or type(error).__name__)

    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        found = threads.map(lambda each: look(*each), names)
        seen = [each for each in found if each is not None]
    return sorted(seen, key=lambda each: (not each.is_running, each.kind != SEARCH, each.name))


def overview(storage: Storage, kind: str, name: str) -> Overview | None:
    """Return what is to be seen of a search or run; None where there is none of this name.

    Args:
        storage: the storage root.
        kind: "search" or "run".
        name: name of its folder.
    """
    location = storage.location(f"{FOLDERS[kind]}/{name}")
    seen = see(location)
    if kind == RUN:
        return _overview_of_run(RunFolder(location), seen)
    if seen is not None and "done" in seen.progress:
        return _overview_of(kind, name, seen)
    watched = WatchedSearch(storage, name)
    return watched.refresh() if watched.exists else None


def _overview_of(kind: str, name: str, seen: SeenPresence) -> Overview:
    """Return what a process has written down of its work."""
    known = Overview.__dataclass_fields__.keys()
    progress = {key: value for key, value in seen.progress.items() if key in known}
    found = Overview(kind, name, seen.state, **progress)
    found.where, found.last_sign_seconds, found.process = seen.place, seen.age, seen.content
    found.message = seen.content.get("ended", {}).get("message") or None
    if not seen.is_running:
        found.running, found.phase = 0, None
    return found


def _overview_of_run(folder: RunFolder, seen: SeenPresence | None) -> Overview | None:
    """Return what is to be seen of a run; what an earlier version has left says less."""
    if seen is not None and seen.is_running and seen.progress:
        return _overview_of(RUN, folder.name, seen)
    configuration = folder.read_configuration()
    if configuration is None:
        return None
    metrics, end = folder.read_metrics(), folder.read_end()
    found = Overview(RUN, folder.name, "interrupted") if seen is None else _overview_of(RUN, folder.name, seen)
    found.done, found.budget = len(metrics), configuration["train"]["epochs"]
    found.best = metrics[-1]["best"] if metrics else None
    found.hours = sum(each.get("seconds", 0.0) for each in metrics) / 3600
    if end is not None and not found.is_running:
        found.state = end.end
    return found


class WatchedSearch:
    """A search that is looked at again and again.

    Args:
        storage: the storage root.
        name: name of its folder.
        database: URL of the database of the study with its password, for the process of the search, which uses it;
            None to take what the folder says, which has no password.
    """

    def __init__(self, storage: Storage, name: str, database: str | None = None) -> None:
        self.name, self.database = name, database
        self.folder = SearchFolder(storage.location(f"{FOLDERS[SEARCH]}/{name}"))
        self.configuration = self.folder.read_configuration() or {}
        self._reader: StudyReader | None = None
        self.overview = Overview(SEARCH, name, "interrupted")
        """What was seen at the last look."""

    @property
    def exists(self) -> bool:
        """Whether there is such a search."""
        return bool(self.configuration)

    @property
    def fields(self) -> list[str]:
        """Dotted paths of the fields that are searched."""
        return list(self.configuration.get("space", ()))

    @property
    def trials(self) -> list[SeenTrial]:
        """The trials, as they were seen last, without those that were copied from earlier searches."""
        found = [] if self._reader is None else self._reader.trials
        return [trial for trial in found if trial.phase != Phase.COPIED]

    def refresh(self) -> Overview:
        """Look again, and return what is to be seen.

        Raises:
            UserError: the folder, or the study, cannot be read.
        """
        seen = see(self.folder.location)
        if self._reader is None:
            self._reader = self._new_reader()
        self._reader.refresh()
        found = Overview(SEARCH, self.name, "") if seen is None else _overview_of(SEARCH, self.name, seen)
        if seen is None:
            found.state, found.last_sign_seconds = self._state_of_earlier_version()
        settings, trials = self.configuration["search"], self.trials
        phases = Counter(trial.phase for trial in trials)
        found.done = phases[Phase.ENDED] + phases[Phase.PAUSED]
        found.budget = found.budget or _budget(settings, len(trials))
        found.failed = sum(trial.attributes.get(END) == TrialEnd.FAILED for trial in trials)
        found.best = min((trial.best for trial in trials if trial.best is not None), default=None)
        found.running = phases[Phase.RUNNING] if found.is_running else 0
        found.hours, found.hours_budget = self._reader.attributes.get(HOURS), settings.get("hours")
        self.overview = found
        return found

    def _new_reader(self) -> StudyReader:
        url = self.database or self.configuration["search"].get("storage")
        if url is None:
            return JournalReader(self.folder.location)
        from mcrnn.search.database_reader import DatabaseReader

        name = self.folder.study_name(self.configuration["name"])
        return DatabaseReader(url, name, has_answered=self.database is not None)

    def _state_of_earlier_version(self) -> tuple[str, float | None]:
        """Return the state of a search whose process has written nothing down of itself, and its last sign of life."""
        try:
            _, age = self.folder.location.read_with_age(LEASE_FILE)
        except FileNotFoundError:
            return "interrupted" if self.folder.read_summary() is None else "finished", None
        return "running" if age <= SILENCE else "lost", age

    def rows(self, most: int | None = None) -> list[TrialRow]:
        """Return the rows of the trials, as they were seen last, by their numbers.

        Trials that run are told by the files in their folders how far they are.

        Args:
            most: the most rows, of those that run and of the newest others; None for all.
        """
        trials = self.trials
        if most is not None and len(trials) > most:
            order = {Phase.WAITING: 0, Phase.RUNNING: 2}
            by_need = sorted(trials, key=lambda each: order.get(each.phase, 1))  # in each group by number
            trials = sorted(by_need[-most:], key=lambda each: each.number)
        running = [trial.number for trial in trials if trial.phase == Phase.RUNNING]
        with ThreadPoolExecutor(READS_AT_ONCE) as threads:
            read = threads.map(lambda number: self.folder.trial(number).read_metrics(), running)
            metrics = dict(zip(running, read, strict=True))
        return [self._row(trial, metrics.get(trial.number, [])) for trial in trials]

    def _row(self, trial: SeenTrial, metrics: list[dict[str, Any]]) -> TrialRow:
        """Return the row of a trial.

        Args:
            trial: the trial.
            metrics: metrics of its epochs, where it runs.
        """
        last = metrics[-1] if metrics else trial.attributes.get(RESULT, {})
        seconds = sum(each.get("seconds", 0.0) for each in metrics) if metrics else last.get("time_total_s")
        return TrialRow(
            trial.number,
            trial.attributes.get(VALUES_ATTRIBUTE, {}),
            _state(trial, self.overview.is_running),
            int(last["epoch"]) if "epoch" in last else None,
            last.get(OBJECTIVE, last.get("best")),
            seconds,
            last.get("best"),
        )


def _state(trial: SeenTrial, is_running: bool) -> str:
    """Return the state of a trial in one word."""
    if trial.phase == Phase.ENDED:
        return trial.attributes.get(END, TrialEnd.FAILED)
    return "interrupted" if trial.phase == Phase.RUNNING and not is_running else trial.phase.value


def _budget(settings: dict[str, Any], trials: int) -> int:
    """Return the number of trials of a search, as `mcrnn.search.budgets.budget` counts it."""
    if settings.get("sampler") == "grid":
        return min(trials, settings.get("trials") or trials)
    if settings.get("trials") is not None:
        return settings["trials"]
    from mcrnn.config.search import DEFAULT_TRIALS

    return DEFAULT_TRIALS


def find(storage: Storage, name: str) -> tuple[str, str]:
    """Return kind and name of the search or run that a user means.

    Args:
        storage: the storage root.
        name: its name, of which a search is found before a run; or its folder below the root, such as `runs/NAME`.

    Raises:
        UserError: there is none; the message says what there is.
    """
    path = name.strip("/")
    named = [kind for kind, folder in FOLDERS.items() if path.startswith(f"{folder}/")]
    found = path.removeprefix(f"{FOLDERS[named[0]]}/") if named else path
    for kind in named or FOLDERS:
        if found and "/" not in found and _is_used(storage.location(f"{FOLDERS[kind]}/{found}")):
            return kind, found
    known = [each for folder in FOLDERS.values() for each in storage.location(folder).folders()]
    raise UserError(f"there is no search and no run '{name}' in '{storage.name}'{did_you_mean(path, known)}")


def _is_used(location: Location) -> bool:
    return RunFolder(location).read_configuration() is not None
