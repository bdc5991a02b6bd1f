"""Trainings as a user runs them, and what happens to them: signals, kills, lost nodes, damage, S3."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from mcrnn.tracking.run_folder import CHECKPOINT_FOLDER, METRICS_FILE, RunFolder
from tests.conftest import CommandRunner
from tests.support.commands import ForkedProcess
from tests.support.processes import Start, wait_for
from tests.support.s3_server import S3Server, error

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]

TIMES = ("seconds", "frames_per_second", "time")
EPOCHS = 12
CONTENT: dict[str, Any] = {
    "name": "run",
    "data": {"store": "data/tiny.zarr", "coarsen": 2, "sequence_length": 6, "windows_per_epoch": 60, "noise": 0.01},
    "model": {"architecture": "minconvgru", "hidden_size": 8, "layers": 2},
    "train": {"epochs": EPOCHS, "batch_size": 4, "teacher_forcing_steps": 4, "checkpoint_minutes": 0.002},
    "validation": {"warm_up": 4, "horizon": 5},
}


def timeless(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in epoch.items() if k not in TIMES and not k.startswith("system/")} for epoch in metrics]


def metrics_of(folder: Path) -> list[dict[str, float]]:
    file = folder / METRICS_FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def file(root: Path) -> str:
    (root / "run.yaml").write_text(yaml.safe_dump(CONTENT))
    return "run.yaml"


def undisturbed(command: CommandRunner, root: Path, file: str, *arguments: str) -> list[dict[str, float]]:
    result = command("mcrnn.train", file, "--set", "name=undisturbed", *arguments)
    assert result.returncode == 0, result.stderr
    metrics = timeless(metrics_of(root / "runs/undisturbed"))
    assert len(metrics) == EPOCHS
    return metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_signal_writes_a_checkpoint_and_the_same_command_continues(
    command: CommandRunner, root: Path, file: str, start: Start, number: signal.Signals
) -> None:
    expected = undisturbed(command, root, file, "--set", "train.checkpoint_minutes=10")
    process = start("mcrnn.train", file, "--set", "train.checkpoint_minutes=10")
    folder = root / "runs/run"
    wait_for(lambda: len(metrics_of(folder)) >= 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert err.strip() == "interrupted; the same command continues"
    done = len(metrics_of(folder))
    assert done < EPOCHS
    newest = max((folder / CHECKPOINT_FOLDER).iterdir()).name
    assert int(newest.split("-")[0]) == done + 1
    again = command("mcrnn.train", file, "--set", "train.checkpoint_minutes=10")
    assert again.returncode == 0, again.stderr
    assert f"epoch {done + 1}/{EPOCHS}" in again.stdout
    assert f"epoch {done}/{EPOCHS}" not in again.stdout
    assert timeless(metrics_of(folder)) == expected
    once_more = command("mcrnn.train", file)
    assert once_more.returncode == 0
    assert "best closed-loop RMSE" in once_more.stdout
    assert "epoch" not in once_more.stdout


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


def test_stop_signal_reaches_the_workers(
    command: CommandRunner, root: Path, file: str, start: Start, shared_ray: str
) -> None:
    slow = ("--set", "train.workers=2", "--set", "train.checkpoint_minutes=10", "--set", "data.windows_per_epoch=600")
    process = start("mcrnn.train", file, *slow)
    folder = root / "runs/run"
    wait_for(lambda: len(metrics_of(folder)) >= 1, process)
    process.terminate()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert err.strip() == "interrupted; the same command continues"
    epoch, batch, _ = max((folder / CHECKPOINT_FOLDER).iterdir()).name.split("-")
    assert int(epoch) == len(metrics_of(folder)) + 1
    assert int(batch) > 0


def test_damaged_checkpoint_and_changed_store(command: CommandRunner, root: Path, file: str, start: Start) -> None:
    expected = undisturbed(command, root, file)
    process = start("mcrnn.train", file)
    folder = root / "runs/run"
    wait_for(lambda: len(metrics_of(folder)) >= 3, process)
    process.kill()
    process.communicate()
    newest = max(p for p in (folder / CHECKPOINT_FOLDER).iterdir() if p.suffix == ".pt")
    newest.write_bytes(newest.read_bytes()[:-100])
    again = command("mcrnn.train", file)
    assert again.returncode == 0, again.stderr
    assert f"warning: the checkpoint {newest.name} is damaged; going on from the one before, " in again.stderr
    assert timeless(metrics_of(folder)) == expected

    # an unfinished run, and the same command after the store was made anew
    (folder / "end.json").unlink()
    import shutil

    shutil.rmtree(root / "data/tiny.zarr")
    made = command(
        "data_prep.navier_stokes", "data/tiny.zarr", "--train", "6", "--val", "3", "--test", "4", "--seed", "2",
        "--frames", "14", "--resolution", "16", "--workers", "1",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    refused = command("mcrnn.train", file)
    assert refused.returncode == 2
    assert "store_digest is " in refused.stderr
    assert ", was " in refused.stderr
    (folder / "configuration.json").unlink()
    refused = command("mcrnn.train", file)
    assert refused.returncode == 2
    assert "the store has changed since the checkpoint" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_training_on_object_storage(root: Path, file: str, s3: S3Server, start: Start) -> None:
    source: Location = LocalFolder(root / "data/tiny.zarr")
    target = S3Prefix("lab/mcrnn/data/tiny.zarr")
    for key in source.sizes():
        target.write(key, source.read(key))
    here = root / "here"
    here.mkdir()

    def train() -> ForkedProcess:
        return start("mcrnn.train", str(root / file), folder=here, MCRNN_STORAGE="s3://lab/mcrnn")

    process = train()
    folder = S3Prefix("lab/mcrnn/runs/run")
    wait_for(lambda: len(RunFolder(folder).read_metrics()) >= 2, process)
    process.kill()
    process.communicate()
    again = train()
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    assert "the model is in s3://lab/mcrnn/runs/run/model" in out
    assert [epoch["epoch"] for epoch in RunFolder(folder).read_metrics()] == list(range(1, EPOCHS + 1))
    assert {path.name for path in here.iterdir()} == {"mlflow.db"}
    keys = {key.split("/")[0] for key in folder.sizes()}
    assert keys == {
        "checkpoints",
        "configuration.json",
        "end.json",
        "metrics.jsonl",
        "model",
        "record.json",
        "run.json",
    }


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


def test_diverged_training_says_so(command: CommandRunner, file: str) -> None:
    result = command("mcrnn.train", file, "--set", "train.learning_rate=1e30", "--set", "model.norm=layer")
    assert result.returncode == 1, result.stdout
    assert "run diverged in epoch" in result.stderr
    assert "Traceback" not in result.stderr
    again = command("mcrnn.train", file, "--set", "train.learning_rate=1e30", "--set", "model.norm=layer")
    assert again.returncode == 1


def train_all(loop_config: dict[str, Any]) -> None:
    """On a worker of Ray Train: one training after the other."""
    import ray

    from mcrnn.runners.ray_train import TrainSession

    data = ray.get(loop_config["data"])
    for job in loop_config["jobs"]:
        TrainSession(job).train(data)


def test_every_architecture_prediction_and_decoding_trains_on_two_workers(root: Path, shared_ray: str) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from mcrnn.config.sections import Configuration
    from mcrnn.data.description import FieldDescription
    from mcrnn.data.splits import FieldData
    from mcrnn.data.store import FieldStore
    from mcrnn.runners.ray_cluster import connected
    from mcrnn.storage.root import Storage
    from mcrnn.training.run import TrainingRun

    storage = Storage.open(str(root))
    store = FieldStore.open(storage.location("data/tiny.zarr"))
    jobs = []
    for architecture, prediction, decode in itertools.product(
        ("convgru", "convlstm", "minconvgru", "minconvlstm", "minconvexplstm"),
        ("frame", "increment"),
        ("hidden", "residual"),
    ):
        name = f"{architecture}-{prediction}-{decode}"
        model = {"architecture": architecture, "prediction": prediction, "decode": decode}
        train = {"epochs": 2, "workers": 2, "learning_rate": 5e-3, "checkpoint_minutes": 10}
        content = CONTENT | {"name": name, "model": CONTENT["model"] | model, "train": CONTENT["train"] | train}
        config = Configuration.model_validate(content)
        field = FieldDescription.of(store, config.data)
        jobs.append(TrainingRun(config, field, RunFolder(storage.location(f"runs/{name}")), name))
    with connected():
        TorchTrainer(
            train_all,
            train_loop_config={"jobs": jobs, "data": ray.put(FieldData.load(store, jobs[0].config.data))},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="all", storage_path=str(root / "ray")),
        ).fit()
    for job in jobs:
        losses = [epoch["loss"] for epoch in job.folder.read_metrics()]
        assert len(losses) == 2
        assert losses[1] < losses[0], job.run_name
