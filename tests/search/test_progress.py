"""What a search shows of its trials, in whatever order Tune tells of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mcrnn.config.loading import load_search
from mcrnn.search.callbacks import PresenceCallback
from mcrnn.search.progress import ProgressDisplay
from mcrnn.search.trial_report import TrialFailedError, TrialReport
from mcrnn.search.tune_adapter import StudySearcher
from tests.search.test_failed_trials import tune_trial
from tests.support.studies import run_part, search, study_in


def trial(number: int, **result: Any) -> Any:
    config = {"number": number, "values": {"train.learning_rate": 0.002}}
    return SimpleNamespace(config=config, last_result=result or None, pickled_error_file=None)


def test_process_lost_before_its_trial_has_begun_is_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(load_search("search_spaces/demo.yaml"), "s", Console(), budget=2) as progress:
        progress.on_trial_recover(1, [], trial(0))
        progress.on_trial_start(2, [], trial(0))
        progress.on_trial_complete(3, [], trial(0, epoch=1, epochs=1, best=0.5))
        progress.on_trial_error(4, [], trial(1))
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "warning: the process of trial 0 was lost; it goes on from its checkpoint",
        "warning: trial 1 failed: its processes were lost too often",
    ]
    assert "[1/2] trial 0 finished at epoch 1, error 0.5000" in said.out
    assert "[2/2] trial 1 failed at epoch 0, error -" in said.out


def test_error_of_a_trial_is_one_warning_for_each_try_and_too_little_memory_beside_others_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = TrialFailedError("RuntimeError: the GPU is broken (see s/trials/0003/error.txt)")
    with ProgressDisplay(load_search("search_spaces/demo.yaml"), "s", Console(), budget=2) as progress:
        failed = tune_trial(tmp_path, error, config=trial(3).config, last_result=None)
        progress.on_trial_recover(1, [], failed)
        progress.on_trial_error(2, [], failed)
        progress.on_trial_complete(3, [], trial(4, **TrialReport.out_of_memory(retry=True).as_result()))
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"warning: trial 3: {error}; it goes on from its checkpoint",
        f"warning: trial 3 failed: {error}",
        "warning: trial 4 ran out of memory beside others; it is tried once more at the end",
    ]
    assert "[1/2] trial 3 failed" in said.out
    assert "trial 4" not in said.out


def test_trial_that_was_stopped_before_its_first_epoch_has_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    search = load_search("search_spaces/demo.yaml")
    with ProgressDisplay(search, "s", Console(width=100), budget=2) as progress:
        stopped = trial(0, **TrialReport.stopped_by_user(None).as_result())
        progress.on_trial_start(1, [], stopped)
        progress.on_trial_result(2, [], stopped, stopped.last_result)
        progress.on_trial_complete(3, [], stopped)
    assert "[1/2] trial 0 stopped at epoch 0, error -, best -" in capsys.readouterr().out
    assert str(progress.table().caption).startswith("1 of 2 trials, best -, ")
    progress.console.print(progress.table())
    row = next(line for line in capsys.readouterr().out.splitlines() if "stopped" in line)
    assert "10.0000" not in row
    assert " - " in row


def test_smallest_error_of_a_search_may_be_zero_and_is_not_known_before_the_first_one(tmp_path: Path) -> None:
    plan, presence = search(), SimpleNamespace()
    callback = PresenceCallback(presence, StudySearcher(study_in(tmp_path, plan), plan))  # type: ignore[arg-type]
    assert presence.progress["best"] is None
    for error, best in ((0.5, 0.5), (0.0, 0.0), (0.25, 0.0)):
        callback.on_trial_complete(1, [], trial(0, epoch=1, best=error))
        callback.note()
        assert presence.progress["best"] == best


def test_smallest_error_in_a_line_counts_the_starts_of_a_search_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = search(trials=4, asha={"grace_epochs": 1, "reduction_factor": 2})
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    for error in (0.3, 0.2):  # one of which is paused
        run_part(searcher, searcher.suggest("t"), error, 0, 4)
    best = StudySearcher(study_in(tmp_path, plan), plan).index.smallest_error()
    with ProgressDisplay(plan, "s", Console(), budget=4, best=best) as progress:
        for number, error in ((2, 0.5), (3, 0.1)):
            progress.on_trial_complete(1, [], trial(number, epoch=1, epochs=1, best=error))
    first, second = capsys.readouterr().out.splitlines()
    assert "error 0.5000, best 0.2000: " in first
    assert "error 0.1000, best 0.1000: " in second
