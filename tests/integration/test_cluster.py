"""The whole path on a cluster: S3, PostgreSQL, a tracking server with passwords, two nodes with a token, Ray jobs."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import PROJECT
from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.postgres import PostgresServer
from tests.support.processes import free_port, wait_for
from tests.support.ray_cluster import HEAD, TwoNodes
from tests.support.s3_server import S3Server, error

pytestmark = pytest.mark.integration

USER, PASSWORD = "lab", "correct horse battery"
SEARCH: dict[str, Any] = {
    "name": "s",
    "data": {"store": "data/tiny.zarr", "coarsen": 2, "sequence_length": 6, "windows_per_epoch": 24},
    "model": {"layers": 1},
    "train": {"epochs": 3, "batch_size": 4, "teacher_forcing_steps": 4},
    "validation": {"warm_up": 4, "horizon": 5},
    "search": {"trials": 4, "seed": 3},
    "space": {
        "model.architecture": {"choice": ["convgru", "minconvexplstm"]},
        "model.hidden_size": {"int": [2, 8]},
        "train.learning_rate": {"float": [1e-3, 1e-2], "log": True},
    },
}


class Lab:
    """What a team has: object storage, a tracking server, a cluster, and a laptop with an empty folder."""

    def __init__(self, folder: Path, s3: S3Server, database: str, postgres_folder: Path) -> None:
        self.folder, self.s3, self.database, self.postgres_folder = folder, s3, database, postgres_folder
        self.laptop = folder / "laptop"
        self.laptop.mkdir()
        self.port = free_port()
        self.uri = f"http://{HEAD}:{self.port}"
        self.environment = {
            **s3.environment,
            "MCRNN_STORAGE": "s3://lab/mcrnn",
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }
        self.mlflow: ForkedProcess | None = None
        self.cluster: TwoNodes | None = None

    def start_mlflow(self, database: str | None = None) -> list[str]:
        """Start the tracking server; returns what it says until it serves."""
        settings = {"MCRNN_MLFLOW_DATABASE": database or self.database}
        programs = os.pathsep.join([str(self.postgres_folder), os.environ["PATH"]])
        self.mlflow = ForkedProcess(
            shared.command_server(),
            [str(PROJECT / "cluster/mlflow_server.py"), "--host", HEAD, "--port", str(self.port)],
            self.laptop,
            os.environ | self.environment | settings | {"PATH": programs},
            errors=self.folder / "mlflow.log",
        )
        said = []
        for line in self.mlflow.stdout:
            said.append(line.strip())
            if line.startswith("tracking server: "):
                break
        return said

    def stop_mlflow(self) -> None:
        if self.mlflow is not None:
            self.mlflow.terminate()
            self.mlflow.wait(30)
            self.mlflow = None

    def start_cluster(self) -> TwoNodes:
        self.cluster = TwoNodes(self.folder, **self.environment)
        return self.cluster

    def run(self, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command on the laptop."""
        words = ["-m", module, *arguments]
        process = ForkedProcess(
            shared.command_server(), words, self.laptop, os.environ | self.environment | environment
        )
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.wait(), out, err)

    def job(self, *command: str, **options: str) -> subprocess.Popen[str]:
        """Submit a job and follow it."""
        assert self.cluster is not None
        return subprocess.Popen(
            self.cluster.submit(*command, **options),
            env=self.cluster.environment,
            cwd=self.laptop,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def keys(self, prefix: str) -> list[str]:
        """What is on object storage."""
        pages = self.s3.client().get_paginator("list_objects_v2").paginate(Bucket="lab", Prefix=f"mcrnn/{prefix}")
        return [entry["Key"].removeprefix("mcrnn/") for page in pages for entry in page.get("Contents", [])]

    def files(self, prefix: str) -> dict[str, bytes]:
        """The same with its content."""
        client = self.s3.client()
        return {key: client.get_object(Bucket="lab", Key=f"mcrnn/{key}")["Body"].read() for key in self.keys(prefix)}

    def close(self) -> None:
        if self.cluster is not None:
            self.cluster.stop()
        self.stop_mlflow()


@pytest.fixture
def lab(s3: S3Server, postgres_url: str, postgres_folder: Path) -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="mcrnn-lab-", dir="/tmp"))
    lab = Lab(folder, s3, postgres_url, postgres_folder)
    yield lab
    lab.close()
    shutil.rmtree(folder, ignore_errors=True)


