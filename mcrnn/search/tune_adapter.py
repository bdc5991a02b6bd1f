"""The study as Ray Tune's searcher and scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mcrnn.config.space import Search
from mcrnn.search.sampling import sampler, suggest
from mcrnn.search.study import REPORTED_METRICS, TrialEnd, budget, finished_trials, search_trials, stop_reason
from mcrnn.training.session import OBJECTIVE, PENALTY


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

    def __init__(
        self, study: optuna.Study, search: Search, on_study_changed: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self.study, self.search, self.on_study_changed = study, search, on_study_changed
        self.interrupted = [t for t in search_trials(study) if t.state == TrialState.RUNNING]
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
        begun = len(finished_trials(self.study)) + len(self.asked)
        self.ending = self.ending or self.mistake or stop_reason(self.study, config, self._hours())
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
        running = [t for t in search_trials(self.study) if t.number == number and t.state == TrialState.RUNNING]
        if running:  # it may have some of its values
            others = cast("optuna.Study", _WithoutTrial(self.study, running[0]._trial_id))
            trial = optuna.Trial(others, running[0]._trial_id)
        else:
            trial = self.study.ask()
        self.asked[trial_id] = trial
        self.on_study_changed()
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
            self.on_study_changed()
            return
        trial.set_user_attr(
            "result", {key: result[key] for key in (*REPORTED_METRICS, "time_total_s") if key in result}
        )
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
        self.on_study_changed()

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
