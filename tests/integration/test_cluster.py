"""The whole path on a cluster: S3, PostgreSQL, a tracking server with passwords, two nodes with a token, Ray jobs."""

from __future__ import annotations

import json
import time
from typing import Any

import psutil
import pytest

from tests.support.lab import PASSWORD, Lab, answers, prepare, write
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_for
from tests.support.ray_cluster import TwoNodes
from tests.support.s3_server import error

pytestmark = pytest.mark.integration


def runs(lab: Lab, name: str) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(lab.uri)
    experiment = client.get_experiment_by_name(f"mcrnn-{name}")
    return [] if experiment is None else client.search_runs([experiment.experiment_id], max_results=1000)


def trials(lab: Lab, name: str) -> list[Any]:
    return [run for run in runs(lab, name) if run.data.tags.get("mcrnn.kind") == "trial"]


def assert_whole(lab: Lab, name: str, count: int) -> None:
    """All trials once, with all of their epochs, on object storage and in MLflow."""
    import mlflow

    summary = json.loads(lab.files(f"searches/{name}/summary.json")[f"searches/{name}/summary.json"])
    assert sorted(row["trial"] for row in summary["trials"]) == list(range(count))
    assert {run.info.status for run in runs(lab, name)} == {"FINISHED"}
    client = mlflow.MlflowClient(lab.uri)
    assert sorted(run.info.run_name for run in trials(lab, name)) == sorted(f"trial-{n}" for n in range(count))
    for run in trials(lab, name):
        number = int(run.info.run_name.removeprefix("trial-"))
        key = f"searches/{name}/trials/{number:04d}/metrics.jsonl"
        epochs = [json.loads(line) for line in lab.files(key)[key].splitlines()]
        sent = client.get_metric_history(run.info.run_id, "loss")
        assert [(each.step, each.value) for each in sorted(sent, key=lambda each: each.step)] == [
            (epoch["epoch"], epoch["loss"]) for epoch in epochs
        ]


def assert_refusals(lab: Lab, cluster: TwoNodes) -> None:
    """What a cluster cannot do is refused in one line before anything is written; nobody has started MLflow yet."""
    write(lab.laptop, "s")
    here = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}

    def refused(**environment: str) -> str:
        result = lab.run("mcrnn.tune", "s.yaml", **(here | environment))
        assert result.returncode == 2, result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr

    assert "does not accept your token" in refused(RAY_AUTH_TOKEN="0" * 32)
    local = lab.folder / "root"
    local.mkdir()
    assert "which do not see the folder" in refused(MCRNN_STORAGE=str(local), MLFLOW_TRACKING_URI="")
    assert "MLFLOW_TRACKING_URI names no server" in refused(MLFLOW_TRACKING_URI="")
    relative = refused(MCRNN_STORAGE="here", RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    assert "relative to the folder of a Ray job" in relative
    assert lab.files("searches/") == {}
    assert "the tracking server cannot be reached" in refused(RAY_ADDRESS="")
    (lab.laptop / "s.yaml").unlink()


@pytest.mark.long(150)
@pytest.mark.timeout(600)
def test_whole_path_from_data_to_promotion_on_a_cluster(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    prepare(lab)
    cluster = lab.start_cluster(forked=True)
    assert_refusals(lab, cluster)
    lab.start_mlflow()
    shipped = lab.laptop / "shipped"
    shipped.mkdir()
    write(shipped, "s")

    job = lab.job("python", "-m", "mcrnn.tune", "s.yaml", working_dir=str(shipped))
    out, _ = job.communicate(timeout=240)
    assert job.returncode == 0, out
    assert "[4/4]" in out
    assert_whole(lab, "s", 4)
    again = lab.job("python", "-m", "mcrnn.tune", "no-such.yaml")
    out, _ = again.communicate(timeout=60)
    assert again.returncode != 0
    assert "exit code 2" in out

    promoted = lab.run("mcrnn.promote", "mcrnn-s", "--version", "1", "--alias", "production", "--reason", "the first")
    assert promoted.returncode == 0, promoted.stderr
    evaluated = lab.run("mcrnn.evaluate", "models:/mcrnn-s@production")
    assert evaluated.returncode == 0, evaluated.stderr
    assert any(key.endswith("report.html") for key in lab.files("reports/"))
    assert any(key.endswith("model.safetensors") for key in lab.files("mlartifacts/"))

    assert [path.name for path in lab.laptop.iterdir()] == ["shipped"]
    assert [path.name for path in shipped.iterdir()] == ["s.yaml"]
    left = [path for path in cluster.folder.rglob("*") if path.name in ("mlflow.db", "mlartifacts")]
    assert left == []
    where = [path for path in lab.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    secrets = [PASSWORD.encode(), b"mcrnn:secret", cluster.token.encode()]
    assert [path for path in where if any(secret in path.read_bytes() for secret in secrets)] == []
    assert [key for key, content in lab.files("").items() if any(secret in content for secret in secrets)] == []
    assert not any(secret in cluster.ask("/api/jobs/") for secret in secrets)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_search_outlives_every_service_that_goes_away(
    lab: Lab, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.database = postgres.url
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    lab.start_mlflow()
    prepare(lab)
    cluster = lab.start_cluster()
    shipped = lab.laptop / "shipped"
    shipped.mkdir()
    write(shipped, "f", search={"trials": 16, "scheduler": "none"}, train={"epochs": 30, "checkpoint_minutes": 0.02})
    job = lab.job("python", "-m", "mcrnn.tune", "f.yaml", working_dir=str(shipped))

    def after(ended: int) -> None:
        states = [run.info.status for run in trials(lab, "f")]
        assert states.count("FAILED") == 0

        def reached() -> bool:
            return sum(key.endswith("end.json") for key in lab.keys("searches/f/trials/")) >= ended

        wait_for(reached, job, 300)

    after(2)
    lab.s3.fault = lambda environ: error("503 Service Unavailable", "SlowDown")
    time.sleep(60)
    lab.s3.fault = None
    after(4)
    assert lab.mlflow is not None
    for each in psutil.Process(lab.mlflow.pid).children(recursive=True):
        each.kill()
    after(6)
    postgres.stop("immediate")
    time.sleep(5)
    postgres.start()
    after(8)
    cluster.remove_worker()
    time.sleep(5)
    cluster.add_worker()
    out, _ = job.communicate(timeout=600)
    assert job.returncode == 0, out
    assert "Traceback" not in out, out
    print(out)
    wait_for(lambda: answers(lab.uri), seconds=60)
    assert_whole(lab, "f", 16)
    warnings = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert len([line for line in warnings if line.startswith("warning: MLflow does not answer")]) <= 3
