"""What MLflow costs a training: processor time for each epoch, on SQLite and on a server, with four trials at once.

    python -m benchmarks.tracking [--epochs 20] [--seconds 10]

Four folders get an epoch of 20 metrics each, as four trials of a search would write them, once in an epoch's time (a
tenth of it here, which changes no sum); one thread of the driver sends them to MLflow. Printed are the processor time
of the driver and of the server for one epoch of one trial, as a share of the epoch's time, and what the training's own
thread adds. At the end it checks that MLflow has every epoch.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking import provenance
from mcrnn.tracking.experiment import Tracker
from mcrnn.tracking.mlflow_client import client_of, tracking_uri
from mcrnn.tracking.run_folder import RunFolder
from mcrnn.tracking.sync import RunSync

TRIALS, METRICS = 4, 20
"""Trials at once, and metrics of an epoch."""


def append(folder: RunFolder, epoch: int) -> None:
    """Add one epoch to the metrics of a folder, as a training does."""
    metrics = {"epoch": epoch, "time": time.time(), **{f"metric_{i}": epoch / (i + 1) for i in range(METRICS)}}
    folder.write_metrics([*folder.read_metrics(), metrics])


def measure(storage: Storage, name: str, epochs: int, seconds: float, server: psutil.Process | None) -> None:
    """Print the share of an epoch's time that recording it takes.

    Args:
        storage: the storage root.
        name: name of the experiment.
        epochs: epochs of each trial.
        seconds: time of an epoch.
        server: process of the tracking server, None for SQLite.
    """
    sync = RunSync(Tracker.open(storage, name))
    folders = [RunFolder(LocalFolder(Path(storage.name) / name / str(trial))) for trial in range(TRIALS)]
    for folder in folders:
        params = {"train": {f"field_{i}": i for i in range(60)}}
        folder.write_record(folder.name, tags={"mcrnn.kind": "trial"}, params=params)
        sync.update_now(folder, "RUNNING")
    idle = _idle(server)
    driver, theirs, began = time.process_time(), _seconds(server), time.monotonic()
    writing = 0.0
    for epoch in range(1, epochs + 1):
        started = time.process_time()
        for folder in folders:
            append(folder, epoch)
        writing += time.process_time() - started
        for folder in folders:
            sync.update(folder)
        time.sleep(seconds / 10)
    sync.wait()
    ours = (time.process_time() - driver - writing) / epochs / TRIALS
    theirs = (_seconds(server) - theirs - idle * (time.monotonic() - began)) / epochs / TRIALS
    for folder in folders:
        sync.update(folder, "FINISHED")
    sync.wait()
    client = client_of(tracking_uri(storage))
    for folder in folders:
        run_id = folder.read_sync_state()["run_id"]
        steps = [metric.step for metric in client.get_metric_history(run_id, "metric_0")]
        assert sorted(steps) == list(range(1, epochs + 1)), steps
    sync.close()
    print(
        f"{name:<7} {1e3 * ours:.1f} ms of the driver{f', {1e3 * theirs:.1f} ms of the server' if server else ''} an "
        f"epoch of one trial: {100 * (ours + theirs) / seconds:.2f} % of {seconds:g} s, "
        f"{100 * TRIALS * (ours + theirs) / seconds:.2f} % of one core for {TRIALS} trials (promised: at most 2 %)",
        flush=True,
    )


def _idle(server: psutil.Process | None) -> float:
    """Return the processor time that an idle server takes in a second, once it has started up."""
    if server is None:
        return 0.0
    time.sleep(20)
    before = _seconds(server)
    time.sleep(10)
    return (_seconds(server) - before) / 10


def _seconds(server: psutil.Process | None) -> float:
    """Return the processor time of a server and its workers so far, in seconds."""
    if server is None:
        return 0.0
    found = [each.cpu_times() for each in [server, *server.children(recursive=True)]]
    return sum(each.user + each.system for each in found)


def serve(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a tracking server on the loopback interface; returns its process and its URL."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--artifacts-destination", str(folder), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return process, url
        except OSError:
            time.sleep(0.3)


def main() -> None:
    """Measure on SQLite and on a server, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    times = []
    for _ in range(20):
        started = time.perf_counter()
        provenance.system_metrics()
        times.append(time.perf_counter() - started)
    own = statistics.median(times)
    print(f"the training's thread adds {1e3 * own:.2f} ms an epoch, {100 * own / options.seconds:.3f} %")
    with tempfile.TemporaryDirectory(prefix="mcrnn-", dir="/tmp") as folder:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        storage = Storage.open(folder)
        measure(storage, "SQLite", options.epochs, options.seconds, None)
        process, url = serve(Path(folder))
        try:
            os.environ["MLFLOW_TRACKING_URI"] = url
            measure(storage, "server", options.epochs, options.seconds, psutil.Process(process.pid))
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
