"""Searches on a cluster that has no GPU when they start: machines come when trials wait for them, and go when idle."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import CommandRunner
from tests.support import shared
from tests.support.cluster_watch import ClusterWatch
from tests.support.commands import ForkedProcess, said_by
from tests.support.fork_server import launcher
from tests.support.growing_cluster import IDLE_SECONDS, GrowingCluster
from tests.support.processes import Start, wait_for
from tests.support.searches import write

pytestmark = pytest.mark.integration

Grow = Callable[..., GrowingCluster]


@pytest.fixture
def growing(ray_folder: Path) -> Iterator[Grow]:
    """Start clusters that grow, with a version of the autoscaler."""
    started: list[GrowingCluster] = []

    def start(version: int, **options: Any) -> GrowingCluster:
        python = launcher(shared.command_server())
        started.append(GrowingCluster(ray_folder, python, version, **options))
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()


def of(cluster: GrowingCluster, **more: str) -> dict[str, str]:
    """The environment of a command that uses the cluster, whose nodes all see the root."""
    return {
        "RAY_ADDRESS": cluster.address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": cluster.token,
        "MCRNN_SHARED_STORAGE": "1",
        **more,
    }


both_versions = pytest.mark.parametrize("version", [1, 2])
"""With each version of the autoscaler."""
SPREAD = {"concurrency": None, "scheduler": "none"}
"""As many trials at a time as there is room for, of which none is paused or stopped."""
LONG = {"epochs": 1000}
"""Trials that do not end within a test."""


def nodes(count: int, **more: Any) -> dict[str, Any]:
    return {"gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": count}} | more


def finished(search: ForkedProcess, seconds: float) -> str:
    """What a search has said, which ends within so many seconds, and well."""
    out, err = search.communicate(seconds)
    assert search.returncode == 0, out + err
    return out


def assert_complete(root: Path, count: int) -> None:
    """Each trial is there once, and has ended well."""
    summary = json.loads((root / "searches" / "s" / "summary.json").read_text())
    assert sorted(row["trial"] for row in summary["trials"]) == list(range(count))
    assert {row["end"] for row in summary["trials"]} == {"finished"}, summary["trials"]


def assert_only_gpus_were_used(watch: ClusterWatch) -> None:
    for _, seen in watch.seen:
        assert all(node["has"]["GPU"] > 0 for node in seen.values())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", [pytest.param(1, marks=pytest.mark.soak), 2])
@pytest.mark.long(90)
def test_from_0_to_8_gpus_and_back(
    root: Path, database: Path, growing: Grow, start: Start, command: CommandRunner, version: int
) -> None:
    without_gpu = {"cpu": {"resources": {"CPU": 8}, "max_workers": 8}}
    cluster = growing(version, node_types=nodes(8, **without_gpu), max_workers=8)
    write(root, "s", search=SPREAD | {"trials": 8}, train=LONG)
    with ClusterWatch(cluster.address, root, cluster.environment) as watch:
        refused = command("mcrnn.tune", "s.yaml", **of(cluster, MCRNN_SHARED_STORAGE=""))
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: the cluster may get more machines, which do not see the folder ")
        assert len(refused.stderr.splitlines()) == 1
        assert not (root / "searches").exists()

        submitted = time.time()
        search = start("mcrnn.tune", "s.yaml", **of(cluster))
        wait_for(lambda: watch.busy() == 8, search, 200)
        print(f"autoscaler v{version}: 8 GPUs busy {time.time() - submitted:.0f} s after the search was submitted")
        search.send_signal(signal.SIGINT)
        out, err = search.communicate(100)
        ended = time.time()
        assert search.returncode == 130, err
        assert "cluster: 0 GPUs now, may grow to 8; 1 GPU per trial, up to 8 trials at a time\n" in out
        wait_for(lambda: not watch.nodes, seconds=IDLE_SECONDS + 20)
        print(f"autoscaler v{version}: no node {time.time() - ended:.0f} s after the search had ended")
        assert_only_gpus_were_used(watch)


@pytest.mark.soak
@pytest.mark.timeout(600)
@both_versions
def test_a_lost_node_is_replaced(root: Path, database: Path, growing: Grow, start: Start, version: int) -> None:
    cluster = growing(version, node_types=nodes(2))
    write(root, "s", search=SPREAD | {"trials": 4}, train=LONG | {"epochs": 60, "checkpoint_minutes": 0.02})
    with ClusterWatch(cluster.address, root, cluster.environment) as watch:
        search = start("mcrnn.tune", "s.yaml", **of(cluster))
        wait_for(lambda: watch.busy() == 2, search, 200)
        before = set(watch.nodes)
        lost = min(before)
        cluster.kill(lost)
        wait_for(lambda: set(watch.nodes) - before, search, 200)
        finished(search, 300)
        assert_complete(root, 4)
        wait_for(lambda: not watch.nodes, seconds=60)


@pytest.mark.soak
@pytest.mark.timeout(600)
@both_versions
def test_a_search_makes_do_without_machines_that_cannot_be_had(
    root: Path, database: Path, growing: Grow, start: Start, version: int
) -> None:
    spot = {"spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4, "node_config": {"unavailable": True}}}
    cluster = growing(version, node_types=nodes(2, **spot))
    write(root, "s", search=SPREAD | {"trials": 6})
    with ClusterWatch(cluster.address, root, cluster.environment) as watch:
        search = start("mcrnn.tune", "s.yaml", **of(cluster))
        out = finished(search, 400)
        assert "0 GPUs now, may grow to 6; 1 GPU per trial, up to 6 trials at a time" in out
        assert_complete(root, 6)
        assert {node["type"] for _, seen in watch.seen for node in seen.values()} == {"gpu"}


FROM_A_WORKER = """
import os

