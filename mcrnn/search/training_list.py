"""The trainings of a confirmation as Ray Tune's searcher, which proposes one whenever there is room for it.

Given a grid of them, Tune would start all that wait, also after a stop was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.search import Searcher

from mcrnn.search.unsaved import Unsaved
from mcrnn.training.session import OBJECTIVE


class TrainingList(Unsaved, Searcher):
    """Proposes the trainings of a list, one after another.

    Args:
        proposals: what `mcrnn.search.trials.run_trial` gets for each training.
        is_stopped: returns whether no further training is to be started.
    """

    def __init__(self, proposals: Iterable[dict[str, Any]], is_stopped: Callable[[], bool]) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self.remaining, self.is_stopped = list(proposals), is_stopped

    def suggest(self, trial_id: str) -> Any:
        """Propose the next training; Searcher.FINISHED where no more are to be started."""
        if self.is_stopped() or not self.remaining:
            return Searcher.FINISHED
        return {"proposal": self.remaining.pop(0)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: how a training ended is in its folder."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a confirmation goes on from the folders of its trainings."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a confirmation goes on from the folders of its trainings."""
