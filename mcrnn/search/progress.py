"""The display of a running search: a live table in a terminal, a line for each trial anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mcrnn.config.space import Search
from mcrnn.console import field_label, format_value
from mcrnn.search.trial_report import TrialReport, error_of
from mcrnn.search.trial_table import TrialRow, trial_table
from mcrnn.search.unsaved import Unsaved
from mcrnn.storage.retry import print_warning
from mcrnn.training.session import OBJECTIVE


class ProgressDisplay(Unsaved, Callback):
    """A callback of Tune that shows the trials of a search.

    Args:
        search: what is searched.
        name: name of the search.
        console: takes the table or the lines.
        budget: number of trials of the search.
        done: number of trials that ended before.
        paused: numbers of the trials that were paused before.
        best: the smallest error that was reached before.
    """

    def __init__(
        self,
        search: Search,
        name: str,
        console: Console,
        *,
        budget: int,
        done: int = 0,
        paused: Collection[int] = (),
        best: float = math.inf,
    ) -> None:
        self.search, self.name, self.console = search, name, console
        self.budget, self.done, self.paused = budget, done + len(paused), set(paused)
        self.best = best
        self.rows: dict[int, dict[str, Any]] = {}
        """State, values and last metrics of each trial by its number."""
        self.started = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> ProgressDisplay:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Show a new trial, or one that goes on after it was paused."""
        self._row(trial)["state"] = "running"
        self._update(trial, {})

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Show the metrics of an epoch."""
        self._update(trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Show how a trial ended, unless it goes on later."""
        report = TrialReport.of(trial.last_result)
        if report.retry:
            number = trial.config["number"]
            print_warning(f"trial {number} ran out of memory beside others; it is tried once more at the end")
        if report.goes_on:
            return  # otherwise the search ends, and says why
        if report.is_pause(trial.config.get("target")):
            self._leaves(trial, "paused")
            return
        pruned = (report.epoch or 0) < report.metrics.get("epochs", 0)
        self._leaves(trial, report.trial_end(pruned=pruned))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Warn of an error or a lost process; Tune starts the trial again."""
        if self._row(trial)["state"] != "running":
            return
        number, error = trial.config["number"], error_of(trial)
        what = f"the process of trial {number} was lost" if error is None else f"trial {number}: {error}"
        print_warning(f"{what}; it goes on from its checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Show a trial that failed too often, and say why."""
        reason = error_of(trial) or "its processes were lost too often"
        print_warning(f"trial {trial.config['number']} failed: {reason}")
        self._leaves(trial, "failed")

    def paused_trial_stopped(self, number: int) -> None:
        """Show that a paused trial has ended."""
        if number in self.rows:
            self.rows[number]["state"] = "stopped"

    def _row(self, trial: Any) -> dict[str, Any]:
        """Return the row of a trial; a new one if this is its first event, which may be the loss of its process."""
        return self.rows.setdefault(trial.config["number"], {"values": trial.config["values"], "state": "running"})

    def _update(self, trial: Any, result: dict[str, Any]) -> None:
        row = self._row(trial)
        errors = ("epoch", OBJECTIVE, "best") if "epoch" in result else ()  # other reports have none of their own
        row |= {key: result[key] for key in (*errors, "time_total_s") if key in result}
        if self.live:
            self.live.update(self.table())

    def _leaves(self, trial: Any, state: str) -> None:
        """Show that a trial has ended or is paused. It counts as tried from its first pause on."""
        row = self._row(trial)
        if row["state"] != "running":
            return
        self.done += not row.get("tried", trial.config["number"] in self.paused)
        row |= {"state": state, "tried": True}
        self._update(trial, trial.last_result or {})
        if not self.live:
            values = ", ".join(f"{field_label(k)} {format_value(v)}" for k, v in row["values"].items())
            error = f"{row['best']:.4f}" if "best" in row else "-"
            self.console.print(
                f"[{self.done}/{self.budget}] trial {trial.config['number']} {state} "
                f"at epoch {row.get('epoch', 0)}, error {error}, best {self._best()}: {values}",
                highlight=False,
                soft_wrap=True,
            )

    def _best(self) -> str:
        best = min([self.best, *(row["best"] for row in self.rows.values() if "best" in row)])
        return f"{best:.4f}" if math.isfinite(best) else "-"

    def _time_left(self) -> str:
        ended = sum(row["state"] != "running" for row in self.rows.values())
        if not ended:
            return "-"
        left = (time.monotonic() - self.started) / ended * (self.budget - self.done)
        return f"about {left // 60:.0f} min {left % 60:02.0f} s"

    def table(self) -> Table:
        """Return a table with a row for each of the newest trials, as many as the terminal has room for."""
        caption = f"{self.done} of {self.budget} trials, best {self._best()}, time left {self._time_left()}"
        room = max(3, self.console.height - 9)
        rows = [
            TrialRow(number, row["values"], row["state"], row.get("epoch"), row.get(OBJECTIVE), row.get("time_total_s"))
            for number, row in sorted(self.rows.items())[-room:]
        ]
        return trial_table(self.name, list(self.search.space), rows, caption, self.console.width)
