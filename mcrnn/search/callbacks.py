"""What a search shows while it runs: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any

from ray import tune
from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mcrnn.config.space import Search
from mcrnn.console import new_table, short, show
from mcrnn.search import confirmation
from mcrnn.search.search_run import ActiveSearch, remove_superseded_files
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.tracking.run_folder import CHECKPOINT_FOLDER
from mcrnn.training.session import OBJECTIVE, PENALTY

STYLES = {"running": "bold", "stopped": "dim", "finished": None}


class Progress(Callback):
    """Follows the trials of a search as Tune reports them."""

    def __init__(self, search: Search, name: str, console: Console, *, budget: int, done: int = 0) -> None:
        self.search, self.name, self.console = search, name, console
        self.budget, self.done = budget, done
        self.rows: dict[int, dict[str, Any]] = {}
        self.started = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks with its own state, from which we never restore."""
        return {}

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._update(trial, {})

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._update(trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        result = trial.last_result or {}
        if result.get("mistake") or result.get("interrupted"):
            return  # the search ends, and says why
        state = "stopped" if result.get("epoch", 0) < result.get("epochs", 0) else "finished"
        for end in ("diverged", "out_of_memory"):
            state = end.replace("_", " ") if result.get(end) else state
        self._ended(trial, state)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if self._row(trial)["state"] != "running":
            return
        line = f"warning: the process of trial {trial.config['number']} was lost; it goes on from its checkpoint"
        print(line, file=sys.stderr)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._ended(trial, "failed")

    def _row(self, trial: Any) -> dict[str, Any]:
        """Of a trial, which may be heard of first when its process is lost."""
        return self.rows.setdefault(trial.config["number"], {"values": trial.config["values"], "state": "running"})

    def _update(self, trial: Any, result: dict[str, Any]) -> None:
        row = self._row(trial)
        row |= {key: result[key] for key in ("epoch", OBJECTIVE, "best", "time_total_s") if key in result}
        if self.live:
            self.live.update(self.table())

    def _ended(self, trial: Any, state: str) -> None:
        row = self._row(trial)
        if row["state"] != "running":
            return
        self.done += 1
        row["state"] = state
        self._update(trial, trial.last_result or {})
        if not self.live:
            values = ", ".join(f"{short(k)} {show(v)}" for k, v in row["values"].items())
            error = f"{row['best']:.4f}" if "best" in row else "-"
            self.console.print(
                f"[{self.done}/{self.budget}] trial {trial.config['number']} {state} "
                f"at epoch {row.get('epoch', 0)}, error {error}, best {self._best()}: {values}",
                highlight=False,
                soft_wrap=True,
            )

    def _best(self) -> str:
        known = [row["best"] for row in self.rows.values() if "best" in row]
        return f"{min(known):.4f}" if known else "-"

    def _time_left(self) -> str:
        fresh = sum(row["state"] != "running" for row in self.rows.values())
        if not fresh:
            return "-"
        left = (time.monotonic() - self.started) / fresh * (self.budget - self.done)
        return f"about {left // 60:.0f} min {left % 60:02.0f} s"

    def table(self) -> Table:
        """One row a trial, with the running ones' state of a moment ago."""
        caption = f"{self.done} of {self.budget} trials, best {self._best()}, time left {self._time_left()}"
        headers = ["trial", *map(short, self.search.space), "epoch", "error", "time", "state"]
        table = new_table(headers, title=f"search {self.name}", caption=caption, names=0)
        room = max(3, self.console.height - 9)
        for number, row in sorted(self.rows.items())[-room:]:
            style = STYLES.get(row["state"], "red")
            table.add_row(
                str(number),
                *(show(row["values"].get(path, "")) for path in self.search.space),
                str(row.get("epoch", "")),
                f"{row[OBJECTIVE]:.4f}" if OBJECTIVE in row else "",
                f"{row['time_total_s']:.0f} s" if "time_total_s" in row else "",
                row["state"],
                style=style,
            )
        return table


class _Ending(tune.Callback):
    """What is to be done when a trial ends: its MLflow run, its files, and the search where it was a mistake."""

    def __init__(self, running: ActiveSearch, stop: Any) -> None:
        self.opened, self.mirrors, self.stop = running.opened, running.mirrors, stop

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks with its own state, from which we never restore."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
        """Tells MLflow of an epoch."""
        self._run(trial, "RUNNING")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ends the run, which the trial cannot do itself where it is stopped, and removes what nobody needs."""
        result = trial.last_result or {}
        if result.get("mistake"):
            self.stop()
        status = "KILLED" if result.get("interrupted") else "FAILED" if result.get("mistake") else "FINISHED"
        self._run(trial, status)
        remove_superseded_files(self.opened)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ends the run."""
        self._run(trial, "FAILED")

    def _run(self, trial: Any, status: str) -> None:
        self.mirrors.update(self.opened.trial_folder(trial.config["number"]), status)


class _Confirmed(tune.Callback):
    """Follows the confirmation."""

    def __init__(self, running: ActiveSearch, searcher: StudySearcher) -> None:
        self.opened, self.mirrors, self.console = running.opened, running.mirrors, running.console
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
        """Tells MLflow of an epoch."""
        name, _values = trial.config["proposal"]["retrain"]
        self.mirrors.update(self.opened.folder.child(f"{confirmation.FOLDER}/{name}"), "RUNNING")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A line, and the end of the run."""
        result = trial.last_result or {}
        name, values = trial.config["proposal"]["retrain"]
        if result.get("mistake"):
            self.searcher.mistake = result["mistake"]
        folder = self.opened.folder.child(f"{confirmation.FOLDER}/{name}")
        self.mirrors.update(folder, "KILLED" if result.get("interrupted") else "FINISHED")
        if result.get("interrupted"):
            return
        folder.child(CHECKPOINT_FOLDER).clear()
        architecture = self.opened.search.configuration(values).model.architecture
        self.console.print(
            f"{architecture}, {name}: error {result.get('best', PENALTY):.4f}", highlight=False, soft_wrap=True
        )
