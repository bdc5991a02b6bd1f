"""A model behind HTTP: its answers, what it refuses, and the change to another version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import requests

from benchmarks import serving
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.root import Storage
from tests.conftest import CommandRunner
from tests.support.processes import Start, free_port, wait_for
from tests.support.registered_models import describe, register, save
from tests.support.served import (
    ARROW,
    JSON,
    Served,
    arrow,
    as_json,
    bad_requests,
    read_forecast,
    replica_processes,
    served_model,
    write_netcdf,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]

TOKEN = "a-token-of-enough-characters"


def register_versions(root: Path, storage: Storage, count: int) -> list[TrainedModel]:
    """Versions 1, 2, ... of the model `ns`, whose weights differ."""
    folders = [save(root / f"models/{seed}", *describe(root), seed=seed) for seed in range(count)]
    for folder in folders:
        register(storage, "ns", folder)
    return [trained_model.load(folder) for folder in folders]


@pytest.fixture
def frames() -> np.ndarray:
    """Given frames of three forecasts."""
    return np.random.default_rng(0).normal(size=(3, 4, 1, 8, 8)).astype(np.float32)


def test_model_is_served_and_its_alias_followed(
    root: Path, storage: Storage, start: Start, shared_ray: str, frames: np.ndarray
) -> None:
    first, second = register_versions(root, storage, 2)
    port = free_port()
    options = ("--port", str(port), "--poll", "0.2")
    process = start("mcrnn.serve", "models:/ns@champion", *options, MCRNN_SERVE_TOKEN=TOKEN)
    served = Served(process, f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {TOKEN}"})
    wait_for(served.is_healthy, process, 240)
    for kind, body in ((JSON, as_json({"frames": frames.tolist()})), (ARROW, arrow(frames))):
        answer = served.post(body, kind, {"steps": "5"})
        assert (answer.status_code, answer.headers["X-Model-Version"]) == (200, "1"), answer.text
        assert np.abs(read_forecast(kind, answer.content) - first.predict(frames, 5)).max() <= 1e-6
    refused = served.post(as_json({"frames": frames[..., :3].tolist()}))
    assert refused.status_code == 400
    assert "the model takes (batch, time, channel, height, width) with 1 channel and 8 x 8" in refused.json()["error"]
    for headers in ({}, {"Authorization": "Bearer another-token-of-that-length"}):
        for path in ("/", "/model", "/metrics", "/openapi.json"):
            assert requests.get(served.url + path, headers=headers, timeout=30).status_code == 401
        assert requests.post(f"{served.url}/forecast", headers=headers, timeout=30).status_code == 401
    assert served.get("/nothing").json() == {"error": "there is no /nothing here; / says what there is"}
    assert "/forecast" in served.get("/openapi.json").json()["paths"]
    assert "<code>POST /forecast</code>" in served.get("/").text
    assert 'mcrnn_requests_total{kind="application/json",status="200"} 1.0' in served.get("/metrics").text

    mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}").set_registered_model_alias("ns", "champion", "2")
    wait_for(lambda: served.get("/model").json()["model_version"] == "2", process, 60)
    answer = served.post(arrow(frames), ARROW, {"steps": "5"})
    assert np.abs(read_forecast(ARROW, answer.content) - second.predict(frames, 5)).max() <= 1e-6
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_open_server_without_a_token_is_refused(command: CommandRunner) -> None:
    done = command("mcrnn.serve", "models:/ns@champion", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--host 0.0.0.0 can be reached from other machines: set MCRNN_SERVE_TOKEN" in done.stderr
    short = command("mcrnn.serve", "models:/ns@champion", MCRNN_SERVE_TOKEN="short")
    assert (short.returncode, "has 5 characters, at least 16 are needed" in short.stderr) == (2, True)


@pytest.mark.soak
def test_server_opens_ports_on_loopback_only_and_survives_bad_requests(
    root: Path, storage: Storage, ray_folder: Path, frames: np.ndarray
) -> None:
    register_versions(root, storage, 1)
    netcdf = write_netcdf(root / "given.nc", frames[0, :, 0], coarsen=2)
    with served_model(root, "models:/ns@champion", "--max-mb", "1") as served:
        (replica,) = replica_processes(served.process.pid)
        for case in bad_requests(frames[:1], netcdf):
            answer = served.post(case.body, case.kind, case.query)
            assert (answer.status_code, case.sentence in answer.json()["error"]) == (case.status, True), answer.text
        assert replica.is_running()
        command = psutil.Process(served.process.pid)
        connections = [c for each in (command, *command.children(recursive=True)) for c in each.net_connections("inet")]
        assert {c.laddr.ip for c in connections if c.status == "LISTEN"} <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_request_is_lost_while_the_alias_moves_and_a_replica_is_killed(root: Path, ray_folder: Path) -> None:
    models = serving.prepare(root, "small", 3)
    with serving.server(root, "small", replicas=2) as served:
        results = serving.hammer(served, models, root, 10_000)
        assert results.total() == 10_000
        assert results.keys() == {"right, version 1", "right, version 2", "right, version 3"}, results


@pytest.mark.soak
def test_registered_model_is_served_by_mlflow_alone(root: Path, storage: Storage, frames: np.ndarray) -> None:
    (model,) = register_versions(root, storage, 1)
    port = free_port()
    words = ("models", "serve", "--model-uri", "models:/ns@champion", "--env-manager", "local", "--port", str(port))
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow looks for uvicorn there
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}", "PATH": programs}
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment, start_new_session=True)
    served = Served(server, f"http://127.0.0.1:{port}")
    try:
        wait_for(served.is_healthy, seconds=240)
        asked = {"inputs": frames.tolist(), "params": {"steps": 3}}
        answer = requests.post(f"{served.url}/invocations", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        assert np.abs(np.array(answer.json()["predictions"]) - model.predict(frames, 3)).max() <= 1e-5
        wrong = requests.post(f"{served.url}/invocations", json={"inputs": frames[..., :3].tolist()}, timeout=60)
        assert wrong.status_code == 400, wrong.text
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
