"""Trainings as a user runs them, and what happens to them: signals, damage, S3, divergence."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest

from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from mcrnn.tracking.run_folder import CHECKPOINT_FOLDER, RunFolder
from tests.conftest import CommandRunner
from tests.support.commands import ForkedProcess
from tests.support.processes import Start, wait_for
from tests.support.s3_server import S3Server
from tests.support.training_runs import CONTENT, EPOCHS, metrics_of, timeless, undisturbed

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


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


@pytest.mark.soak
@pytest.mark.long(20)
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


@pytest.mark.soak
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
        "process.json",
    }


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


@pytest.mark.soak
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
