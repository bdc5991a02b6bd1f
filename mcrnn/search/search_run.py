"""A search on disk: its folder, its study, and which of its trials are good.

The study and the folder are all the state there is: a search that is run again goes on from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console

from mcrnn.config.sections import Configuration
from mcrnn.config.space import Search
from mcrnn.data.checks import check_store_serves
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.errors import DamagedFileError, UserError, did_you_mean
from mcrnn.models import trained_model, with_resolved_sizes
from mcrnn.search.attributes import END, TrialEnd
from mcrnn.search.budgets import stop_reason, time_limits
from mcrnn.search.confirmation import Confirmation
from mcrnn.search.journal import Journal
from mcrnn.search.study import STUDY, finished_trials, leave_old_study, open_study, study_in_database
from mcrnn.search.superseded_files import Deletion, SupersededFiles
from mcrnn.search.trial_index import TrialIndex
from mcrnn.storage.lease import Lease
from mcrnn.storage.location import Location
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import (
    CONFIRMATION_FOLDER,
    JOURNAL_FILE,
    JOURNAL_PARTS,
    LEASE_FILE,
    RunFolder,
    SearchFolder,
    free_name,
)
from mcrnn.tracking.sync import RunSync, is_synced

MAY_CHANGE = (
    "search.trials",
    "search.hours",
    "search.trial_hours",
    "search.goal",
    "search.failures",
    "search.concurrency",
    "search.gpus",
    "search.keep",
    "search.ensemble",
    "search.first",
    "search.confirm",
    "search.confirm.configurations",
    "search.confirm.seeds",
    "train.max_failures",
    "train.checkpoint_minutes",
    "train.workers",
    "train.cuda_graph",
)
"""Fields of the configuration that may differ when a search is continued: budgets, and how the trials are run."""


@dataclass(frozen=True)
class SearchRun:
    """A search together with its folder, its store and its study."""

    search: Search
    storage: Storage
    folder: SearchFolder
    store: FieldStore
    study: optuna.Study
    journal: Journal
    lease: Lease
    """The lease of the folder, which is held as long as the search is open."""

    @property
    def name(self) -> str:
        """Name of the folder, which differs from that in the configuration after --new."""
        return self.folder.name

    @property
    def model_name(self) -> str:
        """Name of the registered model, and of the experiment in MLflow."""
        return f"mcrnn-{self.search.name}"

    @cached_property
    def first_configuration(self) -> Configuration:
        """The configuration of one point of the space, for the fields that all trials share."""
        return self.search.first_configuration()

    @cached_property
    def field(self) -> FieldDescription:
        """The field that all trials are trained on."""
        return FieldDescription.of(self.store, self.first_configuration.data)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, the winner registered, and confirmed as far as there was time for it."""
        summary, config = self.folder.read_summary(), self.search.search
        if summary is None or stop_reason(self.study, config) is None:
            return False
        if config.ensemble and (summary.get("ensemble") or {}).get("asked") != config.ensemble:
            return False
        if config.confirm is None:
            return True
        made = summary.get("confirmation") or {}
        if made.get("unfinished") is not None:
            return made["limits"] == time_limits(config)
        # version 0.1.0 confirmed one configuration of each architecture, and did not write their number down
        enough = made.get("configurations_asked", math.inf) >= config.confirm.configurations
        return enough and summary.get("seeds", 0) >= config.confirm.seeds

    def ranked_trials(self, index: TrialIndex | None = None) -> list[FrozenTrial]:
        """List the trials that ended well, the best first.

        Trials that were stopped early come after all that ran to their end.

        Args:
            index: the trials of the study; None to read them.
        """
        return (TrialIndex(self.study) if index is None else index).ranked()

    def best_trial(self) -> FrozenTrial | None:
        """Return the best trial that has a model, None where no trial has one."""
        with_model = (t for t in self.ranked_trials() if trained_model.exists(self.folder.trial(t.number).model))
        return next(with_model, None)

    def trained_seconds(self, number: int) -> float:
        """Return the seconds that the epochs of a trial took so far, over all its starts."""
        return _trained_seconds(self.folder.trial(number))

    def confirmation(self, index: TrialIndex | None = None) -> Confirmation:
        """Read how far the confirmation of the trials that have ended by now is.

        Args:
            index: the trials of the study; None to read them.
        """
        return Confirmation.of(self.search, self.folder, self.ranked_trials(index))

    def confirmation_seconds(self) -> float:
        """Return the seconds that all trainings with other seeds took, also of configurations that compete no more."""
        trainings = self.folder.location.child(CONFIRMATION_FOLDER)
        names = {key.split("/")[0] for key in trainings.sizes() if "/" in key}
        return sum(_trained_seconds(self.folder.retraining(name)) for name in names)

    def superseded_files(self, index: TrialIndex | None = None) -> SupersededFiles:
        """Return what deletes the files of trials that nobody needs any more.

        Args:
            index: the trials of the study, kept up to date by whoever changes them; None to read them.
        """
        return SupersededFiles(self.folder, self.study, self.search.search.kept_models, index)

    def remove_superseded_files(self) -> None:
        """Delete the checkpoints of trials that ended, and the models of all but the best trials.

        What cannot be deleted stays, with a warning.
        """
        with Deletion(self.folder.url).tolerated():  # also the trials may not be readable
            self.superseded_files().sweep()


