"""A trial's report survives the way through Tune, and its end has one name in the study and in MLflow."""

from __future__ import annotations

import pytest

from mcrnn.search.attributes import TrialEnd
from mcrnn.search.trial_report import TrialReport
from mcrnn.training.session import OBJECTIVE, PENALTY, End


@pytest.mark.parametrize(
    "report",
    [
        TrialReport({"epoch": 3, OBJECTIVE: 0.4, "best": 0.3, "diverged": 0.0}),
        TrialReport({"epoch": 1, OBJECTIVE: PENALTY, "best": PENALTY, "diverged": 1.0}, End.DIVERGED),
        TrialReport.interrupted(),
        TrialReport.out_of_memory(),
        TrialReport.out_of_memory(retry=True),
        TrialReport.of_mistake("trial-0: train.x is wrong"),
    ],
    ids=["epoch", "diverged", "interrupted", "out of memory", "out of memory beside others", "mistake"],
)
def test_report_is_read_again_from_tunes_result(report: TrialReport) -> None:
    result = report.as_result() | {"time_total_s": 2.0}  # Tune adds entries of its own
    again = TrialReport.of(result)
    assert again.metrics == report.metrics | {"time_total_s": 2.0}
    assert (again.end, again.mistake, again.retry) == (report.end, report.mistake, report.retry)


def test_epoch_of_a_diverged_training_says_so_without_a_report_of_its_own() -> None:
    assert TrialReport.of({"epoch": 1, "diverged": 1.0}).end == End.DIVERGED
    assert TrialReport.of({"epoch": 1, "diverged": 0.0}).end is None


def test_trial_that_has_never_reported_has_no_epoch() -> None:
    assert TrialReport.of(None).epoch is None


@pytest.mark.parametrize(
    ("end", "pruned", "expected", "status"),
    [
        (None, False, TrialEnd.FINISHED, "FINISHED"),
        (None, True, TrialEnd.STOPPED, "FINISHED"),
        (End.FINISHED, False, TrialEnd.FINISHED, "FINISHED"),
        (End.STOPPED_EARLY, False, TrialEnd.FINISHED, "FINISHED"),
        (End.DIVERGED, True, TrialEnd.DIVERGED, "FINISHED"),
        (End.OUT_OF_MEMORY, True, TrialEnd.OUT_OF_MEMORY, "FINISHED"),
    ],
)
def test_end_of_a_training_is_that_of_its_trial_and_run(
    end: End | None, pruned: bool, expected: TrialEnd, status: str
) -> None:
    report = TrialReport({"epoch": 2}, end)
    assert not report.goes_on
    assert report.trial_end(pruned=pruned) == expected
    assert report.mlflow_status == status


def test_trial_that_goes_on_leaves_its_run_unfinished() -> None:
    assert TrialReport.interrupted().goes_on
    assert TrialReport.interrupted().mlflow_status == "KILLED"
    assert TrialReport.out_of_memory(retry=True).goes_on
    assert TrialReport.out_of_memory(retry=True).mlflow_status == "KILLED"
    assert TrialReport.of_mistake("wrong").goes_on
    assert TrialReport.of_mistake("wrong").mlflow_status == "FAILED"
