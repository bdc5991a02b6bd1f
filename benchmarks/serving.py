"""A served model: what a request costs beside bare inference, and that none is lost while things go wrong.

    python -m benchmarks.serving [--requests 10000] [--replicas 2]

Models have random weights and fields of 16 x 16; a request gives ten frames and asks for twenty. First, with a model of
the size of the paper's MinConvExpLSTM (175,449 parameters), the latency of requests in each kind of body, one after the
other, beside `model.predict` in this process on one thread; then the time for each request where eight callers send
them. Then, with a small model, the requests of eight callers while its alias moves three times and a replica is killed,
each answer compared with what the version that it names computes; and 200 requests that must be refused.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path

import mlflow
import numpy as np
import psutil
import requests
import torch

from data_prep.navier_stokes import generate
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.support.registered_models import register, save
from tests.support.served import (
    ARROW,
    JSON,
    NETCDF,
    Served,
    arrow,
    as_json,
    bad_requests,
    read_forecast,
    replica_processes,
    served_model,
    write_netcdf,
)

GIVEN, STEPS, CALLERS = 10, 20, 8
WARMING = 5
"""Requests of each kind before those that are measured."""
SIZES = {"paper": {"hidden_size": 40, "layers": 4}, "small": {"hidden_size": 4, "layers": 1}}
"""Models by name: the size of the network."""
TOLERANCE = 1e-5
"""Largest difference of an answer, in standard deviations: batches of another size add in another order."""


def prepare(root: Path, name: str, versions: int) -> list[TrainedModel]:
    """Register some versions of a model of `SIZES` with random weights, and return them."""
    generate("data/ns.zarr", train=2, val=1, test=1, seed=0, frames=40, workers=1, storage=str(root))
    config = Configuration.model_validate(
        {
            "name": name,
            "data": {"store": "data/ns.zarr", "coarsen": 4},
            "model": {"architecture": "minconvexplstm", **SIZES[name]},
            "validation": {"warm_up": GIVEN, "horizon": STEPS - 1},
        }
    )
    field = FieldDescription.of(FieldStore.open(LocalFolder(root / "data/ns.zarr")), config.data)
    folders = [save(root / f"models/{name}-{seed}", config, field, seed=seed) for seed in range(versions)]
    for folder in folders:
        register(Storage(str(root)), name, folder)
    return [trained_model.load(folder) for folder in folders]


def server(root: Path, name: str, replicas: int) -> AbstractContextManager[Served]:
    """Serve the champion of a name within the context."""
    options = ("--replicas", str(replicas), "--poll", "0.5", "--max-mb", "1")
    return served_model(root, f"models:/{name}@champion", *options)


def milliseconds(ask: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    ask()
    return 1e3 * (time.perf_counter() - started)


def show(name: str, found: list[float], beside: list[float] | None = None) -> None:
    """Print median and 99th percentile, and their ratios to those of something else."""
    p50, p99 = np.quantile(found, (0.5, 0.99))
    ratios = (
        "" if beside is None else ", {:.2f} and {:.2f} times".format(*(p50, p99) / np.quantile(beside, (0.5, 0.99)))
    )
    print(f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms{ratios}", flush=True)


def measure(served: Served, model: TrainedModel, frames: np.ndarray, netcdf: Path, repeats: int) -> None:
    """Print latencies beside those of the model in this process.

    All kinds of request are measured in turn, so that what else the machine does is the same for all.
    """
    session, query = requests.Session(), {"steps": str(STEPS)}
    bodies = {
        "JSON": (as_json({"frames": frames.tolist()}), JSON),
        "Arrow": (arrow(frames), ARROW),
        "NetCDF": (netcdf.read_bytes(), NETCDF),
    }

    def ask(name: str, session: requests.Session = session) -> None:
        answer = served.post(*bodies[name], query, session)
        assert answer.status_code == 200, answer.text

    found: dict[str, list[float]] = {name: [] for name in ("model.predict", *bodies)}
    for number in range(repeats + WARMING):
        for name, times in found.items():
            taken = milliseconds(
                (lambda: model.predict(frames, STEPS)) if name == "model.predict" else partial(ask, name)
            )
            if number >= WARMING:
                times.append(taken)
    bare = found.pop("model.predict")
    show("model.predict", bare)
    for name, times in found.items():
        show(f"{name}, one caller", times, bare)

    def call(name: str) -> None:
        with requests.Session() as own:
            for _ in range(repeats // CALLERS):
                ask(name, own)

    for name in bodies:
        before = milliseconds(lambda: [model.predict(frames, STEPS) for _ in range(repeats // CALLERS)])
        with ThreadPoolExecutor(CALLERS) as pool:
            together = milliseconds(partial(list, pool.map(call, [name] * CALLERS)))
        one, each = before / (repeats // CALLERS), together / (repeats // CALLERS * CALLERS)
        print(f"{name}, {CALLERS} callers: {each:.1f} ms a request, {each / one:.2f} times model.predict", flush=True)


def disturb(served: Served, root: Path, done: Callable[[], float], log: list[str]) -> None:
    """Move the alias at a fifth, two and four fifths of the requests, and kill a replica in the middle."""
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    for share, version in ((0.2, "2"), (0.4, "3"), (0.5, None), (0.8, "1")):
        while done() < share:
            time.sleep(0.05)
        if version is not None:
            client.set_registered_model_alias("small", "champion", version)
            log.append(f"at {100 * share:.0f} %: champion is version {version}")
        else:
            victim = replica_processes(served.process.pid)[0]
            victim.kill()
            log.append(f"at {100 * share:.0f} %: replica {victim.pid} killed")


def hammer(served: Served, models: list[TrainedModel], root: Path, total: int) -> Counter[str]:
    """Send requests while things go wrong, and count what becomes of them."""
    generator = np.random.default_rng(1)
    questions = [generator.normal(size=(1, GIVEN, 1, 16, 16)).astype(np.float32) for _ in range(20)]
    expected = [[model.predict(frames, STEPS) for frames in questions] for model in models]
    scale = models[0].field.std[0] if models[0].config.data.normalize else 1.0
    bodies = [arrow(frames) for frames in questions]
    numbers, results, log = count(), Counter[str](), list[str]()
    lock = threading.Lock()

    def call() -> None:
        session = requests.Session()
        while (number := next(numbers)) < total:
            which = number % len(questions)
            try:
                answer = served.post(bodies[which], ARROW, {"steps": str(STEPS)}, session)
                if answer.status_code != 200:
                    outcome = f"lost: status {answer.status_code} {answer.text[:80]}"
                else:
                    version = answer.headers["X-Model-Version"]
                    difference = np.abs(read_forecast(ARROW, answer.content) - expected[int(version) - 1][which]).max()
                    outcome = f"right, version {version}" if difference <= TOLERANCE * scale else "wrong"
            except requests.RequestException as error:
                outcome = f"lost: {type(error).__name__}"
            with lock:
                results[outcome] += 1

    disturber = threading.Thread(target=disturb, args=(served, root, lambda: results.total() / total, log))
    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in (disturber, *callers):
        thread.start()
    for thread in (*callers, disturber):
        thread.join()
    print("\n".join(log))
    return results


def refuse(served: Served, frames: np.ndarray, netcdf: Path, total: int) -> Counter[str]:
    """Send requests that must be refused, and count the answers."""
    before = {process.pid for process in replica_processes(served.process.pid)}
    cases, results = bad_requests(frames, netcdf), Counter[str]()
    for number in range(total):
        case = cases[number % len(cases)]
        answer = served.post(case.body, case.kind, case.query)
        clear = answer.status_code == case.status and case.sentence in answer.json()["error"]
        results[f"status {answer.status_code}, {'with its sentence' if clear else answer.text[:100]}"] += 1
    after = {process.pid for process in replica_processes(served.process.pid)}
    results["replicas lost"] = len(before - after)
    return results


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--bad-requests", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=300, help="0 leaves the latencies out")
    parser.add_argument("--replicas", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mcrnn-serving-") as folder:
        root = Path(folder)
        (paper,) = prepare(root, "paper", 1)
        models = prepare(root, "small", 3)
        frames = np.random.default_rng(0).normal(size=(1, GIVEN, 1, 16, 16)).astype(np.float32)
        netcdf = write_netcdf(root / "given.nc", frames[0, :, 0], coarsen=4)
        print(f"{options.replicas} replicas, {psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        if options.repeats:
            with server(root, "paper", options.replicas) as served:
                measure(served, paper, frames, netcdf, options.repeats)
        with server(root, "small", options.replicas) as served:
            results = hammer(served, models, root, options.requests)
            print(f"{results.total():,} requests: {dict(results)}", flush=True)
            print(f"{options.bad_requests} bad requests: {dict(refuse(served, frames, netcdf, options.bad_requests))}")


if __name__ == "__main__":
    main()