def _trained_seconds(folder: RunFolder) -> float:
    """Return the seconds that the epochs of a training took so far; 0 where its file is damaged."""
    with suppress(DamagedFileError):
        return sum(metrics.get("seconds", 0.0) for metrics in folder.read_metrics())
    return 0.0


@contextmanager
def open_search(search: Search, storage: Storage, *, new: bool) -> Iterator[SearchRun]:
    """Check a search against its store and open its folder, in which no other process works inside the context.

    The lease of the folder comes first: a journal that is read before, or trials that are added to the study, would
    miss what another process writes until it ends.

    Args:
        search: what to search.
        storage: the storage root.
        new: True to start a new search beside one of the same name.

    Yields:
        The search.

    Raises:
        UserError: the store cannot be used, its samples are too short, the folder holds another search, or another
            process runs this one.
    """
    searches = storage.location("searches")
    folder = SearchFolder(searches.child(free_name(searches, search.name, new=new)))
    store = check(search, storage, (folder.read_configuration() or {}).get("store_digest"))
    earlier = [_open_earlier(name, searches, search.search.storage) for name in search.search.warm_start]
    with Lease(folder.location, LEASE_FILE, "search") as lease:
        if folder.read_configuration() is None:
            leave_old_study(search, folder)  # before the folder is claimed, or a kill in between would find the old one
        folder.claim(search.content() | {"store_digest": store.digest}, MAY_CHANGE)
        journal = Journal.open(folder.location)
        yield SearchRun(search, storage, folder, store, open_study(journal, search, earlier), journal, lease)


def _open_earlier(name: str, searches: Location, database: str | None) -> optuna.Study:
    """Open the study of an earlier search, renamed to that search, so that its copied trials say where they are from.

    Args:
        name: name of the search's folder.
        searches: the folder of all searches.
        database: URL of the database in which the study may be, in place of the search's folder.

    Raises:
        UserError: there is no such search, or its study is in another database.
    """
    folder = searches.child(name)
    if database is not None and (study := study_in_database(database, folder)) is not None:
        study.study_name = name
        return study
    journal = Journal.open(folder)
    if not journal.file.exists():
        keys = [key.split("/") for key in searches.sizes()]
        known = sorted({key[0] for key in keys if len(key) > 1 and key[1] in (JOURNAL_FILE, JOURNAL_PARTS)})
        raise UserError(
            f"search.warm_start: there is no search '{name}' with a journal here{did_you_mean(name, known)}"
        )
    study = optuna.load_study(study_name=STUDY, storage=journal.storage())
    study.study_name = name
    return study


@dataclass
class ActiveSearch:
    """A search that this process runs, with the services that it needs for that."""

    search_run: SearchRun
    sync: RunSync
    """Sends the runs to MLflow."""
    uploads: Outbox
    """Sends the journal of the study to object storage, and deletes files that are superseded."""
    console: Console
    index: TrialIndex
    """The trials of the study, kept up to date while they run."""
    interrupted: bool = False
    """Whether a stop was asked for."""

    def start_mlflow_run(self) -> None:
        """Create the search's own run in MLflow, or let it go on. The runs of its trainings will be below it."""
        search_run = self.search_run
        content = search_run.folder.read_configuration()
        assert content is not None
        fixed: dict[str, Any] = {
            key: content[key] for key in ("data", "model", "train", "validation", "search") if key in content
        }
        search_run.folder.write_record(
            search_run.name,
            tags={"mcrnn.kind": "search", "mcrnn.searched": ", ".join(search_run.search.space)},
            params=fixed,
            files={"search.json": content},
            dataset=search_run.field.as_dataset(search_run.first_configuration.data.store),
        )
        self.sync.update_now(search_run.folder, "RUNNING")
        self.sync.parent = search_run.folder

    def upload_journal(self) -> None:
        """Extend the snapshot of the study if it is time for it, and upload both if the folder is on object storage.

        It does not wait for the upload.
        """
        if self.search_run.lease.lost:  # another process writes the study now
            return
        journal = self.search_run.journal
        journal.checkpoint()
        if journal.is_remote:
            self.uploads.put("journal", self._upload)

    def _upload(self) -> None:
        """Upload the journal, unless another process has written it since this was asked for."""
        if not self.search_run.lease.lost:
            self.search_run.journal.upload()

    def finish_mlflow_runs(self) -> None:
        """Complete the runs of all trainings that ended, also of those whose driver was killed before it could."""
        search_run = self.search_run
        ends = {
            search_run.folder.trial(t.number): TrialEnd(t.user_attrs.get(END, TrialEnd.FAILED))
            for t in finished_trials(search_run.study)
        }
        ends |= {
            each.folder: TrialEnd.FINISHED for each in search_run.confirmation(self.index).started if each.finished
        }
        for folder, end in ends.items():
            if not is_synced(folder):
                self.sync.update(folder, end.mlflow_status)


def check(search: Search, storage: Storage, digest: str | None = None) -> FieldStore:
    """Check that a store can serve every trial of a search. Nothing is written.

    Args:
        search: the search.
        storage: the storage root.
        digest: digest that the store had when the search was started; it is then read as it was.

    Raises:
        UserError: the store cannot be used, its samples are too short, or no width comes near a budget of parameters.
    """
    first = search.first_configuration()
    store = FieldStore.open(storage.location(first.data.store)).as_of(digest)
    field = FieldDescription.of(store, first.data)
    for values in search.space.corners():
        config = with_resolved_sizes(search.configuration(values), field.frame_shape, len(field.inputs))
        check_store_serves(store, config)
    return store
