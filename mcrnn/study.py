"""The Optuna study of a search: the only record of what was tried and how it ended.

Tune asks it for trials through `StudySearcher`, stops them as `StudyScheduler` finds in it, and tells it how they
went. A search that is run again looks here for what is done, and takes up the trials that were running where they
are. It lives in a journal beside the results or in a database, which optuna-dashboard opens too.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, cast

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mcrnn.config.paths import Values
from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search
from mcrnn.errors import UserError
from mcrnn.search_space import distribution, sampler, suggest
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.outbox import NotSent
from mcrnn.training.session import OBJECTIVE, PENALTY

JOURNAL = "study.journal"
STUDY = "search"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
LARGEST_GRID = 10_000
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "error": "minimize",
    "parameters": "minimize",
    "frames_per_second": "maximize",
}
KEPT = ("epoch", "rmse_closed_loop", "rmse_teacher_forced", OBJECTIVE, "best", "frames_per_second", "parameters")
"""of a trial's last result"""


class TrialEnd(StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


@dataclass(frozen=True)
class Journal:
    """The study of a search folder as a file; of a folder on object storage, a copy that follows this one."""

    folder: Location
    file: Path

    @classmethod
    def open(cls, folder: Location) -> Journal:
        """Where the file is, fetched if it must be."""
        if isinstance(folder, LocalFolder):
            folder.path.mkdir(parents=True, exist_ok=True)
            return cls(folder, folder.path / JOURNAL)
        file = Path(tempfile.mkdtemp(prefix="mcrnn-study-")) / JOURNAL
        with contextlib.suppress(FileNotFoundError):
            file.write_bytes(folder.read(JOURNAL))
        return cls(folder, file)

    @property
    def is_copied(self) -> bool:
        """Whether it is to be copied to its folder."""
        return not isinstance(self.folder, LocalFolder)

    def storage(self) -> JournalStorage:
        """For Optuna."""
        return JournalStorage(JournalFileBackend(str(self.file)))

    def copy(self) -> None:
        """Copy it to its folder.

        Raises:
            NotSent: the folder cannot be reached.
        """
        content = self.file.read_bytes()
        content = content[: content.rfind(b"\n") + 1]  # another thread may be writing a line
        try:
            self.folder.write(JOURNAL, content)
        except (UserError, OSError) as error:
            raise NotSent(str(error)) from None


def open_study(journal: Journal, search: Search, earlier: Iterable[optuna.Study] = ()) -> optuna.Study:
    """The study of a search folder, created where there is none.

    Args:
        journal: where it lives, unless it is in a database.
        search: what is searched.
        earlier: studies whose trials a new one learns from, as far as they fit the space.

    Raises:
        UserError: the database cannot be used, or a grid is too large.
    """
    several = len(search.search.objectives) > 1
    name = STUDY if search.search.storage is None else f"{search.name}:{journal.folder.url}"
    study = optuna.create_study(
        study_name=name,
        storage=_storage(journal, search.search),
        directions=[DIRECTIONS[objective] for objective in search.search.objectives],
        load_if_exists=True,
    )
    if not several:
        study.pruner = pruner(search.search)
    if not study.trials:
        for values in _first(search):
            study.enqueue_trial(values)
        for before in earlier:
            study.add_trials(_fitting(before, search))
    return study


def _storage(journal: Journal, config: SearchConfig) -> BaseStorage:
    if config.storage is None:
        return journal.storage()
    try:
        return RDBStorage(config.storage)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"search.storage: the database cannot be used ({type(error).__name__}: {reason})") from None


def _first(search: Search) -> list[Values]:
    """Parameters of the trials that come before the sampler decides: a whole grid, or one of each choice."""
    config, space = search.search, search.space
    if config.sampler == "grid":
        grid = list(itertools.islice(space.grid(), LARGEST_GRID + 1))
        if len(grid) > LARGEST_GRID:
            raise UserError(f"the grid of '{search.name}' has more than {LARGEST_GRID} trials; use another sampler")
        return [search.parameters(values) for values in grid[: config.trials]]
    if config.cover is None or config.cover not in space:
        return []
    return [{search.parameter(config.cover, 0): choice} for choice in space.entries[config.cover][0].choice or []]