from mcrnn.runners.ray_cluster import connected


def size(address):
    import ray
    from mcrnn.runners.cluster_size import cluster_size

    os.environ["RAY_ADDRESS"] = address
    cluster = cluster_size()
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    return "node:__internal_head__" not in here["Resources"], cluster.limits.grows, cluster.describe(1, 1, 2)


with connected():
    import ray

    away, grows, line = ray.get(ray.remote(num_cpus=1)(size).remote(os.environ["RAY_ADDRESS"]))
    print(away and grows, line)
"""
"""A program that asks for the size of a cluster on a node other than the head."""


@pytest.mark.soak
@pytest.mark.timeout(600)
@both_versions
def test_four_trials_share_a_gpu(root: Path, database: Path, growing: Grow, start: Start, version: int) -> None:
    cluster = growing(version, node_types=nodes(2))
    write(root, "s", search=SPREAD | {"trials": 8, "gpus": 0.25}, train=LONG)
    with ClusterWatch(cluster.address, root, cluster.environment) as watch:
        search = start("mcrnn.tune", "s.yaml", **of(cluster))
        full = {"CPU": 4, "GPU": 1}
        wait_for(lambda: [node["used"] for node in watch.nodes.values()] == [full, full], search, 200)
        said = said_by(FROM_A_WORKER, root, timeout=100, **of(cluster))
        assert said == "True cluster: 2 GPUs; 1 GPU per trial, up to 2 trials at a time"
        search.send_signal(signal.SIGINT)
        out, _ = search.communicate(100)
        assert "0 GPUs now, may grow to 2; 0.25 GPU per trial, up to 8 trials at a time" in out
        wait_for(lambda: not watch.nodes, seconds=60)


@pytest.mark.soak
@pytest.mark.timeout(600)
@both_versions
def test_trials_with_two_workers(root: Path, database: Path, growing: Grow, start: Start, version: int) -> None:
    cluster = growing(version, node_types=nodes(4))
    write(root, "s", search=SPREAD | {"trials": 3}, train={"workers": 2, "epochs": 60})
    with ClusterWatch(cluster.address, root, cluster.environment) as watch:
        search = start("mcrnn.tune", "s.yaml", **of(cluster))
        wait_for(lambda: watch.busy() == 4, search, 200)
        out = finished(search, 300)
        assert "0 GPUs now, may grow to 4; 2 workers of 1 GPU per trial, up to 2 trials at a time" in out
        assert_complete(root, 3)
        wait_for(lambda: not watch.nodes, seconds=60)


@pytest.mark.soak
@pytest.mark.timeout(900)
@both_versions
def test_nodes_go_while_a_long_trial_runs_and_come_again_for_the_confirmation(
    root: Path, database: Path, growing: Grow, start: Start, version: int
) -> None:
    cluster = growing(version, node_types=nodes(3))
    confirm = {"configurations": 3, "seeds": 2}
    write(root, "s", search={"concurrency": None, "sampler": "grid", "confirm": confirm}, train={"epochs": 2})
    content = yaml.safe_load((root / "s.yaml").read_text())
    content["model"] = {"layers": 1, "architecture": "minconvgru", "hidden_size": 4}
    content["space"] = {"data.windows_per_epoch": {"choice": [400, 401, 3000]}}
    (root / "s.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with ClusterWatch(cluster.address, root, cluster.environment) as watch:
        search = start("mcrnn.tune", "s.yaml", **of(cluster))
        wait_for(lambda: len(watch.nodes) >= 2, search, 200)
        wait_for(lambda: len(watch.nodes) == 1 and watch.busy() == 1, search, 200)
        wait_for(lambda: len(watch.nodes) >= 2, search, 400)
        finished(search, 400)
        assert_complete(root, 3)
        wait_for(lambda: not watch.nodes, seconds=60)
