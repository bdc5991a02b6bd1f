"""How a search scales with its trials and with the machines of its cluster, in simulation.

    python -m benchmarks.scale [--nodes 2 12] [--trials 10 100 1000] [--seconds 1]

Nodes are Ray nodes on this machine with one CPU each. Trials only sleep and report, so that what is measured is what a
search does beside training: propose, record, decide. Printed are the trials a minute and their share of what sleeping
alone would allow, the processor time and the memory of the driver, and the time to resume the search.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray import tune
from ray.cluster_utils import Cluster

from mcrnn.config.loading import load_search
from mcrnn.runners.ray_cluster import connected
from mcrnn.search.journal import Journal
from mcrnn.search.study import finished_trials, open_study
from mcrnn.search.trial_runner import TrialRunner
from mcrnn.search.tune_adapter import StudyScheduler, StudySearcher
from mcrnn.storage.lease import Lease
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import LEASE_FILE
from mcrnn.training.session import OBJECTIVE

EPOCHS = 4
"""Epochs of a trial that is not stopped early."""


def sleeping_trial(proposal: dict[str, Any], *, seconds: float) -> None:
    """Sleep and report as a training does; a larger learning rate gives smaller errors."""
    rate = proposal["values"]["train.learning_rate"]
    for epoch in range(1, EPOCHS + 1):
        time.sleep(seconds / EPOCHS)
        error = 1 / (1 + 100 * rate * epoch)
        tune.report({OBJECTIVE: error, "best": error, "epoch": epoch, "epochs": EPOCHS, "diverged": 0.0})


def measure(nodes: int, trials: int, seconds: float, folder: Path) -> None:
    """Run one search, resume it, and print its row.

    Args:
        nodes: number of Ray nodes, each of one CPU.
        trials: number of trials of the search.
        seconds: how long a trial sleeps that is not stopped early.
        folder: an empty folder.
    """
    search = load_search(str(_write_space(folder)), [f"search.trials={trials}"])
    search_folder = LocalFolder(folder / "search")
    searcher = StudySearcher(open_study(Journal.open(search_folder), search), search)
    lease = Lease(search_folder, LEASE_FILE, "search")
    lease.acquire()
    function = tune.with_parameters(sleeping_trial, seconds=seconds)
    runner = TrialRunner(function, str(folder / "tune"), lease, {"CPU": 1}, nodes, 0)
    started, processor = time.monotonic(), time.process_time()
    runner.run("ray", [], search_alg=searcher, scheduler=StudyScheduler(searcher))
    took, used = time.monotonic() - started, time.process_time() - processor
    lease.release()
    reopened = time.monotonic()
    again = open_study(Journal.open(search_folder), search)
    done = finished_trials(again)
    resumed = time.monotonic() - reopened
    assert len(done) == trials
    epochs = sum(len(trial.intermediate_values) for trial in done)
    ideal = epochs / EPOCHS * seconds / nodes
    memory = psutil.Process().memory_info().rss / 1e6
    print(
        f"{nodes:5d} {trials:7d} {60 * trials / took:12.0f} {ideal / took:12.0%} {1000 * used / trials:12.0f} "
        f"{memory:10.0f} {1000 * resumed:10.0f}",
        flush=True,
    )


def _write_space(folder: Path) -> Path:
    """Write the search space of the simulation."""
    file = folder / "scale.yaml"
    content = {
        "name": "scale",
        "data": {"store": "data/none.zarr", "sequence_length": 6},
        "train": {"epochs": EPOCHS, "teacher_forcing_steps": 4},
        "validation": {"warm_up": 4, "horizon": 5},
        "search": {"trials": 1, "failures": 1},
        "space": {
            "model.architecture": {"choice": ["convgru", "convlstm", "minconvgru", "minconvexplstm"]},
            "model.hidden_size": {"int": [8, 64]},
            "train.learning_rate": {"float": [1e-4, 1e-2], "log": True},
        },
    }
    file.write_text(yaml.safe_dump(content))
    return file


def main() -> None:
    """Print a row for each number of nodes and trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 12])
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=1.0, help="of a trial that is not stopped early")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, hard), hard))
    print(f"trials of {EPOCHS} epochs, {arguments.seconds:g} s where they are not stopped early; limits {soft}")
    print("nodes  trials  a minute  of sleeping  ms of CPU a trial  driver, MB  resume, ms")
    for nodes in arguments.nodes:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
            with contextlib.ExitStack() as stack:
                os.environ["RAY_ADDRESS"] = cluster.address
                stack.enter_context(connected())
                for trials in arguments.trials:
                    with tempfile.TemporaryDirectory(prefix="mcrnn-scale-") as folder:
                        measure(nodes, trials, arguments.seconds, Path(folder))
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