def _fitting(before: optuna.Study, search: Search) -> list[FrozenTrial]:
    """Trials of an earlier study that this space could have drawn, with its distributions."""
    fitting = []
    for trial in before.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if before.directions != [optuna.study.StudyDirection.MINIMIZE] or "from" in trial.user_attrs:
            continue
        values = search.values(trial.params)
        distributions = {}
        for path in search.space:
            index, entry = search.space.holding(path, values), search.space.entry(path, values)
            if index is not None and entry is not None:
                distributions[search.parameter(path, index)] = distribution(entry)
        parameters = search.parameters({path: value for path, value in values.items() if path in search.space})
        if parameters.keys() != distributions.keys() or len(values) != len(parameters):
            continue
        with contextlib.suppress(ValueError):  # a value that this space could not have drawn
            fitting.append(
                optuna.trial.create_trial(
                    params=parameters,
                    distributions=distributions,
                    value=trial.value,
                    user_attrs={"from": before.study_name, "end": trial.user_attrs.get("end", "")},
                )
            )
    return fitting


def pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    """What stops trials early. What it has decided is in the study, so that it goes on where it was."""
    if config.early_stopping == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=config.asha.grace_epochs, reduction_factor=config.asha.reduction_factor
        )
    if config.early_stopping == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=config.median.grace_trials, n_warmup_steps=config.median.grace_epochs
        )
    return optuna.pruners.NopPruner()


