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
import xarray as xr

from benchmarks import serving
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.conftest import CommandRunner
from tests.support.processes import free_port, wait_for
from tests.support.registered_models import describe, register, save
from tests.support.served import (
    ARROW,
    NETCDF,
    Served,
    arrow,
    bad_requests,
    forecast_of,
    replica_processes,
    served_model,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]

TOKEN = "a-token-of-enough-characters"


def register_versions(root: Path, storage: Storage, count: int) -> list[TrainedModel]:
    """Versions 1, 2, ... of the model `ns`, whose weights differ."""
    config, field = describe(root)
    folders = [save(root / f"models/{seed}", config, field, seed=seed) for seed in range(count)]
    for folder in folders:
        register(storage, "ns", folder)
    return [trained_model.load(LocalFolder(folder.path)) for folder in folders]


def write_netcdf(path: Path, frames_THW: np.ndarray) -> Path:
    data = xr.Dataset({"vorticity": (("t", "row", "column"), frames_THW)}, {"t": np.arange(1.0, len(frames_THW) + 1)})
    data.to_netcdf(path)
    return path


@pytest.mark.long(25)
def test_model_is_served_in_each_kind_of_body_and_follows_its_alias(
    root: Path, storage: Storage, ray_folder: Path
) -> None:
    first, second = register_versions(root, storage, 2)
    options = ("--poll", "0.2", "--max-mb", "1")
    with served_model(root, "models:/ns@champion", *options, token=TOKEN) as served:
        _ask_refuse_and_move(root, served, first, second)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0


def _ask_refuse_and_move(root: Path, served: Served, first: TrainedModel, second: TrainedModel) -> None:
    frames = np.random.default_rng(0).normal(size=(3, 4, 1, 8, 8)).astype(np.float32)
    netcdf = write_netcdf(root / "given.nc", np.repeat(np.repeat(frames[0, :, 0], 2, -1), 2, -2))

    answers = [served.post({"frames": frames.tolist(), "steps": 5}), served.post(arrow(frames), ARROW, "?steps=5")]
    expected = first.predict(frames, 5)
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert np.abs(forecast_of(answer) - expected).max() <= 1e-6
        assert answer.headers["X-Model-Version"] == "1"
    answer = served.post(netcdf.read_bytes(), NETCDF, "?steps=5")
    assert answer.status_code == 200, answer.text
    (root / "answer.nc").write_bytes(answer.content)
    with xr.open_dataset(root / "answer.nc") as found:
        assert np.abs(found.vorticity.values - expected[0, :, 0]).max() <= 1e-6
        assert found.t.values.tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
        assert found.attrs["mcrnn_model_digest"] == first.digest

    assert requests.post(f"{served.url}/forecast", timeout=30).status_code == 401
    assert requests.get(f"{served.url}/model", timeout=30, headers={"Authorization": "Bearer x"}).status_code == 401
    for arguments, status, sentence in bad_requests(frames, netcdf):
        answer = served.post(**arguments)
        assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer.text
    assert served.get("/nothing").json() == {"error": "there is no /nothing here; / says what there is"}
    assert "/forecast" in served.get("/openapi.json").json()["paths"]
    assert "<code>POST /forecast</code>" in served.get("/").text
    assert 'mcrnn_requests_total{kind="application/json",status="200"} 1.0' in served.get("/metrics").text
    assert len(replica_processes(served.process.pid)) == 1
    command = psutil.Process(served.process.pid)
    connections = [c for each in (command, *command.children(recursive=True)) for c in each.net_connections("inet")]
    listening = {c.laddr.ip for c in connections if c.status == "LISTEN"}
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}

    mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}").set_registered_model_alias("ns", "champion", "2")
    wait_for(lambda: served.get("/model").json()["model_version"] == "2", served.process, 60)
    answer = served.post({"frames": frames.tolist(), "steps": 5})
    assert np.abs(forecast_of(answer) - second.predict(frames, 5)).max() <= 1e-6


def test_open_server_without_a_token_is_refused(command: CommandRunner) -> None:
    done = command("mcrnn.serve", "models:/ns@champion", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--host 0.0.0.0 can be reached from other machines: set MCRNN_SERVE_TOKEN" in done.stderr
    short = command("mcrnn.serve", "models:/ns@champion", MCRNN_SERVE_TOKEN="short")
    assert (short.returncode, "has 5 characters, at least 16 are needed" in short.stderr) == (2, True)


@pytest.mark.soak
def test_no_request_is_lost_while_the_alias_moves_and_a_replica_is_killed(root: Path, ray_folder: Path) -> None:
    models = serving.prepare(root, "small", 3)
    frames = np.random.default_rng(0).normal(size=(1, serving.GIVEN, 1, 16, 16)).astype(np.float32)
    netcdf = write_netcdf(root / "given.nc", np.repeat(np.repeat(frames[0, :, 0], 4, -1), 4, -2))
    with serving.server(root, "small", replicas=2) as served:
        results = serving.hammer(served, models, root, 10_000)
        assert results.total() == 10_000
        assert all(outcome.startswith("right, version ") for outcome in results), results
        assert len(results) == 3
        refused = serving.refuse(served, frames, netcdf, 200)
        assert refused.pop("replicas lost") == 0
        assert all(outcome.startswith("status 4") and "with its sentence" in outcome for outcome in refused), refused


@pytest.mark.soak
def test_registered_model_is_served_by_mlflow_alone(root: Path, storage: Storage) -> None:
    (model,) = register_versions(root, storage, 1)
    port = free_port()
    words = ("models", "serve", "--model-uri", "models:/ns@champion", "--env-manager", "local", "--port", str(port))
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow looks for uvicorn there
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}", "PATH": programs}
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{address}/health"), server, 240)
        frames = np.random.default_rng(0).normal(size=(2, 4, 1, 8, 8)).astype(np.float32)
        asked = {"inputs": frames.tolist(), "params": {"steps": 3}}
        answer = requests.post(f"{address}/invocations", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        assert np.abs(np.array(answer.json()["predictions"]) - model.predict(frames, 3)).max() <= 1e-5
        wrong = requests.post(f"{address}/invocations", json={"inputs": frames[..., :3].tolist()}, timeout=60)
        assert wrong.status_code == 400, wrong.text
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False
