"""Checkpoints and models of a search that nobody needs any more, and their deletion.

A trial that has ended needs no checkpoints, and only the best trials keep their models. When a trial ends, it is known
which of these files that makes superfluous, so that no folder has to be listed but those that are deleted.

Files that stay although nobody needs them cost room and nothing else. So no error is raised here, where it would fail a
trial that has ended well, or keep a finished search from registering its model: the first one is a warning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import optuna

from mcrnn.errors import first_line
from mcrnn.search.study import ENDED, state_of
from mcrnn.search.trial_index import TrialIndex
from mcrnn.storage.location import Location
from mcrnn.storage.retry import print_warning
from mcrnn.tracking.run_folder import CHECKPOINT_FOLDER, MODEL_FOLDER, SearchFolder


class Deletion:
    """Deletes folders, and warns of the first error without raising it.

    Args:
        url: URL of the folder that holds them, for the warning.
        warn: called with the warning; by default it is printed to stderr.
    """

    def __init__(self, url: str, warn: Callable[[str], None] = print_warning) -> None:
        self.url, self.warn = url, warn
        self._has_warned = False

    def delete(self, location: Location) -> None:
        """Delete a folder. Where that is not possible, the next sweep deletes it."""
        with self.tolerated():
            location.clear()

    @contextlib.contextmanager
    def tolerated(self) -> Iterator[None]:
        """Let no error out of the block."""
        try:
            yield
        except Exception as error:
            reason = first_line(error)
            if not self._has_warned:
                self.warn(f"files in '{self.url}' that the search needs no more cannot be deleted: {reason}")
            self._has_warned = True


class SupersededFiles:
    """Deletes the checkpoints of trials that ended, and the models of all but the best trials.

    The best trials keep their models, and with several objectives the whole Pareto front does.

    Args:
        folder: folder of the search.
        study: its study.
        keep: number of the best trials whose models are kept.
        index: the trials of the study, kept up to date by whoever changes them; None to read them.
    """

    def __init__(self, folder: SearchFolder, study: optuna.Study, keep: int, index: TrialIndex | None = None) -> None:
        self.folder, self.keep = folder, keep
        self._deletion = Deletion(folder.url)
        self._index = TrialIndex(study) if index is None else index
        self._kept = self._best()

    def _best(self) -> set[int]:
        return {trial.number for trial in [*self._index.ranked(self.keep), *self._index.front]}

    def sweep(self) -> None:
        """List the folders of all trials and delete what is superseded, such as what a killed process has left.

        Files and folders of other names, which are not the search's, are left alone.
        """
        with self._deletion.tolerated():
            ended = {trial.number for trial in self._index.trials if state_of(trial) in ENDED}
            superseded = {CHECKPOINT_FOLDER: self._names(ended), MODEL_FOLDER: self._names(ended - self._kept)}
            keys = [key.split("/") for key in self.folder.trials.sizes()]
            for name, part in {(key[0], key[1]) for key in keys if len(key) > 2}:
                if name in superseded.get(part, set()):
                    self._deletion.delete(self.folder.trials.child(f"{name}/{part}"))

    def _names(self, numbers: set[int]) -> set[str]:
        return {self.folder.trial(number).name for number in numbers}

    def trial_ended(self, number: int, put: Callable[[str, Callable[[], object]], None]) -> None:
        """Delete what the end of a trial has made superfluous; nothing for a trial that goes on.

        Args:
            number: number of the trial.
            put: takes the key of a deletion and the deletion, which may be made later, as by an `Outbox`.
        """
        with self._deletion.tolerated():
            if state_of(self._index.refresh(number)) not in ENDED:
                return
            before, self._kept = self._kept, self._best()
            put(f"checkpoints of {number}", partial(self._deletion.delete, self.folder.trial(number).checkpoints))
            for superseded in (before | {number}) - self._kept:
                put(f"model of {superseded}", partial(self._deletion.delete, self.folder.trial(superseded).model))
