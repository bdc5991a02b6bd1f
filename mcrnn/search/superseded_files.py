"""Checkpoints and models of a search that nobody needs any more, and their deletion.

A trial that has ended needs no checkpoints, and only the best trials keep their models. When a trial ends, it is known
which of these files that makes superfluous, so that no folder has to be listed but those that are deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import optuna

from mcrnn.errors import UserError
from mcrnn.search.study import ENDED, state_of
from mcrnn.search.trial_index import TrialIndex
from mcrnn.storage.location import Location
from mcrnn.tracking.run_folder import CHECKPOINT_FOLDER, MODEL_FOLDER, SearchFolder


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
        self._index = TrialIndex(study) if index is None else index
        self._kept = self._best()

    def _best(self) -> set[int]:
        return {trial.number for trial in [*self._index.ranked(self.keep), *self._index.front]}

    def sweep(self) -> None:
        """List the folders of all trials and delete what is superseded, such as what a killed process has left."""
        ended = {trial.number for trial in self._index.trials if state_of(trial) in ENDED}
        superseded = {CHECKPOINT_FOLDER: ended, MODEL_FOLDER: ended - self._kept}
        for number, part in {tuple(key.split("/")[:2]) for key in self.folder.trials.sizes()}:
            if int(number) in superseded.get(part, set()):
                self.folder.trials.child(f"{number}/{part}").clear()

    def trial_ended(self, number: int, put: Callable[[str, Callable[[], object]], None]) -> None:
        """Delete what the end of a trial has made superfluous; nothing for a trial that goes on.

        Args:
            number: number of the trial.
            put: takes the key of a deletion and the deletion, which may be made later, as by an `Outbox`.
        """
        if state_of(self._index.refresh(number)) not in ENDED:
            return
        before, self._kept = self._kept, self._best()
        put(f"checkpoints of {number}", partial(_delete, self.folder.trial(number).checkpoints))
        for superseded in (before | {number}) - self._kept:
            put(f"model of {superseded}", partial(_delete, self.folder.trial(superseded).model))


def _delete(location: Location) -> None:
    """Delete a folder. Where that is not possible, the next sweep deletes it."""
    with contextlib.suppress(UserError, OSError):
        location.clear()
