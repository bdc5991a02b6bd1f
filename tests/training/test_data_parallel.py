"""Data-parallel workers over gloo, without Ray: the gradients, weights and metrics of one worker."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import prefetch
from mcrnn.storage.local import LocalFolder
from mcrnn.training.checkpoints import deserialize, serialize
from mcrnn.training.session import CallbackSession, Metrics, Request, State
from mcrnn.training.trainer import Trainer, fit
from tests.training.test_trainer import configuration


def noisy(**train: Any) -> Any:
    """48 windows in batches of five, the last of three, with noise."""
    config = configuration(batch_size=5, **train)
    return config.model_copy(update={"data": config.data.model_copy(update={"noise": 0.1, "windows_per_epoch": 48})})


def on_worker(rank: int, world: int, kind: str, store: str, out: str) -> None:
    faulthandler.dump_traceback_later(120, exit=True)  # a worker that waits for ever says where
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if world > 1:
        dist.init_process_group("gloo", f"file://{out}.store", timedelta(seconds=60), world, rank)
    torch.save(trained(rank, world, kind, store), f"{out}-{rank}")
    gc.collect()  # or the data-parallel model is the last to hold the process group; see `mcrnn.runners.ray_train`
    if world > 1:
        dist.destroy_process_group()


def trained(rank: int, world: int, kind: str, store: str) -> Any:
    """What a worker has found, of a kind that the test names."""
    config = noisy(precision=kind) if kind.startswith("float") else noisy(epochs=3 if kind == "resume" else 9)
    data = FieldData.load(FieldStore.open(LocalFolder(Path(store))), config.data)
    reports: list[Metrics] = []
    states: list[State] = []
    session = CallbackSession(lambda metrics, state: reports.append(metrics), rank=rank, world_size=world)
    if kind == "resume":
        keeping = Keeping(rank, world)
        fit(config, data, keeping)
        again = CallbackSession(lambda metrics, state: reports.append(metrics), keeping.within, rank, world)
        fit(config, data, again)
        return {"whole": keeping.history[1:], "resumed": reports}
    if kind == "stop":
        stopping = Stopping(rank, world, states)
        end = fit(config, data, stopping)
        return {"end": str(end), "epochs": len(stopping.history)}
    training = Trainer(config, data, session, torch.device("cpu"))
    training._step(next(prefetch(training.windows.epoch(1, rank, world))))
    # before it was clipped the gradient was another, but for one factor that is the same for all
    gradients = {name: p.grad.double() for name, p in training.model.named_parameters() if p.grad is not None}
    fit(config, data, CallbackSession(lambda metrics, state: states.append(state), rank=rank, world_size=world))
    return {"gradients": gradients, "weights": states[-1]["model"], "history": states[-1]["history"]}


class Stopping(CallbackSession):
    """A session whose last rank alone asks for a stop."""

    def __init__(self, rank: int, world: int, states: list[State]) -> None:
        self.history: list[Metrics] = []
        super().__init__(lambda metrics, state: self.history.append(metrics), rank=rank, world_size=world)

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        return Request.STOP if (epoch, batch, self.rank) == (2, 1, self.world_size - 1) else Request.NOTHING


class Keeping(CallbackSession):
    """A session that keeps the state after the first step of the second epoch."""

    def __init__(self, rank: int, world: int) -> None:
        self.history: list[Metrics] = []
        self.within: State | None = None
        super().__init__(lambda metrics, state: self.history.append(metrics), rank=rank, world_size=world)

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        if metrics is None:
            self.within = deserialize(serialize(checkpoint))
        super().report(metrics, checkpoint)

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        return Request.CHECKPOINT if (epoch, batch) == (2, 8) else Request.NOTHING


def run(world: int, kind: str, store_path: Path, out: Path) -> list[dict[str, Any]]:
    # These modules are imported once, in the process from which all workers are forked.
    multiprocessing.set_forkserver_preload([__name__, "torch._dynamo", "torch._inductor.standalone_compile"])
    arguments = (world, kind, str(store_path), str(out))
    mp.start_processes(on_worker, arguments, world, start_method="forkserver")
    return [torch.load(f"{out}-{rank}") for rank in range(world)]


def test_workers_have_the_gradients_and_weights_of_one(store_path: Path, tmp_path: Path) -> None:
    ((alone),) = run(1, "float64", store_path, tmp_path / "one")
    for world in (2, 4):
        for mine in run(world, "float64", store_path, tmp_path / f"{world}"):
            for part in ("gradients", "weights"):
                for name, value in alone[part].items():
                    error = (mine[part][name] - value).norm() / value.norm().clamp(min=1e-300)
                    assert error <= 1e-10, (world, part, name)
            for a, b in zip(mine["history"], alone["history"], strict=True):
                for name in ("loss", "gradient_norm", "rmse_closed_loop", "best"):
                    assert a[name] == pytest.approx(b[name], rel=1e-10)


@pytest.mark.soak
def test_gradients_in_float32_are_the_same_to_rounding(store_path: Path, tmp_path: Path) -> None:
    (alone,) = run(1, "float32", store_path, tmp_path / "one")
    largest = max(float(gradient.abs().max()) for gradient in alone["gradients"].values())
    for world in (2, 4):
        for mine in run(world, "float32", store_path, tmp_path / f"{world}"):
            for name, value in alone["gradients"].items():
                assert float((mine["gradients"][name] - value).abs().max()) <= 1e-5 * largest, (world, name)


def test_a_stop_asked_of_one_worker_stops_all(store_path: Path, tmp_path: Path) -> None:
    assert run(2, "stop", store_path, tmp_path / "stop") == [{"end": "interrupted", "epochs": 1}] * 2


def test_metrics_of_an_epoch_that_was_continued_within_are_the_same(store_path: Path, tmp_path: Path) -> None:
    times = ("seconds", "frames_per_second")
    for result in run(2, "resume", store_path, tmp_path / "resume"):
        whole, resumed = (
            [{key: value for key, value in epoch.items() if key not in times} for epoch in result[name]]
            for name in ("whole", "resumed")
        )
        assert resumed == whole
