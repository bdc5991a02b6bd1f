"""The search of ns.yaml as it is written with plain Ray Tune, by its documentation; for `benchmarks.live`.

    python -m benchmarks.plain_ray_tune STORE --out FOLDER [--seed 0] [--minutes 10] [--epochs 10] [--windows 200]

`OptunaSearch` draws the values, `ASHAScheduler` stops trials, both with their defaults, and a trainable trains the
paper's models (`benchmarks.paper_models`) with Adam, a cosine schedule and clipped gradients in a plain loop. Two
trials run at a time, each on one core. Into FOLDER go `epochs.jsonl`, one line for each epoch of each trial with the
seconds since the start of the command, and `best.pt`, the network of the smallest validation error.

Axes: N sample, B window of a batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import zarr
from torch import nn

from benchmarks.paper_models import SIZES, PaperForecaster

COARSEN, WARM_UP, HORIZON = 4, 20, 30
"""What ns.yaml validates: frames given, then frames of the forecast, on 16 x 16."""


def load(store: str, split: str) -> torch.Tensor:
    """Return a split of a store, coarsened to 16 x 16; (N, T, C, H, W)."""
    field_NTCHW = torch.from_numpy(np.asarray(zarr.open_group(store, mode="r")[f"{split}/field"]))
    return nn.functional.avg_pool2d(field_NTCHW.flatten(0, 1), COARSEN).unflatten(0, field_NTCHW.shape[:2])


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Draw the values of a trial, within the paper's numbers of parameters."""
    architecture = trial.suggest_categorical("architecture", list(SIZES))
    largest = SIZES[architecture]
    trial.suggest_int(f"hidden_size_{architecture}", largest // 2, largest)
    trial.suggest_int("layers", 2, 5)
    length = trial.suggest_int("sequence_length", 15, 40, step=5)
    trial.suggest_int("teacher_forcing_steps", 5, length)
    trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True)
    trial.suggest_categorical("batch_size", [4, 8, 16])
    trial.suggest_categorical("weight_decay", [0.0, 1e-5, 1e-4, 1e-3])
    trial.suggest_categorical("gradient_clip", [0.1, 1.0, 10.0])
    return {}


def build(values: dict[str, Any]) -> PaperForecaster:
    """Return the network of a trial's values."""
    architecture = values["architecture"]
    hidden_size = values[f"hidden_size_{architecture}"]
    return PaperForecaster(architecture, hidden_size, values["layers"], 1, (16, 16), "circular")


@torch.no_grad()
def closed_loop_error(model: nn.Module, field_NTCHW: torch.Tensor) -> float:
    """Return the RMSE over the steps of a forecast after the given frames, from the first frame of each sample."""
    steps = WARM_UP + HORIZON
    squared, count = 0.0, 0
    for window_BTCHW in field_NTCHW[:, : steps + 1].split(32):
        forecast_BTCHW = model(window_BTCHW[:, :-1], WARM_UP)
        error_BTCHW = (forecast_BTCHW - window_BTCHW[:, 1:])[:, WARM_UP:].double()
        squared, count = squared + float(error_BTCHW.square().sum()), count + error_BTCHW.numel()
    return float((squared / count) ** 0.5)


def train(values: dict[str, Any], *, store: str, out: str, epochs: int, windows: int, began: float) -> None:
    """Train one trial, and report its error and its network after each epoch."""
    from ray import tune

    torch.set_num_threads(1)
    train_NTCHW, val_NTCHW = load(store, "train"), load(store, "val")
    std = float(train_NTCHW.std())
    model = build(values)
    optimizer = torch.optim.Adam(model.parameters(), values["learning_rate"], weight_decay=values["weight_decay"])
    batch_size, length = values["batch_size"], values["sequence_length"]
    batches = -(-windows // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for epoch in range(1, epochs + 1):
        model.train()
        samples = torch.randint(len(train_NTCHW), (windows,))
        starts = torch.randint(train_NTCHW.shape[1] - length, (windows,))
        for first in range(0, windows, batch_size):
            pairs = zip(samples[first : first + batch_size], starts[first : first + batch_size], strict=True)
            x_BTCHW = torch.stack([train_NTCHW[n, start : start + length + 1] for n, start in pairs])
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x_BTCHW[:, :-1], values["teacher_forcing_steps"]), x_BTCHW[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), values["gradient_clip"])
            optimizer.step()
            schedule.step()
        model.eval()
        error = closed_loop_error(model, val_NTCHW) / std
        error = error if np.isfinite(error) else 1e6
        line = {
            "seconds": time.time() - began,
            "trial": tune.get_context().get_trial_id(),
            "epoch": epoch,
            "error": error,
        }
        with (Path(out) / "epochs.jsonl").open(
            "a"
        ) as file:  # before the report, at which the scheduler may end the trial
            file.write(json.dumps(line) + "\n")
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"values": values, "weights": model.state_dict()}, Path(folder) / "model.pt")
            tune.report({"error": error}, checkpoint=tune.Checkpoint.from_directory(folder))


def main() -> None:
    """Run the search and keep its best network."""
    began = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--windows", type=int, default=200, help="training windows of an epoch")
    options = parser.parse_args()
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    np.random.seed(options.seed)
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    trainable = tune.with_parameters(
        train,
        store=str(Path(options.store).absolute()),
        out=str(out),
        epochs=options.epochs,
        windows=options.windows,
        began=began,
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric="error",
            mode="min",
            search_alg=OptunaSearch(space, metric="error", mode="min", seed=options.seed),
            scheduler=ASHAScheduler(max_t=options.epochs),
            num_samples=-1,
            max_concurrent_trials=2,
            time_budget_s=options.minutes * 60 - (time.time() - began),
        ),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=str(out),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="error", checkpoint_score_order="min"
            ),
            verbose=0,
        ),
    )
    results = tuner.fit()
    best = results.get_best_result(scope="all")
    checkpoint = best.get_best_checkpoint("error", "min")
    assert checkpoint is not None  # every trial that has reported an error has one
    with checkpoint.as_directory() as folder:
        (out / "best.pt").write_bytes((Path(folder) / "model.pt").read_bytes())
    ray.shutdown()


if __name__ == "__main__":
    main()
