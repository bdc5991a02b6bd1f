"""Requests of `python -m mcrnn.stop` to a search: to save and end, or to end one of its trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune

from mcrnn.runners.stop_requests import StopRequests
from mcrnn.search.callbacks import TrialCallback
from mcrnn.search.progress import ProgressDisplay
from mcrnn.search.study import ENDED, state_of
from mcrnn.search.trials import trial_name
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.search.unsaved import Unsaved
from mcrnn.storage.presence import StopRequest


class SearchStopRequests(StopRequests):
    """Keeps the requests to end single trials until the search can fulfil them, beside those to end all of it."""

    def __init__(self, name: str, print_line: Callable[[str], None]) -> None:
        super().__init__(name, print_line)
        self.trials: dict[int, str] = {}
        """Numbers of the trials that are to be stopped, and who asked for it."""

    def hear(self, request: StopRequest) -> None:
        """Take a request to end the search or one of its trials."""
        if request.trial is None:
            super().hear(request)
        else:
            self.trials[request.trial] = request.by


class StopTrialsCallback(Unsaved, tune.Callback):
    """Stops the trials that are asked to stop, in Tune's thread, which alone may write into the study.

    A trial that runs is asked to save and ends with the error that it has. One that is paused ends at once. One that an
    interruption has left behind is asked when it has been started again.

    Args:
        requests: the requests.
        searcher: the searcher of the trials.
        flag: handle of the `StopFlag` of the search.
        trials: keeps the runs and files of trials up to date.
        display: shows them.
    """

    def __init__(
        self,
        requests: SearchStopRequests,
        searcher: StudySearcher,
        flag: Any,
        trials: TrialCallback,
        display: ProgressDisplay,
    ) -> None:
        self.requests, self.searcher, self.flag = requests, searcher, flag
        self.trials, self.display = trials, display
        self._asked: set[int] = set()

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Fulfil what has been asked for since the last step."""
        for number, by in list(self.requests.trials.items()):
            if self._is_stopped(number, by):
                del self.requests.trials[number]

    def _is_stopped(self, number: int, by: str) -> bool:
        """Stop a trial; returns whether nothing more is to be done about it."""
        index, running = self.searcher.index, {trial.number for trial in self.searcher.running.values()}
        if number >= index.next_number or state_of(index.trial(number)) in ENDED:
            return True
        if number in running:
            if number not in self._asked:
                self._asked.add(number)
                self.requests.say(f"{by} has asked trial {number} to stop by python -m mcrnn.stop")
                self.flag.stop.remote(trial_name(number))
            return False
        if number not in self.searcher.progress.paused:
            return False
        self.searcher.stop_paused(number)
        self.trials.paused_trial_stopped(number)
        self.display.paused_trial_stopped(number)
        self.requests.say(f"{by} has asked trial {number} to stop by python -m mcrnn.stop; it was paused and has ended")
        return True
