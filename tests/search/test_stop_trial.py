"""A trial that a user has stopped counts as stopped with the value that it has, and never goes on."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from optuna.trial import TrialState

from mcrnn.search.attributes import TrialEnd
from mcrnn.search.halving import SuccessiveHalving
from mcrnn.search.stop_requests import SearchStopRequests, StopTrialsCallback
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.trial_report import TrialReport
from mcrnn.search.trials import trial_name
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.presence import StopRequest
from tests.support.studies import ASHA, result, run_part, search, study_in


def stop(searcher: StudySearcher, trial_id: str, metrics: dict[str, float] | None) -> None:
    """What the actor of a trial that was asked to stop reports last."""
    report = TrialReport.stopped_by_user(metrics).as_result()
    searcher.on_trial_complete(trial_id, report)


def test_stopped_trial_has_the_value_of_its_last_epoch(tmp_path: Path) -> None:
    plan = search(trials=3, scheduler="none")
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    searcher.suggest("a")
    searcher.suggest("b")
    stop(searcher, "a", result(0.5, epoch=2) | {"epochs": 4})
    stop(searcher, "b", None)
    searcher.suggest("c")
    searcher.on_trial_complete("c", result(0.6))
    trials = searcher.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.PRUNED, TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.user_attrs["end"] for trial in trials] == [TrialEnd.STOPPED, TrialEnd.STOPPED, TrialEnd.FINISHED]
    assert trials[0].user_attrs["result"]["best"] == 0.5
    assert trials[1].user_attrs["result"] == {}
    index = TrialIndex(study_in(tmp_path, plan))
    assert [trial.number for trial in index.ranked()] == [2, 0]  # one without an error cannot be the best
    assert (index.ended, index.failures) == (3, 0)


def test_trial_that_is_stopped_at_its_rung_is_not_paused(tmp_path: Path) -> None:
    plan = search(trials=2, asha=ASHA)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    target = searcher.suggest("a")["target"]
    report = TrialReport.of(TrialReport.stopped_by_user(result(0.5, epoch=target) | {"epochs": 4}).as_result())
    assert not report.is_pause(target)
    stop(searcher, "a", report.metrics)
    assert not searcher.progress.paused
    assert searcher.study.trials[0].state == TrialState.PRUNED


def test_paused_trial_is_stopped_for_good(tmp_path: Path) -> None:
    plan = search(trials=4, asha=ASHA)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    for number in range(2):
        run_part(searcher, searcher.suggest("t"), 0.5 + number / 10, 0, 4)
    assert set(searcher.progress.paused) == {0, 1}
    searcher.stop_paused(0)
    assert set(searcher.progress.paused) == {1}
    trial = searcher.study.trials[0]
    assert (trial.state, trial.user_attrs["end"]) == (TrialState.PRUNED, TrialEnd.STOPPED)
    assert searcher.index.ranked()[0].number == 0
    # also after an interruption, and with a larger budget, which lets other stopped trials go on
    searcher.conclude()
    larger = search(trials=8, asha=ASHA)
    again = StudySearcher(study_in(tmp_path, larger), larger)
    assert set(again.progress.paused) == {1}


def test_trial_that_is_stopped_on_its_way_to_the_end_leaves_room_for_another(tmp_path: Path) -> None:
    plan = search(trials=2, asha=ASHA)
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    reached = [0, 0]
    while (proposal := searcher.suggest("t"))["target"] < 4:
        number = proposal["number"]
        reached[number] = run_part(searcher, proposal, 0.5 + number / 10, reached[number], 4)
    halving = searcher.progress.halving
    assert isinstance(halving, SuccessiveHalving)
    assert halving.complete == {proposal["number"]}
    stop(searcher, "t", result(0.4, epoch=3) | {"epochs": 4})
    assert halving.complete == set()
    other = searcher.suggest("t")
    assert isinstance(other, dict)  # the confirmation needs one that is trained to its end
    assert other["number"] != proposal["number"]


class Asked:
    """A `StopFlag` beside its handle, and what else a callback tells."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.ended: list[int] = []
        self.stop = SimpleNamespace(remote=self.running.append)
        self.output = io.StringIO()

    def paused_trial_stopped(self, number: int) -> None:
        self.ended.append(number)

    def callback(self, searcher: StudySearcher) -> StopTrialsCallback:
        requests = SearchStopRequests("s", lambda line: print(line, file=self.output))
        nobody = SimpleNamespace()
        nobody.paused_trial_stopped = lambda number: None
        return StopTrialsCallback(requests, searcher, self, cast(Any, self), nobody)


def ask(callback: StopTrialsCallback, number: int) -> bool:
    """Hear a request to stop a trial, if it was not heard before, and begin a step; returns whether it is done."""
    callback.requests.hear(StopRequest("me", number))
    callback.on_step_begin(1, [])
    return number not in callback.requests.trials


def test_paused_trial_that_is_asked_to_stop_ends_at_once(tmp_path: Path) -> None:
    plan, asked = search(trials=4, asha=ASHA), Asked()
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    for number in range(2):
        run_part(searcher, searcher.suggest("t"), 0.5 + number / 10, 0, 4)
    callback = asked.callback(searcher)
    assert ask(callback, 0)
    assert (asked.ended, asked.running, set(searcher.progress.paused)) == ([0], [], {1})
    assert "it was paused and has ended" in asked.output.getvalue()
    assert ask(callback, 0)  # it has ended
    assert ask(callback, 99)  # there is none
    assert asked.ended == [0]


def test_interrupted_trial_is_asked_to_stop_once_it_has_started_again(tmp_path: Path) -> None:
    plan, asked = search(trials=3, scheduler="none"), Asked()
    StudySearcher(study_in(tmp_path, plan), plan).suggest("before the interruption")
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    assert searcher.interrupted_trials == [0]
    callback = asked.callback(searcher)
    assert not ask(callback, 0)
    assert (asked.running, asked.ended) == ([], [])
    assert searcher.suggest("again")["number"] == 0
    for _ in range(2):
        callback.on_step_begin(1, [])
        assert asked.running == [trial_name(0)]  # once
    stop(searcher, "again", result(0.5, epoch=2) | {"epochs": 4})
    callback.on_step_begin(1, [])
    assert callback.requests.trials == {}
