"""A Ray job that is stopped, on a cluster whose head waits as those of cluster/ do."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT
from tests.support.lab import Lab, prepare, write
from tests.support.processes import wait_for
from tests.support.ray_cluster import RAY

pytestmark = pytest.mark.integration

WAIT = "RAY_JOB_STOP_WAIT_TIME_S"


def seconds_of_kubernetes() -> str:
    """What the head of cluster/kuberay.yaml is told."""
    documents = yaml.safe_load_all((PROJECT / "cluster" / "kuberay.yaml").read_text())
    (cluster,) = (each for each in documents if each["kind"] == "RayCluster")
    (head,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    (seconds,) = (each["value"] for each in head["env"] if each["name"] == WAIT)
    return seconds


def slow(_: Any) -> None:
    """Object storage that takes a second for each answer, so that nothing is saved within Ray's three."""
    time.sleep(1)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_stopped_job_has_time_to_save(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    prepare(lab)
    lab.start_mlflow()
    lab.environment[WAIT] = seconds_of_kubernetes()
    cluster = lab.start_cluster()
    shipped = lab.laptop / "shipped"
    shipped.mkdir()
    # an epoch without end: only the stop writes a checkpoint
    endless = {"checkpoint_minutes": 60.0, "epochs": 2}
    write(shipped, "s", data={"windows_per_epoch": 1_000_000}, search={"trials": 2}, train=endless)
    job = lab.job("python", "-m", "mcrnn.tune", "s.yaml", working_dir=str(shipped), submission_id="search")
    wait_for(lambda: any("/trials/" in key for key in lab.keys("searches/s/")), job, 120)
    time.sleep(10)
    assert [key for key in lab.keys("searches/s/") if "/checkpoints/" in key] == []

    lab.s3.fault = slow
    stop = [RAY, "job", "stop", "--address", cluster.jobs, "search"]
    stopped = subprocess.run(stop, env=cluster.environment, capture_output=True, text=True, timeout=180)
    lab.s3.fault = None
    out, _ = job.communicate(timeout=60)
    assert stopped.returncode == 0, stopped.stderr
    assert "interrupted; the same command continues" in out
    assert "was stopped" in out
    left = lab.keys("searches/s/")
    assert [key for key in left if "/checkpoints/" in key]
    assert "searches/s/lock.json" not in left  # or the same command would have to wait
