"""Measure what a training costs beyond a bare loop, and how data-parallel workers scale.

    python -m benchmarks.training [--rounds 5] [--seconds 20]

Overhead: the processor time of an epoch with all that a training does (reading ahead, checks, validation of one
window, checkpoint, model, metrics, MLflow), divided by that of a bare loop of the same steps on windows in memory. The
two take turns, in this process and on a worker of Ray Train. Scaling: frames per second of two gloo workers on two
cores, divided by those of one worker on one core, with batches of 16.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_prep.navier_stokes import generate
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import TrainingWindows
from mcrnn.models.forecaster import build_model
from mcrnn.runners.ray_cluster import connected
from mcrnn.runners.ray_train import TrainSession, run_distributed
from mcrnn.runners.session import RunSession
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import RunFolder
from mcrnn.training.run import TrainingRun

SAMPLES = 64


def configuration(name: str, **train: Any) -> Configuration:
    """Return the configuration of the paper's MinConvExpLSTM on 16 x 16, with windows of 25 steps."""
    return Configuration.model_validate(
        {
            "name": name,
            "data": {"store": "data/ns.zarr", "coarsen": 4, "sequence_length": 25},
            "model": {"architecture": "minconvexplstm", "hidden_size": 40, "layers": 4},
            "train": {"epochs": 1, "batch_size": 16, "teacher_forcing_steps": 20, **train},
            "validation": {"warm_up": 10, "horizon": 10, "windows": 1},
        }
    )


def with_windows(config: Configuration, windows: int) -> Configuration:
    """Return the configuration with so many windows per epoch."""
    return config.model_copy(update={"data": config.data.model_copy(update={"windows_per_epoch": windows})})


def bare_loop(config: Configuration, data: FieldData) -> Callable[[], None]:
    """Return a function that takes the training steps of an epoch and does nothing else."""
    train = config.train
    batches = TrainingWindows(data.train, config.data, data.is_series, train.batch_size, train.seed)
    ready = [batch.windows_BTCHW for batch, _ in zip(batches.epoch(1), range(4), strict=False)]
    model = build_model(config.model, data.field.frame_shape, data.field.padding)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=train.learning_rate, fused=True)

    def run() -> None:
        for step in range(len(batches)):
            x_BTCHW = ready[step % len(ready)]
            optimizer.zero_grad()
            prediction_BTCHW = model(x_BTCHW[:, :-1], train.teacher_forcing_steps)
            nn.functional.mse_loss(prediction_BTCHW, x_BTCHW[:, 1:]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    return run


def cpu_seconds(work: Callable[[], object]) -> float:
    """Run a function and return its processor time, of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def overheads(
    training_run: TrainingRun, data: FieldData, rounds: int, session: Callable[[TrainingRun], RunSession]
) -> list[float]:
    """Return, for each round, the processor time of a training beyond the bare loop, as a share of the loop's."""
    loop = bare_loop(training_run.config, data)
    shares = []
    for number in range(rounds):
        own_run = TrainingRun(
            training_run.config,
            training_run.field,
            RunFolder(training_run.folder.location.child(str(number))),
            f"{training_run.run_name}-{number}",
        )
        bare = cpu_seconds(loop)
        shares.append(cpu_seconds(lambda: session(own_run).train(data)) / bare - 1)  # noqa: B023
    return shares


def _on_worker(loop_config: dict[str, Any]) -> None:
    import ray

    torch.set_num_threads(1)
    data = ray.get(loop_config["data"])
    training_run, rounds = loop_config["training_run"], loop_config["rounds"]
    shares = overheads(training_run, data, rounds, lambda training_run: TrainSession(training_run, loop_config["stop"]))
    Path(loop_config["out"]).write_text(" ".join(map(str, shares)))


def overhead(root: Path, rounds: int, seconds: float) -> None:
    """Print the overhead of a training in this process and on a worker of Ray Train."""
    storage = Storage.open(str(root))
    store = FieldStore.open(storage.location("data/ns.zarr"))
    config = configuration("overhead")
    data = FieldData.load(store, config.data)
    trial = bare_loop(with_windows(config, 5 * config.train.batch_size), data)
    trial()
    steps = round(5 * seconds / cpu_seconds(trial)) + 1
    config = with_windows(config, steps * config.train.batch_size)
    field = FieldDescription.of(store, config.data)
    print(f"epochs of {steps} steps; share beyond a bare loop, processor time, median of {rounds}", flush=True)
    training_run = TrainingRun(config, field, RunFolder(storage.location("alone")), "alone")
    shares = overheads(training_run, data, rounds, RunSession)
    print(f"  in this process  {_percent(shares)}  (promised: at most 2 %)", flush=True)

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from mcrnn.runners.stop_flag import new_stop_flag

    with connected():
        out = root / "shares"
        training_run = TrainingRun(config, field, RunFolder(storage.location("worker")), "worker")
        flag = new_stop_flag()
        TorchTrainer(
            _on_worker,
            train_loop_config={
                "training_run": training_run,
                "data": ray.put(data),
                "rounds": rounds,
                "stop": flag,
                "out": str(out),
            },
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="overhead", storage_path=str(root / "ray")),
        ).fit()
    shares = [float(share) for share in out.read_text().split()]
    print(f"  on Ray Train     {_percent(shares)}  (promised: at most 3 %)", flush=True)


def _percent(shares: list[float]) -> str:
    rounds = ", ".join(f"{100 * share:.1f}" for share in shares)
    return f"{100 * statistics.median(shares):.1f} %  ({rounds})"


def scaling(root: Path, rounds: int, seconds: float) -> None:
    """Print the frames per second of two workers, divided by those of one."""
    import ray

    storage = Storage.open(str(root))
    store = FieldStore.open(storage.location("data/ns.zarr"))
    config = configuration("scaling")
    data = FieldData.load(store, config.data)
    trial = bare_loop(with_windows(config, 5 * config.train.batch_size), data)
    trial()
    steps = round(5 * seconds / cpu_seconds(trial)) + 1
    rates: dict[int, list[float]] = {1: [], 2: []}
    with connected():
        reference = ray.put(data)
        for number in range(rounds):
            for workers in rates:
                # the second epoch is measured: the first one includes what is set up once
                each = configuration("scaling", workers=workers, epochs=2)
                each = with_windows(each, steps * config.train.batch_size)
                folder = RunFolder(storage.location(f"scaling-{workers}-{number}"))
                training_run = TrainingRun(each, FieldDescription.of(store, each.data), folder, folder.url)
                run_distributed(training_run, reference)
                rates[workers].append(folder.read_metrics()[-1]["frames_per_second"])
    one, two = statistics.median(rates[1]), statistics.median(rates[2])
    ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    print(f"batches of 16, epochs of {steps} steps: {one:.0f} frames/s on one core, {two:.0f} with two workers on two")
    print(f"  {statistics.median(ratios):.2f}x, median of {rounds} rounds (promised: at least 1.7)", flush=True)


def main() -> None:
    """Run the benchmarks and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mcrnn-", dir="/tmp") as folder:
        root = Path(folder)
        generate("data/ns.zarr", train=SAMPLES, val=2, test=2, seed=0, workers=1, storage=folder)
        scaling(root, options.rounds, options.seconds)
        overhead(root, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
