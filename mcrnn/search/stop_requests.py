"""Requests of `python -m mcrnn.stop` to a search: to save and end, or to end one of its trials."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ray import tune
from rich.console import Console

from mcrnn.search.callbacks import TrialCallback
from mcrnn.search.progress import ProgressDisplay
from mcrnn.search.study import ENDED, state_of
from mcrnn.search.trials import trial_name
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.search.unsaved import Unsaved
from mcrnn.storage.presence import StopRequest


class StopRequests:
    """Takes the requests to a search, in the thread of its `Presence`, and hands them to whoever can fulfil them.

    Args:
        name: name of the search.
        console: takes a line for each request.
    """

    def __init__(self, name: str, console: Console) -> None:
        self.name, self.console = name, console
        self.trials: dict[int, str] = {}
        """Numbers of the trials that are to be stopped, and who asked for it."""
        self._is_requested = False
        self._stop: Callable[[], None] | None = None
        self._mutex = threading.Lock()

    def hear(self, request: StopRequest) -> None:
        """Take a request. It is fulfilled first, because there may be no terminal any more that takes a line."""
        if request.trial is not None:
            self.trials[request.trial] = request.by
            return
        with self._mutex:
            self._is_requested = True
            if self._stop is not None:
                self._stop()
        self.say(f"{request.by} has asked for a stop by python -m mcrnn.stop; it saves and ends")

    @contextlib.contextmanager
    def handled_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """Fulfil requests to end inside the block, also one that has come before it.

        Args:
            stop: asks all that runs to save and stop, as the first Ctrl-C does.
        """
        with self._mutex:
            self._stop = stop
            if self._is_requested:
                stop()
        try:
            yield
        finally:
            with self._mutex:
                self._stop = None

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(f"{self.name}: {text}", highlight=False, soft_wrap=True)


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
        requests: StopRequests,
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
