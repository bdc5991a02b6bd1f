"""Trainings end as the undisturbed one: killed drivers and workers, removed nodes, an object storage that is away."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest
import yaml

from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from mcrnn.tracking.run_folder import RunFolder
from tests.conftest import CommandRunner
from tests.support.processes import Start, wait_for
from tests.support.s3_server import S3Server, error
from tests.support.training_runs import CONTENT, EPOCHS, metrics_of, timeless, undisturbed

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


def kill_driver(
    command: CommandRunner, start: Start, root: Path, file: str, name: str, seed: int, *arguments: str
) -> list[dict[str, float]]:
    """Kill the driver at a random moment of its training, run it again; returns the metrics."""
    folder = root / f"runs/{name}"
    process = start("mcrnn.train", file, "--set", f"name={name}", *arguments)
    wait_for(lambda: len(metrics_of(folder)) >= 1, process)
    time.sleep(random.Random(seed).uniform(0, 0.8))
    process.kill()
    process.communicate()
    done = len(metrics_of(folder))
    again = command("mcrnn.train", file, "--set", f"name={name}", *arguments)
    assert again.returncode == 0, again.stderr
    # where workers outlive their driver for a moment they may even have come to the end
    resumed = [int(line.split()[1].split("/")[0]) for line in again.stdout.splitlines() if line.startswith("epoch ")]
    assert not resumed or resumed[0] >= done, "lost more than the work since the last checkpoint"
    return timeless(metrics_of(folder))


def test_killed_training_ends_as_the_undisturbed_one(
    command: CommandRunner, root: Path, file: str, start: Start
) -> None:
    expected = undisturbed(command, root, file)
    for seed in range(2):
        assert kill_driver(command, start, root, file, f"killed-{seed}", seed) == expected


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_kills_of_the_driver_on_two_workers(
    command: CommandRunner, root: Path, file: str, start: Start, ray_folder: Path
) -> None:
    two = ("--set", "train.workers=2", "--set", "data.windows_per_epoch=600")
    expected = undisturbed(command, root, file, *two)
    for seed in range(10):
        assert kill_driver(command, start, root, file, f"killed-{seed}", seed, *two) == expected


def workers_of(folder: Path) -> list[psutil.Process]:
    """The workers of Ray Train in Ray's folder."""
    found = []
    for each in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(each.info["cmdline"] or [])
        here = (each.info["environ"] or {}).get("RAY_TMPDIR") == str(folder)
        if here and line.startswith("ray::RayTrainWorker"):
            found.append(each)
    return found


def kill_worker(
    command: CommandRunner, start: Start, root: Path, file: str, name: str, seed: int, ray_folder: Path
) -> list[dict[str, float]]:
    folder = root / f"runs/{name}"
    process = start("mcrnn.train", file, "--set", f"name={name}", "--set", "train.workers=2")
    wait_for(lambda: len(metrics_of(folder)) >= 1, process)
    time.sleep(random.Random(seed).uniform(0, 0.8))
    alive = workers_of(ray_folder)
    assert len(alive) == 2
    random.Random(seed).choice(alive).kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"epoch {EPOCHS}/{EPOCHS}" in out
    assert "Traceback" not in err
    return timeless(metrics_of(folder))


@pytest.mark.soak
def test_killed_worker_is_replaced(
    command: CommandRunner, root: Path, file: str, start: Start, ray_folder: Path
) -> None:
    expected = undisturbed(command, root, file, "--set", "train.workers=2")
    assert kill_worker(command, start, root, file, "killed", 0, ray_folder) == expected


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_kills_of_a_worker(command: CommandRunner, root: Path, file: str, start: Start, ray_folder: Path) -> None:
    expected = undisturbed(command, root, file, "--set", "train.workers=2")
    for seed in range(3):
        assert kill_worker(command, start, root, file, f"killed-{seed}", seed, ray_folder) == expected


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_removals_of_a_node(
    command: CommandRunner, root: Path, file: str, start: Start, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        expected = undisturbed(command, root, file, "--set", "train.workers=2")
        for seed in range(3):
            folder = root / f"runs/removed-{seed}"
            process = start("mcrnn.train", file, "--set", f"name=removed-{seed}", "--set", "train.workers=2")
            wait_for(lambda: len(metrics_of(folder)) >= 1, process)  # noqa: B023
            time.sleep(random.Random(seed).uniform(0, 0.8))
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            _, err = process.communicate(timeout=280)
            assert process.returncode == 0, err
            assert "Traceback" not in err
            assert timeless(metrics_of(folder)) == expected
            nodes.append(cluster.add_node(num_cpus=1))
    finally:
        cluster.shutdown()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_workers_wait_for_object_storage(
    root: Path, file: str, s3: S3Server, start: Start, ray_folder: Path
) -> None:
    source: Location = LocalFolder(root / "data/tiny.zarr")
    target = S3Prefix("lab/mcrnn/data/tiny.zarr")
    for key in source.sizes():
        target.write(key, source.read(key))
    content = CONTENT | {"train": CONTENT["train"] | {"workers": 2, "epochs": 60}}
    (root / file).write_text(yaml.safe_dump(content))
    folder = S3Prefix("lab/mcrnn/runs/run")
    process = start("mcrnn.train", file, MCRNN_STORAGE="s3://lab/mcrnn")

    def outage() -> None:
        s3.fault = lambda environ: error("503 Service Unavailable", "SlowDown")
        time.sleep(30)
        assert process.poll() is None
        s3.fault = None

    wait_for(lambda: "record.json" in folder.sizes(), process)
    outage()  # while the workers start
    wait_for(lambda: len(RunFolder(folder).read_metrics()) >= 2, process)
    outage()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert [epoch["epoch"] for epoch in RunFolder(folder).read_metrics()] == list(range(1, 61)), out
