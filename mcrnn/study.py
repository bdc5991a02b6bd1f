"""The Optuna study of a search: the only record of what was tried and how it ended.

Tune asks it for trials through `StudySearcher` and tells it how they went; a search that is run again looks
here for what is done. It lives in a journal file beside the results, which optuna-dashboard opens too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from mcrnn.search_space import sampler, suggest
from mcrnn.space import Search
from mcrnn.training import OBJECTIVE

JOURNAL = "study.journal"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def open_study(folder: Path, search: Search) -> optuna.Study:
    """The study of a search folder, created where there is none.

    Trials that a killed search left running are failed, and their values enqueued again.
    """
    study = optuna.create_study(
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        direction="minimize",
        load_if_exists=True,
    )
    cover = search.search.cover
    if not study.trials and cover is not None and cover in search.space:
        for choice in search.space.entries[cover][0].choice or []:
            study.enqueue_trial({search.parameter(cover, 0): choice})
    for orphan in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(orphan.number, state=TrialState.FAIL)
        study.enqueue_trial(orphan.params, user_attrs={"again": orphan.number})
        study.set_user_attr(f"orphan {orphan.number}", True)
    return study


def tried(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: all that ended, but for the orphans, which are tried again."""
    orphans = {int(key.split()[1]) for key in study.user_attrs if key.startswith("orphan ")}
    return [t for t in study.get_trials(states=ENDED) if t.number not in orphans]


class StudySearcher(Searcher):
    """Hands the study's trials to Tune, and their results to the study."""

    def __init__(self, study: optuna.Study, search: Search) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self.study, self.search = study, search
        self.left = search.search.trials - len(tried(study))
        self.asked: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial as a Tune configuration: its number and its values."""
        if self.left == 0:
            return Searcher.FINISHED
        self.left -= 1
        trials = self.study.get_trials(deepcopy=False)
        waiting = [t.number for t in trials if t.state == TrialState.WAITING]
        self.study.sampler = sampler(self.search.search, min(waiting, default=len(trials)))
        trial = self.study.ask()
        self.asked[trial_id] = trial
        return {"number": trial.number, "values": suggest(trial, self.search)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch has ended."""
        if "epoch" in result:
            self.asked[trial_id].report(result[OBJECTIVE], step=int(result["epoch"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended: at its last epoch, stopped early, diverged, or by a failure."""
        trial = self.asked.pop(trial_id)
        if error or not result or "epoch" not in result:
            trial.set_user_attr("end", "failed")
            self.study.tell(trial, state=TrialState.FAIL)
            return
        kept = ("epoch", "rmse_closed_loop", "rmse_teacher_forced", "time_total_s", OBJECTIVE, "best")
        trial.set_user_attr("result", {key: result[key] for key in kept if key in result})
        epochs = self.search.configuration(self.search.values(trial.params)).train.epochs
        if result["diverged"]:
            trial.set_user_attr("end", "diverged")
        else:
            trial.set_user_attr("end", "finished" if result["epoch"] >= epochs else "stopped")
        if trial.user_attrs["end"] == "stopped":
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, result["best"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save beside the study, which is always up to date."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
