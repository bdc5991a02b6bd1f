"""The study as Ray Tune's searcher, which proposes trials, and as its scheduler, which stops them early.

Both keep nothing of their own that a search would need again: what they decide follows from the study, and is written
there before Tune learns of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mcrnn.config.paths import Values
from mcrnn.config.space import Search
from mcrnn.search.attributes import DECIDED, END, ERROR, RESULT, STOPPED_PAUSED, TARGET, VALUES_ATTRIBUTE, TrialEnd
from mcrnn.search.budgets import Budgets, budget, stop_reason
from mcrnn.search.database import written_together
from mcrnn.search.learning import StudyView
from mcrnn.search.sampling import suggest
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.trial_progress import TrialProgress
from mcrnn.search.trial_report import TrialReport, error_of
from mcrnn.search.unsaved import Unsaved
from mcrnn.training.session import OBJECTIVE, PENALTY

CONSTRAINT = "ends well"
"""Name of the constraint that a trial violates which diverged or ran out of memory."""
SECOND_TRY = "second try"
"""User attribute of a trial that ran out of memory beside others and is tried once more, after all others."""


class StudySearcher(Unsaved, Searcher):
    """Proposes the study's trials to Tune, and writes their results into the study.

    Args:
        study: study of the search.
        search: what is searched.
        on_study_changed: called when the study should be uploaded.
        budgets: the budgets of the search; None for those of a search that runs one trial at a time.
    """

    def __init__(
        self,
        study: optuna.Study,
        search: Search,
        on_study_changed: Callable[[], None] = lambda: None,
        budgets: Budgets | None = None,
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self.study, self.search, self.on_study_changed = study, search, on_study_changed
        study.sampler = optuna.samplers.RandomSampler(seed=0)  # draws nothing: `suggest` sets one for each trial
        self.budgets = budgets or Budgets(study, search)
        self.index: TrialIndex = self.budgets.index
        self._take_up_stopped()
        self.progress = TrialProgress(search, self.index)
        unfinished = sorted(self.index.running - self.progress.paused.keys())
        self.interrupted_trials = [n for n in unfinished if SECOND_TRY not in self.index.trial(n).user_attrs]
        """Numbers of the trials that an interrupted search left unfinished; they are proposed first."""
        self.second_tries = [n for n in unfinished if SECOND_TRY in self.index.trial(n).user_attrs]
        """Numbers of the trials that are tried once more; they are proposed last, when fewer others run."""
        self.running: dict[str, optuna.Trial] = {}
        """Trials that run now, by Tune's id."""
        self.pruned: set[str] = set()
        """Tune's ids of the trials that the pruner has stopped."""
        self.end_training: Callable[[int, int], None] | None = None
        """Callback (trial, epoch): end a data-parallel trial with its metrics as of that epoch. If Tune killed it, Ray
        Train would never free its CPUs."""
        self.ending: str | None = None
        """Why no more trials are started; None while the search goes on."""
        self.mistake: str | None = None
        """What is wrong with a configuration. It ends the search at once."""
        self.errors: dict[str, str] = {}
        """What ended trials that raised an error, by Tune's id."""
        self.trained_seconds: Callable[[int], float] = lambda number: 0.0
        """Callback (trial): the seconds that its epochs took, over all its starts."""

    def suggest(self, trial_id: str) -> Any:
        """Propose the next trial.

        Args:
            trial_id: Tune's id for it.

        Returns:
            Its number and its values; None where nothing is to be started until a running trial has ended; or
            Searcher.FINISHED where no more trials are to be started.
        """
        if self.ending or self.mistake:
            return Searcher.FINISHED
        # What an interrupted search has begun goes on, as it would have done without the interruption.
        if not self.interrupted_trials and (reason := self.budgets.stop_reason(len(self.running))) is not None:
            self.ending = reason
            return Searcher.FINISHED
        number = self._next_number()
        if number is None:  # a running trial may make a paused one worth going on, or may have to be tried once more
            return None if self.running else Searcher.FINISHED
        trial, values = self._start(number)
        number = trial.number
        self.running[trial_id] = trial
        self.on_study_changed()
        self._refresh(number)
        proposal = {"number": number, "values": values}
        if (target := self.progress.target(number)) is not None:
            proposal["target"] = target
        return proposal | ({"second_try": True} if SECOND_TRY in trial.user_attrs else {})

    def _next_number(self) -> int | None:
        """Return the number of the trial that is started or goes on next, None where there is none now."""
        if self.interrupted_trials:
            return self.interrupted_trials.pop(0)
        if (promoted := self.progress.promotion()) is not None:
            return promoted
        started = self.index.ended + len(self.index.running)
        if started < budget(self.index, self.search.search):
            waiting = self.index.first_waiting
            return self.index.next_number if waiting is None else waiting
        if self.second_tries:
            return self.second_tries.pop(0)
        return None if self._may_be_promoted() else self.progress.last_promotion()

    def _may_be_promoted(self) -> bool:
        """Return whether a trial runs that is compared with others before its last epoch, so that one may go on."""
        halving = self.progress.halving
        return halving is None or any(trial.number not in halving.complete for trial in self.running.values())

    def _start(self, number: int) -> tuple[optuna.Trial, Values]:
        """Start a trial in the study, or let it go on there; returns it with its values.

        Args:
            number: number of the trial, the next one of the study for a new trial.
        """
        storage = self.study._storage
        # This is what Optuna's `Study.ask` does, which looks at all trials for one that waits.
        if number == self.index.next_number:
            trial_id = storage.create_new_trial(self.study._study_id)
        else:
            trial_id = self.index.trial(number)._trial_id
            if number not in self.index.running:
                storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        trial = optuna.Trial(self.study, trial_id)
        if number in self.progress.paused:
            trial.set_user_attr(TARGET, self.progress.paused[number])
        if (values := trial.user_attrs.get(VALUES_ATTRIBUTE)) is not None:
            return trial, values
        # another process may have added trials meanwhile, so that the number is another one
        trial.study = cast("optuna.Study", StudyView(self.study, self.progress.shown(trial.number)))
        with written_together(self.study):
            values = suggest(trial, self.search)
        trial.study = self.study
        return trial, values

    def _refresh(self, number: int) -> None:
        """Take up what has changed of a trial."""
        self.progress.note(self.index.refresh(number))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Count the hours. `StudyScheduler` gets the result before the searcher does, and writes it into the study."""
        self.budgets.note_hours(every=60.0)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write into the study how a trial ended, unless it goes on when the search is run again.

        Args:
            trial_id: Tune's id of the trial.
            result: its last report, as Tune passes it on.
            error: whether it raised an error, or its processes were lost, too often.
        """
        trial = self.running.pop(trial_id, None)
        if trial is None:  # it has been written already; see `StudyScheduler.on_trial_result`
            return
        self.budgets.note_hours()
        report = TrialReport.of(result)
        self.mistake = report.mistake or self.mistake
        if report.retry:
            trial.set_user_attr(SECOND_TRY, True)
            self.second_tries.append(trial.number)
        elif report.is_pause(self.progress.target(trial.number)) and not error:
            self._record_pause(trial, report)
        elif not report.goes_on:
            self._record_end(trial, trial_id, report, error=error)
        self.on_study_changed()
        self._refresh(trial.number)

    def _record_pause(self, trial: optuna.Trial, report: TrialReport) -> None:
        """Write into the study what a trial has reached at its rung."""
        with written_together(self.study):
            trial.set_user_attr(RESULT, report.kept_metrics | self._seconds(trial, report))
            trial.report(report.metrics["best"], step=cast("int", report.epoch))  # the last: now it is paused

    def stop_paused(self, number: int) -> None:
        """End a paused trial for good, with the error that it has."""
        storage, trial_id = self.study._storage, self.index.trial(number)._trial_id
        storage.set_trial_user_attr(trial_id, END, TrialEnd.STOPPED)
        storage.set_trial_state_values(trial_id, TrialState.PRUNED)
        self._refresh(number)
        self.on_study_changed()

    def conclude(self) -> int:
        """Stop the trials that are paused, when no more are to go on; returns their number."""
        paused, storage = sorted(self.progress.paused), self.study._storage
        with written_together(self.study):
            for number in paused:
                trial_id = self.index.trial(number)._trial_id
                storage.set_trial_user_attr(trial_id, END, TrialEnd.STOPPED)
                storage.set_trial_user_attr(trial_id, STOPPED_PAUSED, True)
        for number in paused:
            self._refresh(number)
        self.on_study_changed()
        return len(paused)

    def _take_up_stopped(self) -> None:
        """Let trials be paused again that an earlier end of the search has stopped, if its budget was raised since."""
        if stop_reason(self.study, self.search.search, self.index) is not None:
            return
        stopped = [trial for trial in self.index.trials if trial.user_attrs.get(STOPPED_PAUSED)]
        with written_together(self.study):
            for trial in stopped:
                self.study._storage.set_trial_user_attr(trial._trial_id, STOPPED_PAUSED, None)
        for trial in stopped:
            self.index.refresh(trial.number)

    def _seconds(self, trial: optuna.Trial, report: TrialReport) -> dict[str, float]:
        """Return how long a trial took, also before it was paused or interrupted, as a metric."""
        seconds = max(report.metrics.get("time_total_s", 0.0), self.trained_seconds(trial.number))
        return {"time_total_s": seconds} if seconds else {}

    def _record_end(self, trial: optuna.Trial, trial_id: str, report: TrialReport, *, error: bool) -> None:
        """Write into the study how a trial ended and how long it took, also before interruptions."""
        time = self._seconds(trial, report)
        if error or (report.epoch is None and not report.stopped):
            with written_together(self.study):
                trial.set_user_attr(ERROR, self.errors.get(trial_id, "its processes were lost too often"))
                trial.set_user_attr(RESULT, time)
                trial.set_user_attr(END, TrialEnd.FAILED)
            self.study.tell(trial, state=TrialState.FAIL)  # Optuna's word for writing down the result of a trial
            return
        end = report.trial_end(pruned=trial_id in self.pruned)
        with written_together(self.study):
            trial.set_user_attr(RESULT, report.kept_metrics | time)
            trial.set_user_attr(END, end)
        if end == TrialEnd.STOPPED:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            failed = end != TrialEnd.FINISHED
            if failed and CONSTRAINT not in trial.constraints:
                # TPE takes every completed trial for better than every pruned one, whatever their errors; only a trial
                # that violates a constraint is worse than all others.
                trial.set_constraint(CONSTRAINT, 1.0)
            self.study.tell(trial, self._objectives(report.metrics, failed=failed))

    def _objectives(self, metrics: dict[str, Any], *, failed: bool) -> list[float]:
        values = {
            "error": PENALTY if failed else metrics["best"],
            "parameters": metrics.get("parameters", 0.0),
            "frames_per_second": 0.0 if failed else metrics.get("frames_per_second", 0.0),
        }
        return [float(values[objective]) for objective in self.search.search.objectives]

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study, which is always up to date, is all there is to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a search goes on from its study, not from Tune's state."""