def write(folder: Path, name: str, **changes: Any) -> Path:
    content = SEARCH | {"name": name}
    for section, values in changes.items():
        content[section] = content[section] | values
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def prepare(lab: Lab) -> None:
    sizes = {"train": 6, "val": 3, "test": 4, "seed": 1, "frames": 14, "resolution": 16, "workers": 1}
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    built = lab.run("data_prep.navier_stokes", "data/tiny.zarr", *arguments)
    assert built.returncode == 0, built.stderr


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


@pytest.mark.timeout(600)
def test_whole_path_from_data_to_promotion_on_a_cluster(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    prepare(lab)
    cluster = lab.start_cluster()
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


@pytest.mark.timeout(600)
def test_tracking_server_is_closed_and_a_new_machine_goes_on_from_its_dumps(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    lab.start_mlflow()
    client = mlflow.MlflowClient(lab.uri)
    experiment = client.create_experiment("kept")
    request = urllib.request.Request(f"{lab.uri}/api/2.0/mlflow/experiments/get?experiment_id=0")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 401
    elsewhere = http.client.HTTPConnection(HEAD, lab.port)
    elsewhere.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": "elsewhere.example"})
    assert elsewhere.getresponse().status == 403
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(MlflowException, match="401"):
        client.search_experiments()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    lab.stop_mlflow()

    said = lab.start_mlflow(shared.postgres(lab.postgres_folder))
    assert any(line.startswith("restored s3://lab/mcrnn/backups/") for line in said)
    assert client.get_experiment(experiment).name == "kept"
    assert lab.mlflow is not None
    (server,) = [p for p in psutil.Process(lab.mlflow.pid).children() if "server" in p.cmdline()]
    assert not any("secret" in word for each in (server, *server.children()) for word in each.cmdline())
    for each in [*server.children(recursive=True), server]:
        each.kill()
    wait_for(lambda: not answers(lab.uri))
    wait_for(lambda: answers(lab.uri), seconds=60)
    assert client.get_experiment(experiment).name == "kept"
    lab.stop_mlflow()


def answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "set MCRNN_MLFLOW_DATABASE"),
        ({"MCRNN_MLFLOW_DATABASE": "postgresql://a:geheim@127.0.0.1:1/b"}, "the database cannot be used"),
        ({"MCRNN_MLFLOW_DATABASE": "sqlite://"}, "MLFLOW_TRACKING_USERNAME"),
        (
            {
                "MCRNN_MLFLOW_DATABASE": "sqlite://",
                "MLFLOW_TRACKING_USERNAME": "a",
                "MLFLOW_TRACKING_PASSWORD": "short",
            },
            "at least 12 characters",
        ),
    ],
)
def test_tracking_server_refuses_what_it_cannot_use_in_one_line(
    root: Path, environment: dict[str, str], message: str
) -> None:
    script = [str(PROJECT / "cluster/mlflow_server.py")]
    with_these = os.environ | {"MCRNN_STORAGE": str(root)} | environment
    process = ForkedProcess(shared.command_server(), script, root, with_these)
    _, said = process.communicate(60)
    assert process.returncode == 2
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1
    assert "geheim" not in said


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
    cluster.worker = cluster.add_worker()
    out, _ = job.communicate(timeout=600)
    assert job.returncode == 0, out
    assert "Traceback" not in out, out
    print(out)
    wait_for(lambda: answers(lab.uri), seconds=60)
    assert_whole(lab, "f", 16)
    warnings = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert len([line for line in warnings if line.startswith("warning: MLflow does not answer")]) <= 3
