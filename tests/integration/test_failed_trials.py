"""One broken trial of a search fails alone, and too many of them end the search with a line that says why."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import Searcher

from mcrnn.runners.ray_cluster import connected
from mcrnn.search.driver import run
from mcrnn.search.trial_runner import TrialRunner
from mcrnn.storage.lease import Lease
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import RunEnd
from mcrnn.training.session import End
from tests.conftest import CommandRunner
from tests.integration.test_search_resources import opened, ray_of_two  # noqa: F401  a fixture
from tests.support.searches import write

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


def break_disk_of(root: Path, trial: int) -> None:
    """Let a trial be unable to write checkpoints: a file is in the place of their folder."""
    folder = root / f"searches/s/trials/{trial:04d}"
    folder.mkdir(parents=True)
    (folder / "checkpoints").touch()


@pytest.mark.soak
def test_trial_with_a_broken_disk_fails_alone_until_too_many_did(
    command: CommandRunner, root: Path, shared_ray: str
) -> None:
    import mlflow

    for trial in (1, 3):
        break_disk_of(root, trial)
    settings = {"trials": 6, "failures": 2, "scheduler": "none"}
    searched = command("mcrnn.tune", write(root, "s", train={"max_failures": 1, "epochs": 1}, search=settings))
    assert searched.returncode == 0, searched.stderr
    assert "Traceback" not in searched.stderr
    for trial in (1, 3):
        file = root / f"searches/s/trials/{trial:04d}/error.txt"
        assert "Traceback" in file.read_text()
        lines = [line for line in searched.stderr.splitlines() if str(file) in line]
        assert [line.split(": ")[1] for line in lines] == [f"trial {trial}", f"trial {trial} failed"]
    assert "s: 2 trials failed; the last was trial 3: DiskError: cannot write" in searched.stdout
    summary = json.loads((root / "searches/s/summary.json").read_text())
    assert [row["end"] for row in summary["trials"]] == ["finished", "failed", "finished", "failed"]
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mcrnn-s")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs if run.info.status == "FAILED"} == {"trial-1", "trial-3"}
    assert {run.info.status for run in runs} == {"FINISHED", "FAILED"}


def test_trial_whose_process_is_lost_while_it_is_taken_over_is_tried_again(root: Path, shared_ray: str) -> None:
    class LostOnReset(tune.Trainable):
        """Ends its process when the next trial takes it over."""

        def setup(self, config: dict[str, Any]) -> None:
            (root / f"began-{config['number']}-{os.getpid()}").touch()

        def step(self) -> dict[str, Any]:
            return {"done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            os._exit(1)

    class TwoTrials(Searcher):
        def suggest(self, trial_id: str) -> Any:
            number = len(ended) + 1
            return {"number": number} if number <= 2 else Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            ended.append(error)

    ended: list[bool] = []
    lease = Lease(LocalFolder(root / "lease"), "lock.json", "search")
    lease.acquire()
    with connected():
        TrialRunner(LostOnReset, str(root / "tune"), lease, {"CPU": 1}, 1, 1).run("ray", [], search_alg=TwoTrials())
    lease.release()
    assert ended == [False, False]
    began = sorted(file.name.split("-")[1:] for file in root.glob("began-*"))
    assert [number for number, _ in began] == ["1", "2"]
    assert len({process for _, process in began}) == 2


@pytest.mark.soak
def test_trial_that_ran_out_of_memory_beside_others_is_tried_again_with_a_gpu_of_its_own(
    root: Path,
    ray_of_two: Any,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The end of the first try is there before the search starts, as if the driver had been lost just after it."""
    opening = opened(
        root,
        train={"epochs": 1, "batch_size": 4, "teacher_forcing_steps": 4},
        search={"trials": 4, "scheduler": "none", "gpus": 0.5},
    )
    with opening as search:
        search.folder.trial(0).write_end(RunEnd(End.OUT_OF_MEMORY, "out of memory on cuda:0"))
        run(search)
    trials = search.study.get_trials()
    assert [trial.user_attrs["end"] for trial in trials] == ["finished"] * 4
    started = [search.folder.trial(number).read_record()["time"] for number in range(4)]  # type: ignore[index]
    assert started[0] == max(started)
    warning = "warning: trial 0 ran out of memory beside others; it is tried once more at the end"
    assert warning in capfd.readouterr().err
