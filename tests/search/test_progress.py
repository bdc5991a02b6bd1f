"""What a search shows of its trials, in whatever order Tune tells of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mcrnn.config.loading import load_search
from mcrnn.search.progress import ProgressDisplay


def trial(number: int, **result: Any) -> Any:
    return SimpleNamespace(
        config={"number": number, "values": {"train.learning_rate": 0.002}}, last_result=result or None
    )


def test_process_lost_before_its_trial_has_begun_is_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(load_search("search_spaces/demo.yaml"), "s", Console(), budget=2) as progress:
        progress.on_trial_recover(1, [], trial(0))
        progress.on_trial_start(2, [], trial(0))
        progress.on_trial_complete(3, [], trial(0, epoch=1, epochs=1, best=0.5))
        progress.on_trial_error(4, [], trial(1))
    said = capsys.readouterr()
    assert said.err == "warning: the process of trial 0 was lost; it goes on from its checkpoint\n"
    assert "[1/2] trial 0 finished at epoch 1, error 0.5000" in said.out
    assert "[2/2] trial 1 failed at epoch 0, error -" in said.out
