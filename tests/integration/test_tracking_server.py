"""The tracking server: who may ask it, what it outlives, and what it refuses to start with."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT
from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.lab import PASSWORD, Lab, answers
from tests.support.processes import wait_for
from tests.support.ray_cluster import HEAD

pytestmark = pytest.mark.integration


@pytest.mark.soak
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
