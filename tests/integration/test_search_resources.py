"""What trials take of a cluster: freed at once when they are stopped, and shared where they ask for a part."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from optuna.trial import TrialState

from mcrnn.config.loading import load_search
from mcrnn.search.attributes import VALUES_ATTRIBUTE
from mcrnn.search.driver import run
from mcrnn.search.search_run import SearchRun, open_search
from mcrnn.search.study_reader import JournalReader
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.support.processes import Start, wait_for
from tests.support.searches import SEARCH

pytestmark = pytest.mark.integration


@pytest.fixture
def ray_of_two(ray_folder: Path) -> Iterator[Any]:
    """Ray with two CPUs and one GPU, which is there in name only."""
    import ray

    from mcrnn.runners import ray_cluster  # noqa: F401  its settings come before Ray's start

    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, namespace="mcrnn")
    yield ray
    ray.shutdown()


def opened(root: Path, **changes: Any) -> AbstractContextManager[SearchRun]:
    content = SEARCH | changes
    (root / "s.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return open_search(load_search(str(root / "s.yaml")), Storage.open(str(root)), new=False)


class Watch(threading.Thread):
    """Notes, ten times a second, what is free and which processes train."""

    def __init__(self, ray: Any) -> None:
        super().__init__(daemon=True)
        self.ray, self.seen = ray, []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            free = self.ray.available_resources()
            titles = [each.info["cmdline"] or [""] for each in psutil.process_iter(["cmdline"])]
            working = sum("RayTrainWorker" in title[0] or "ImplicitFunc" in title[0] for title in titles)
            self.seen.append((time.time(), free.get("CPU", 0), free.get("GPU", 0), working))

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_after_an_early_stop_all_is_free_within_five_seconds(root: Path, ray_of_two: Any, workers: int) -> None:
    opening = opened(
        root,
        model={"layers": 1, "architecture": "minconvgru", "hidden_size": 8},
        # epochs long enough to be stopped within the fourth
        data=SEARCH["data"] | {"windows_per_epoch": 200},
        train=SEARCH["train"] | {"epochs": 20, "workers": workers, "schedule": "constant"},
        search={
            "sampler": "grid",
            "scheduler": "median",
            "median": {"grace_trials": 1, "grace_epochs": 1},
            "concurrency": 1,
        },
        space={"train.learning_rate": {"choice": [5e-3, 1e-9]}},
    )
    with opening as search, Watch(ray_of_two) as watch:
        run(search)
        time.sleep(5)
    good, bad = search.study.get_trials()
    assert good.state == TrialState.COMPLETE
    assert bad.state == TrialState.PRUNED
    assert bad.last_step == 1
    assert bad.user_attrs["result"]["epoch"] == 1
    assert bad.datetime_complete is not None
    stopped = bad.datetime_complete.timestamp()
    freed = [
        moment for moment, cpus, gpus, working in watch.seen if moment > stopped and (cpus, gpus, working) == (2, 1, 0)
    ]
    assert freed, watch.seen[-5:]
    assert freed[0] - stopped < 5
    # and they were taken before
    assert any(cpus < 2 and working for moment, cpus, _, working in watch.seen if moment < stopped)


@pytest.mark.soak
def test_trials_share_a_gpu_in_parts(root: Path, ray_of_two: Any) -> None:
    opening = opened(
        root,
        data=SEARCH["data"] | {"windows_per_epoch": 400},
        search={"trials": 4, "scheduler": "none", "gpus": 0.5},
    )
    with opening as search, Watch(ray_of_two) as watch:
        run(search)
    assert len(search.study.get_trials()) == 4
    assert min(gpus for _, _, gpus, _ in watch.seen) == pytest.approx(0)  # two halves at a time
    assert min(cpus for _, cpus, _, _ in watch.seen) == 0


def test_an_interrupted_search_does_not_wait_for_machines_that_have_not_come(
    root: Path, database: Path, shared_ray: str, start: Start
) -> None:
    (root / "s.yaml").write_text(yaml.safe_dump(SEARCH | {"search": {"trials": 4}}, sort_keys=False))
    search = start("mcrnn.tune", "s.yaml", MCRNN_MAX_GPUS="2", MCRNN_SHARED_STORAGE="1")
    said = [search.stdout.readline() for _ in range(3)]
    assert said[2] == (
        "cluster: 0 GPUs now, may grow to 2 (MCRNN_MAX_GPUS); 1 GPU per trial, up to 2 trials at a time\n"
    )
    reader = JournalReader(LocalFolder(root / "searches" / "s"))

    def proposed() -> int:
        reader.refresh()
        return sum(VALUES_ATTRIBUTE in trial.attributes for trial in reader.trials)

    wait_for(lambda: proposed() == 2, search)
    search.send_signal(signal.SIGINT)
    _, errors = search.communicate(60)
    assert search.returncode == 130, errors
    assert not (root / "searches" / "s" / "trials").exists()
