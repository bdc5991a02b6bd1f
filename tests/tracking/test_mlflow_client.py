"""What is added to a run of MLflow while its database or its artifacts are away."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from mlflow.exceptions import MlflowException

from mcrnn.errors import UserError
from mcrnn.storage.root import Storage
from mcrnn.tracking.experiment import Tracker
from mcrnn.tracking.mlflow_client import Run, artifact_root, client_of
from tests.support.processes import free_port
from tests.support.s3_server import S3Server, error


@pytest.fixture
def tracker(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name, value in (s3.environment | {"AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    return Tracker.open(Storage.open("s3://lab/mcrnn"), "test")


def test_artifacts_wait_for_object_storage(
    tracker: Tracker, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = client_of(tracker.tracking_uri)
    run = tracker.run(client.create_run(tracker.experiment_id).info.run_id)
    (tmp_path / "kept.json").write_text("{}")
    s3.fault = lambda environ: error("503 Service Unavailable", "SlowDown")
    logging = threading.Thread(target=run.log_files, args=([tmp_path / "kept.json"],))
    logging.start()
    deadline = time.monotonic() + 60
    while not (said := capsys.readouterr().err) and time.monotonic() < deadline:
        time.sleep(0.1)
    s3.fault = None
    logging.join(60)
    assert not logging.is_alive()
    assert said.startswith("warning: MLflow does not answer (")
    assert "SlowDown" in said
    assert capsys.readouterr().err == "warning: MLflow answers again; work goes on\n"
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["kept.json"]
    s3.fault = lambda environ: error("503 Service Unavailable", "SlowDown")
    with pytest.raises(UserError, match="SlowDown"):
        tracker.run(run.run_id, patience=0).log_files([tmp_path / "kept.json"])


def test_patience_has_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        UserError, match=r"^MLflow does not answer \(.*Nothing is lost: when it is back, the same command"
    ):
        Run(nobody, "0" * 32, patience=1).log_metrics({"a": 1.0})
    assert capsys.readouterr().err.count("warning: MLflow does not answer (") == 1
    with pytest.raises(MlflowException, match="Max retries exceeded"):
        Run(nobody, "0" * 32, patience=0).log_metrics({"a": 1.0})


def test_a_request_that_is_refused_is_not_repeated(tracker: Tracker) -> None:
    with pytest.raises(MlflowException, match="not found"):
        tracker.run("0" * 32).log_metrics({"a": 1.0})


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("", "{here}/mlartifacts"),
        ("sqlite:////else/mlflow.db", "{here}/mlartifacts"),
        ("postgresql+psycopg://lab@db/mlflow", "{here}/mlartifacts"),
        ("http://mlflow:5000", None),
        ("databricks", None),
    ],
)
def test_artifacts_are_under_the_root_unless_a_server_decides(
    uri: str, root: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert artifact_root(Storage.open(str(tmp_path))) == (root and root.format(here=tmp_path.as_uri()))


@pytest.mark.soak
def test_commands_that_start_at_the_same_moment_share_a_new_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = f"from mcrnn.tracking.mlflow_client import client_of; print(len(client_of({uri!r}).search_experiments()))"
    commands = [subprocess.Popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE, text=True) for _ in range(3)]
    for command in commands:
        said, problem = command.communicate(timeout=120)
        assert (command.returncode, said) == (0, "1\n"), problem
