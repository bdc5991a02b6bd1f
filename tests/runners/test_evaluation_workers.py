"""Evaluations on workers of a real Ray: the bits of one process, whatever is lost on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mcrnn.data.memory import memory_budget
from mcrnn.errors import UserError
from mcrnn.evaluation import parts
from mcrnn.evaluation.metrics import ARRAYS
from mcrnn.evaluation.parts import PartScorer
from mcrnn.evaluation.result import EvaluationResult, evaluate_model
from mcrnn.models import trained_model
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel
from mcrnn.runners.evaluation_workers import part_scorer
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.processes import wait_for
from tests.support.registered_models import describe, save

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _one_window_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "WINDOWS_OF_PART", 1)


def model(root: Path, before: Callable[[Path], Any] = lambda folder: None) -> TrainedModel:
    """An ensemble with random weights, which calls something with the root before each forecast."""
    folders = [save(root / f"m{seed}", *describe(root), seed=seed) for seed in (1, 2)]
    found = Ensemble.of([trained_model.load(folder) for folder in folders], [1, 1], ["a", "b"])
    found.network.register_forward_pre_hook(lambda *_: before(root))
    return found


def evaluated(root: Path, model: TrainedModel, workers: int = 2) -> EvaluationResult:
    cache = LocalFolder(root / f"cache-{workers}")
    with part_scorer(workers, None, cache) as score_parts:
        return evaluate_model("m", model, Storage.open(str(root)), cache=cache, score_parts=score_parts)


def arrays(result: EvaluationResult) -> list[np.ndarray]:
    scores = [result.scores, *result.baselines.values()]
    spread = np.array(result.metrics["spread_by_lead_time_normalized"])
    return [spread, *(getattr(each, name) for each in scores for name in ARRAYS if getattr(each, name) is not None)]


def test_workers_give_the_bits_of_one_process_within_their_part_of_the_memory(
    root: Path, shared_ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note_budget(root: Path) -> None:
        (root / f"budget-{os.getpid()}").write_text(str(memory_budget()))

    monkeypatch.setenv("MCRNN_MEMORY", "0.003")
    found = evaluated(root, model(root, note_budget))
    assert {file.read_text() for file in root.glob("budget-*")} == {str(3e6 / 3)}  # of two workers and the driver
    assert memory_budget() == 3e6
    expected = evaluated(root, model(root), workers=1)
    for one, other in zip(arrays(found), arrays(expected), strict=True):
        assert np.array_equal(one, other)


def test_part_of_a_lost_worker_is_scored_by_another_and_a_failure_is_one_sentence(root: Path, shared_ray: str) -> None:
    def die_once(root: Path) -> None:
        if not (root / "died").exists():
            (root / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def die(root: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def run_out_of_memory(root: Path) -> None:
        torch.empty(1 << 60)

    def fail(root: Path) -> None:
        raise LookupError("no such\nthing")

    for before, sentence in (
        (fail, r"a worker could not score windows \d to \d \(LookupError: no such\); what has been scored is kept"),
        (run_out_of_memory, "out of memory with 32 windows at a time"),
        (die, r"3 workers were lost, each at windows \d to \d, the last one with: "),
    ):
        with pytest.raises(UserError, match=sentence) as error:
            evaluated(root, model(root, before))
        assert "\n" not in str(error.value)
    found = evaluated(root, model(root, die_once))
    assert (root / "died").exists()
    expected = evaluated(root, model(root), workers=1)
    assert np.array_equal(found.scores.squared, expected.scores.squared)


@pytest.mark.soak
def test_workers_that_were_lost_between_two_models_are_replaced(root: Path, shared_ray: str) -> None:
    def note_process(root: Path) -> None:
        (root / f"worker-{os.getpid()}").touch()

    def score_with(score_parts: PartScorer, cache: str) -> EvaluationResult:
        cached = LocalFolder(root / cache)
        return evaluate_model(
            "m", model(root, note_process), Storage.open(str(root)), cache=cached, score_parts=score_parts
        )

    with part_scorer(3, None, LocalFolder(root)) as score_parts:
        score_with(score_parts, "first")
        for file in root.glob("worker-*"):
            os.kill(int(file.name.removeprefix("worker-")), signal.SIGKILL)
        found = score_with(score_parts, "second")
    assert len(found.scores.squared) == 4


KILLED = """
import sys, time
from pathlib import Path

from mcrnn.evaluation import parts
from tests.runners.test_evaluation_workers import evaluated, model


def wait(root):
    with (root / "begun").open("a") as file:
        file.write(".")
    while len((root / "begun").read_text()) > 2:
        time.sleep(1)


parts.WINDOWS_OF_PART = 1
evaluated(Path(sys.argv[1]), model(Path(sys.argv[1]), wait))
"""


@pytest.mark.soak
def test_evaluation_whose_driver_is_killed_goes_on_with_what_is_left(root: Path, shared_ray: str) -> None:
    def kept() -> list[str]:
        return [key for key in LocalFolder(root / "cache-2").sizes() if key.endswith(".npz")]

    driver = ForkedProcess(shared.command_server(), ["-c", KILLED, str(root)], root, os.environ)
    try:
        wait_for(kept, driver)
    finally:
        driver.kill()
    driver.wait()

    def note(root: Path) -> None:
        with (root / "scored").open("a") as file:
            file.write(".")

    of_killed = len(kept())
    assert 0 < of_killed < 4
    found = evaluated(root, model(root, note))
    assert len((root / "scored").read_text()) == 4 - of_killed
    assert len(kept()) == 2  # of the ensemble, and of the baselines
    assert np.array_equal(found.scores.squared, evaluated(root, model(root), workers=1).scores.squared)