def own(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of this search, those learnt from left out."""
    return [t for t in study.get_trials(deepcopy=False) if "from" not in t.user_attrs]


def tried(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended."""
    return [t for t in own(study) if t.state in ENDED]


def budget(study: optuna.Study, config: SearchConfig) -> int:
    """The number of trials of a search."""
    if config.trials is not None:
        return config.trials
    return len(own(study)) if config.sampler == "grid" else 20


def spent(study: optuna.Study, config: SearchConfig, hours: float = 0.0) -> str | None:
    """Why a search has come to its end, None where it goes on.

    Args:
        study: its study.
        config: its budgets.
        hours: since it was started this time.
    """
    ended = tried(study)
    failed = sum(t.user_attrs.get("end") == TrialEnd.FAILED for t in ended)
    if len(ended) >= budget(study, config):
        return "all trials are done"
    if config.hours is not None and study.user_attrs.get("hours", 0.0) + hours >= config.hours:
        return f"its {config.hours:g} hours are spent"
    if config.trial_hours is not None and sum(_seconds(t) for t in ended) / 3600 >= config.trial_hours:
        return f"its {config.trial_hours:g} trial hours are spent"
    if config.goal is not None and any(t.value is not None and t.value <= config.goal for t in ended):
        return f"the goal of {config.goal:g} is reached"
    return f"{failed} trials failed" if failed >= config.failures else None


def _seconds(trial: FrozenTrial) -> float:
    return trial.user_attrs.get("result", {}).get("time_total_s", 0.0)


class _WithoutTrial:
    """A study as it is for all but one of its trials, which must not learn from what it has itself written."""

    def __init__(self, study: optuna.Study, trial_id: int) -> None:
        self._study, self._own = study, trial_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        """The others."""
        return self._others(self._study.get_trials(*arguments, **options))

    def _get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        return self._others(self._study._get_trials(*arguments, **options))

    def _others(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return [trial for trial in trials if trial._trial_id != self._own]


class StudySearcher(Searcher):
    """Hands the study's trials to Tune, and their results to the study."""

    def __init__(self, study: optuna.Study, search: Search, on_told: Callable[[], None] = lambda: None) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self.study, self.search, self.on_told = study, search, on_told
        self.interrupted = [t for t in own(study) if t.state == TrialState.RUNNING]
        """trials that a killed search left, which go on first"""
        self.asked: dict[str, optuna.Trial] = {}
        self.stopped: set[str] = set()
        """trials that were stopped early"""
        self.end_training: Callable[[int, int], None] | None = None
        """asks the trial of a number to end by what it was after an epoch, where Tune is not to stop it: killed in the
        middle of it, Ray Train would keep the CPUs of its workers for ever"""
        self.ending: str | None = None
        """why no more trials are begun"""
        self.mistake: str | None = None
        """what is wrong with a configuration or our code, which ends the search at once"""
        self.started = time.monotonic()
        self.hours_before = study.user_attrs.get("hours", 0.0)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles it with its own state, from which we never restore."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial as a Tune configuration: its number and its values."""
        config = self.search.search
        begun = len(tried(self.study)) + len(self.asked)
        self.ending = self.ending or self.mistake or spent(self.study, config, self._hours())
        if self.ending:
            self._remember_hours()
        if self.ending or begun >= budget(self.study, config):
            return Searcher.FINISHED
        if self.interrupted:
            number = self.interrupted.pop(0).number
        else:
            trials = self.study.get_trials(deepcopy=False)
            number = min((t.number for t in trials if t.state == TrialState.WAITING), default=len(trials))
        # a trial's values follow from its number and those that ended before it
        self.study.sampler = sampler(config, number)  # which may act when a trial is begun
        running = [t for t in own(self.study) if t.number == number and t.state == TrialState.RUNNING]
        if running:  # it may have some of its values
            others = cast("optuna.Study", _WithoutTrial(self.study, running[0]._trial_id))
            trial = optuna.Trial(others, running[0]._trial_id)
        else:
            trial = self.study.ask()
        self.asked[trial_id] = trial
        self.on_told()
        return {"number": trial.number, "values": suggest(trial, self.search)}

    def _hours(self) -> float:
        return (time.monotonic() - self.started) / 3600

    def _remember_hours(self) -> None:
        self.study.set_user_attr("hours", self.hours_before + self._hours())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Taken by the scheduler, which comes first."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended: at its last epoch, stopped early, diverged, or by a failure."""
        trial = self.asked.pop(trial_id, None)
        if trial is None:  # told already; see `StudyScheduler`
            return
        self._remember_hours()
        if result and result.get("interrupted"):
            return  # it goes on when the search does
        if result and result.get("mistake"):
            self.mistake = result["mistake"]
            return  # nothing was learnt: once it is mended, the trial goes on
        if error or not result or "epoch" not in result:
            trial.set_user_attr("end", TrialEnd.FAILED)
            self.study.tell(trial, state=TrialState.FAIL)
            self.on_told()
            return
        trial.set_user_attr("result", {key: result[key] for key in (*KEPT, "time_total_s") if key in result})
        end = TrialEnd.STOPPED if trial_id in self.stopped else TrialEnd.FINISHED
        if result.get("out_of_memory"):
            end = TrialEnd.OUT_OF_MEMORY
        elif result["diverged"]:
            end = TrialEnd.DIVERGED
        trial.set_user_attr("end", end)
        if end == TrialEnd.STOPPED:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, self._objectives(result, failed=end != TrialEnd.FINISHED))
        self.on_told()

    def _objectives(self, result: dict[str, Any], *, failed: bool) -> list[float]:
        values = {
            "error": PENALTY if failed else result["best"],
            "parameters": result.get("parameters", 0.0),
            "frames_per_second": 0.0 if failed else result.get("frames_per_second", 0.0),
        }
        return [float(values[objective]) for objective in self.search.search.objectives]

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save beside the study, which is always up to date."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class StudyScheduler(FIFOScheduler):
    """Stops trials as the study's pruner says, whose memory is the study."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """See `StudySearcher`."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """An epoch has ended."""
        searcher = self.searcher
        several = len(searcher.search.search.objectives) > 1
        if "epoch" not in result or several:
            return TrialScheduler.CONTINUE
        asked = searcher.asked.get(trial.trial_id)
        if asked is None:  # it has ended, and Tune has started it again because its process failed in stopping
            return TrialScheduler.STOP
        if trial.trial_id in searcher.stopped:  # it is about to end
            return TrialScheduler.CONTINUE
        epoch = self._stops_by(asked, int(result["epoch"]), result)
        if epoch is None:
            return TrialScheduler.CONTINUE
        searcher.stopped.add(trial.trial_id)
        if searcher.end_training is None:
            return TrialScheduler.STOP
        searcher.end_training(asked.number, epoch)
        return TrialScheduler.CONTINUE

    def _stops_by(self, asked: optuna.Trial, step: int, result: dict[str, Any]) -> int | None:
        """The epoch by which a trial is stopped, None where it goes on; what was decided once stays so."""
        known = self.searcher.study._storage.get_trial(asked._trial_id)
        decided = known.user_attrs.get("decided", {"step": 0, "stop": False})
        if step <= decided["step"] or decided["stop"]:  # told once more, after an interruption
            return decided["step"] if decided["stop"] and step >= decided["step"] else None
        if step not in known.intermediate_values:
            asked.report(result[OBJECTIVE], step=step)
        stop = step < result.get("epochs", step + 1) and self._prunes(asked._trial_id, step)
        asked.set_user_attr("decided", {"step": step, "stop": stop})
        return step if stop else None

    def _prunes(self, trial_id: int, step: int) -> bool:
        """What the pruner says of a step; the same again where a kill came before its decision was written down.

        Successive halving writes that a trial is at a rung before it decides. What an earlier try has written is
        therefore kept from it.
        """
        study = self.searcher.study
        trial = study._storage.get_trial(trial_id)
        asha = self.searcher.search.search.asha
        reached = {f"completed_rung_{r}" for r in range(64) if asha.grace_epochs * asha.reduction_factor**r >= step}
        trial._system_attrs = {key: value for key, value in trial.system_attrs.items() if key not in reached}
        return bool(study.pruner.prune(cast("optuna.Study", _WithoutTrial(study, trial_id)), trial))


@contextmanager
def optuna_quiet() -> Iterator[None]:
    """Without warnings of what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
