"""A search on disk: its folder, its study, and which of its trials are good.

The study and the folder are all the state there is: a search that is run again goes on from them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from mcrnn.config.space import Search
from mcrnn.data.checks import check_store_serves
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError, did_you_mean
from mcrnn.models import trained_model, with_resolved_width
from mcrnn.search import confirmation
from mcrnn.search.study import JOURNAL, STUDY, Journal, TrialEnd, finished_trials, open_study, stop_reason
from mcrnn.storage.lease import Lease
from mcrnn.storage.location import Location
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.root import Storage
from mcrnn.tracking import run_folder
from mcrnn.tracking.provenance import mask_passwords
from mcrnn.tracking.run_folder import CHECKPOINT_FOLDER, MODEL_FOLDER, read_json, write_record
from mcrnn.tracking.sync import RunSync, is_synced

SUMMARY_FILE = "summary.json"
MAY_CHANGE = (
    "search.trials",
    "search.hours",
    "search.trial_hours",
    "search.goal",
    "search.failures",
    "search.concurrency",
    "search.gpus",
    "search.keep",
    "search.confirm",
    "search.confirm.seeds",
    "train.max_failures",
    "train.checkpoint_minutes",
    "train.workers",
)
"""when a search is continued: budgets, and how it is done"""


@dataclass(frozen=True)
class SearchRun:
    """A search and the folder that it lives in."""

    search: Search
    storage: Storage
    folder: Location
    store: FieldStore
    study: optuna.Study
    journal: Journal

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.url.rsplit("/", 1)[-1]

    @property
    def model_name(self) -> str:
        """Name in the registry and of the experiment."""
        return f"mcrnn-{self.search.name}"

    @property
    def finished(self) -> bool:
        """Whether the budget is spent and the winner registered."""
        summary = self.summary
        if summary is None or stop_reason(self.study, self.search.search) is None:
            return False
        asked = self.search.search.confirm
        return asked is None or summary.get("seeds", 0) >= asked.seeds

    @property
    def summary(self) -> dict[str, Any] | None:
        """What was written down when the search ended, None before."""
        return read_json(self.folder, SUMMARY_FILE)

    def trial_folder(self, number: int) -> Location:
        """Where a trial keeps its state and model."""
        return self.folder.child(f"trials/{number:04d}")


def open_search(search: Search, storage: Storage, *, new: bool) -> SearchRun:
    """Check a search against its store and open its folder, or a new one beside it.

    Raises:
        UserError: the store cannot be used, its samples are too short, or the folder holds another search.
    """
    store = check(search, storage)
    parent = storage.location("searches")
    folder = parent.child(run_folder.free_name(parent, search.name, new=new))
    content = json.loads(mask_passwords(json.dumps(search.content())))
    earlier = [_earlier(name, parent) for name in search.search.warm_start]
    run_folder.claim_folder(folder, content | {"store_digest": store.digest}, MAY_CHANGE)
    journal = Journal.open(folder)
    return SearchRun(search, storage, folder, store, open_study(journal, search, earlier), journal)


def _earlier(name: str, searches: Location) -> optuna.Study:
    journal = Journal.open(searches.child(name))
    if not journal.file.exists():
        known = [key.split("/")[0] for key in searches.sizes() if key.count("/") == 1 and key.endswith(JOURNAL)]
        raise UserError(
            f"search.warm_start: there is no search '{name}' with a journal here{did_you_mean(name, known)}"
        )
    study = optuna.load_study(study_name=STUDY, storage=journal.storage())
    study.study_name = name
    return study


def remove_superseded_files(opened: SearchRun) -> None:
    """Remove the checkpoints of trials that ended, and the models of all but the best."""
    ended = {t.number for t in finished_trials(opened.study)}
    kept = {t.number for t in ranked_trials(opened)[: opened.search.search.keep]}
    trials = opened.folder.child("trials")
    for folder in {tuple(key.split("/")[:2]) for key in trials.sizes()}:
        number, part = int(folder[0]), folder[1]
        if (part == CHECKPOINT_FOLDER and number in ended) or (part == MODEL_FOLDER and number in ended - kept):
            trials.child("/".join(folder)).clear()


def ranked_trials(opened: SearchRun) -> list[FrozenTrial]:
    """Trials that ended well, the best first; those that ran to their end before those stopped early."""
    good = [
        t for t in finished_trials(opened.study) if t.user_attrs.get("end") in (TrialEnd.FINISHED, TrialEnd.STOPPED)
    ]
    return sorted(good, key=lambda t: (t.state != TrialState.COMPLETE, t.user_attrs["result"]["best"], t.number))


def best_trial(opened: SearchRun) -> FrozenTrial | None:
    """The best that has a model, None where no trial has one."""
    kept = (t for t in ranked_trials(opened) if trained_model.exists(opened.trial_folder(t.number).child(MODEL_FOLDER)))
    return next(kept, None)


@dataclass
class ActiveSearch:
    """A search that is being run, and what it tells others of itself."""

    opened: SearchRun
    mirrors: RunSync
    copies: Outbox
    """of the journal, to object storage"""
    lease: Lease
    console: Console

    def begin(self) -> str:
        """Begin the search's run in MLflow, or go on with it; returns its id."""
        opened = self.opened
        content = read_json(opened.folder, run_folder.SEARCH_FILE)
        fixed = {key: content[key] for key in ("data", "model", "train", "validation", "search") if key in content}
        write_record(
            opened.folder,
            opened.name,
            tags={"mcrnn.kind": "search", "mcrnn.searched": ", ".join(opened.search.space)},
            params=fixed,
            files={"search.json": content},
        )
        return self.mirrors.now(opened.folder, "RUNNING").run_id

    def tell(self) -> None:
        """Copy the study to where the search lives, soon."""
        if self.opened.journal.is_copied:
            self.copies.put("journal", self.opened.journal.copy)

    def end_runs(self) -> None:
        """End the runs of all trainings that ended, also those whose driver was killed before it could."""
        ended = {
            self.opened.trial_folder(t.number): t.user_attrs.get("end") for t in finished_trials(self.opened.study)
        }
        ended |= {
            each.folder(self.opened.folder): None
            for each in confirmation.planned_retrainings(self.opened.search, ranked_trials(self.opened))
            if each.finished(self.opened.folder)
        }
        for folder, end in ended.items():
            if not is_synced(folder):
                self.mirrors.update(folder, "FAILED" if end == TrialEnd.FAILED else "FINISHED")


def check(search: Search, storage: Storage) -> FieldStore:
    """Whether the store can serve all of a search; nothing is written.

    Raises:
        UserError: the store cannot be used, its samples are too short, or no width comes near a budget of parameters.
    """
    first = search.first_configuration()
    store = FieldStore.open(storage.location(first.data.store))
    frame_shape = FieldDescription.of(store, first.data).frame_shape
    for values in search.space.corners():
        config = with_resolved_width(search.configuration(values), frame_shape)
        check_store_serves(store, config)
    return store