class StudyScheduler(Unsaved, FIFOScheduler):
    """Stops trials early as the study's pruner says, and writes each decision into the study.

    Args:
        searcher: the searcher that proposes the trials.
    """

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note what ended a trial; Tune tells the searcher only that it failed."""
        if (message := error_of(trial)) is not None:
            self.searcher.errors[trial.trial_id] = message

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on after a report."""
        searcher = self.searcher
        report = TrialReport.of(result)
        if report.epoch is None or searcher.search.search.early_stopping in ("asha", "none"):
            return TrialScheduler.CONTINUE
        running = searcher.running.get(trial.trial_id)
        if running is None:  # it has ended, but Tune has started it again because its process failed while stopping
            return TrialScheduler.STOP
        if trial.trial_id in searcher.pruned:  # a data-parallel trial that has been asked to end
            return TrialScheduler.CONTINUE
        epoch = self._pruned_at(running, report)
        if epoch is None:
            return TrialScheduler.CONTINUE
        searcher.pruned.add(trial.trial_id)
        if searcher.end_training is None:
            return TrialScheduler.STOP
        searcher.end_training(running.number, epoch)
        return TrialScheduler.CONTINUE

    def _pruned_at(self, running: optuna.Trial, report: TrialReport) -> int | None:
        """Return the epoch at which the pruner stops a trial, None where the trial goes on.

        A decision that is in the study stays: after an interruption, epochs are reported once more.
        """
        step = report.epoch
        assert step is not None
        frozen = self.searcher.study._storage.get_trial(running._trial_id)
        decided = frozen.user_attrs.get(DECIDED, {"step": 0, "stop": False})
        if step <= decided["step"] or decided["stop"]:
            return decided["step"] if decided["stop"] and step >= decided["step"] else None
        if step not in frozen.intermediate_values:
            running.report(report.metrics[OBJECTIVE], step=step)
        stop = step < report.metrics.get("epochs", step + 1) and self._prunes(running._trial_id, step)
        running.set_user_attr(DECIDED, {"step": step, "stop": stop})
        return step if stop else None

    def _prunes(self, trial_id: int, step: int) -> bool:
        """Ask the pruner about a step. What the trial has written is hidden from it, for it may be asked again."""
        study = self.searcher.study
        trial = study._storage.get_trial(trial_id)
        others = [each for each in study.get_trials(deepcopy=False) if each._trial_id != trial_id]
        return bool(study.pruner.prune(cast("optuna.Study", StudyView(study, others)), trial))
