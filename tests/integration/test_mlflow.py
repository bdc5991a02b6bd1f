"""MLflow as a record: a run leads back to its origin, and nothing is lost while the server is away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from mcrnn.data.store import FieldStore
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking.experiment import end_abandoned
from mcrnn.tracking.mlflow_client import client_of, tracking_uri
from tests.commands.test_commands import CONFIGURATION
from tests.conftest import CommandRunner
from tests.integration.test_search import SEARCH
from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.processes import WITHOUT_JOBS, Start, free_port, wait_for
from tests.support.searches import tried

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


def test_run_leads_back_to_data_code_and_configuration_and_can_be_repeated(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    (root / "one.yaml").write_text(yaml.safe_dump(CONFIGURATION | {"name": "one"}))
    trained = command("mcrnn.train", "one.yaml")
    assert trained.returncode == 0, trained.stderr
    client = client_of(tracking_uri(storage))
    (run,) = client.search_runs([client.get_experiment_by_name("mcrnn-runs").experiment_id])
    store = FieldStore.open(LocalFolder(root / "data/tiny.zarr"))
    (dataset,) = [each.dataset for each in run.inputs.dataset_inputs]
    profile = json.loads(dataset.profile)
    assert profile["digest"] == store.digest == run.data.tags["mcrnn.store_digest"]
    assert profile["recipe"] == store.attributes["recipe"]
    assert json.loads(dataset.source)["uri"] == str(root / "data/tiny.zarr")
    assert run.data.tags["mlflow.source.name"] == "python -m mcrnn.train one.yaml"
    assert run.data.params["train.learning_rate"] == "0.001"
    origin_file = Path(client.download_artifacts(run.info.run_id, "origin.json", str(root)))
    packages = json.loads(origin_file.read_bytes())["packages"]
    assert packages["torch"] == torch.__version__
    # all metrics by our own epoch, as in the run's own record
    local = [json.loads(line) for line in (root / "runs/one/metrics.jsonl").read_text().splitlines()]
    for name in set(local[0]) - {"epoch", "time"}:
        history = client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [(e["epoch"], pytest.approx(e[name])) for e in local], name
    assert any(name.startswith("system/") for name in local[0])

    again = command("mcrnn.train", "--from-run", run.info.run_id, "--compare")
    assert (again.returncode, again.stderr) == (0, "")
    assert f"the weights are the same bits as those of the run {run.info.run_id}" in again.stdout
    assert "packages, code and machine are the same" in again.stdout
    folder = root / f"runs/one-from-{run.info.run_id[:8]}"
    repeated = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(repeated, local, strict=True):
        assert {ours[k] == theirs[k] for k in ("loss", "gradient_norm", "rmse_closed_loop")} == {True}

    # what is recorded is made another: the repetition, which has ended, is compared once more
    weights = root / "runs/one/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    client.log_metric(run.info.run_id, "loss", local[1]["loss"] * (1 + 1e-9), step=2)
    origin = json.loads(origin_file.read_bytes())
    origin["packages"]["torch"] = "1.2.3"
    origin_file.write_text(json.dumps(origin))
    client.log_artifact(run.info.run_id, str(origin_file))
    differs = command("mcrnn.train", "--from-run", run.info.run_id, "--compare")
    assert (differs.returncode, differs.stderr) == (1, "")
    assert f"the weights are not those of the run {run.info.run_id}" in differs.stdout
    assert f"they differ from epoch 2 on: loss is {local[1]['loss']!r}" in differs.stdout
    assert f"differs: package torch is {torch.__version__}, was 1.2.3" in differs.stdout
    set_too = command("mcrnn.train", "--from-run", run.info.run_id, "--compare", "--set", "train.seed=3")
    assert set_too.returncode == 2

    both = command("mcrnn.train", "one.yaml", "--from-run", run.info.run_id)
    assert both.returncode == 2
    unknown = command("mcrnn.train", "--from-run", "0" * 32)
    assert unknown.returncode == 2
    assert "there is no run 000" in unknown.stderr
    shutil.rmtree(root / "data/tiny.zarr")
    built = command("data_prep.navier_stokes", "data/tiny.zarr", "--train=6", "--val=3", "--test=4", "--resolution=16")
    assert built.returncode == 0, built.stderr
    changed = command("mcrnn.train", "--from-run", run.info.run_id)
    assert changed.returncode == 2
    assert store.digest[:12] in changed.stderr


def test_run_of_a_killed_process_does_not_stay_running(
    root: Path, storage: Storage, command: CommandRunner, start: Start
) -> None:
    (root / "long.yaml").write_text(
        yaml.safe_dump(CONFIGURATION | {"name": "long", "train": CONFIGURATION["train"] | {"epochs": 4000}})
    )
    process = start("mcrnn.train", "long.yaml")
    wait_for(lambda: (root / "runs/long/run.json").exists(), process)
    process.kill()
    process.wait()
    client = client_of(tracking_uri(storage))
    experiment = client.get_experiment_by_name("mcrnn-runs").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "RUNNING"
    end_abandoned(tracking_uri(storage))
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    epochs = len((root / "runs/long/metrics.jsonl").read_text().splitlines())
    again = command("mcrnn.train", "long.yaml", f"--set=train.epochs={epochs + 2}", "--set=train.schedule=constant")
    assert again.returncode == 2  # another configuration
    (only,) = client.search_runs([experiment])
    assert only.info.run_id == run.info.run_id


class Server:
    """An MLflow server on loopback."""

    def __init__(self, root: Path) -> None:
        self.port = free_port()
        self.root = root
        self.url = f"http://127.0.0.1:{self.port}"
        shutil.copy(shared.mlflow_database(), root / "server.db")
        self.start()

    def start(self) -> None:
        arguments = ["server", "--backend-store-uri", f"sqlite:///{self.root / 'server.db'}", "--host", "127.0.0.1"]
        arguments += ["--port", str(self.port), "--artifacts-destination", str(self.root / "server"), "--workers", "1"]
        self.process = ForkedProcess(
            shared.command_server(),
            ["-m", "mlflow", *arguments],
            self.root,
            os.environ | WITHOUT_JOBS,
            with_output=False,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # the group is its own
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    if running.process.poll() is None:
        running.kill()


def assert_all_metrics_are_there(root: Path, url: str, name: str) -> None:
    client = client_of(url)
    folders = sorted((root / f"searches/{name}/trials").iterdir())
    assert folders
    for folder in folders:
        run_id = json.loads((folder / "run.json").read_text())["run_id"]
        local = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for metric in ("loss", "rmse_closed_loop", "learning_rate"):
            history = sorted((m.step, m.value) for m in client.get_metric_history(run_id, metric))
            assert history == [(e["epoch"], pytest.approx(e[metric])) for e in local], (folder, metric)
        assert client.get_run(run_id).info.status == "FINISHED"


def run_with_outage(root: Path, server: Server, start: Start, seconds: float) -> None:
    (root / "s.yaml").write_text(
        yaml.safe_dump(SEARCH | {"name": "s", "search": {"trials": 10, "scheduler": "none"}}, sort_keys=False)
    )
    os.environ["MLFLOW_TRACKING_URI"] = server.url
    try:
        process = start("mcrnn.tune", "s.yaml")
        wait_for(lambda: tried(root, "s") >= 2, process)
        server.kill()
        time.sleep(seconds)
        server.start()
        out, err = process.communicate(timeout=280)
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
    assert process.returncode == 0, err + out
    assert "MLflow does not answer" in err
    assert "MLflow answers again" in err
    assert "Traceback" not in err
    assert_all_metrics_are_there(root, server.url, "s")


@pytest.mark.soak
def test_nothing_is_lost_while_the_server_is_away(
    root: Path,
    server: Server,
    start: Start,
    shared_ray: str,
) -> None:
    run_with_outage(root, server, start, 5)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_nothing_is_lost_while_the_server_is_away_for_a_minute(
    root: Path,
    server: Server,
    start: Start,
    ray_folder: Path,
) -> None:
    run_with_outage(root, server, start, 60)


@pytest.mark.soak
def test_search_that_concludes_waits_for_the_server(
    root: Path, server: Server, start: Start, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    (root / "end.yaml").write_text(yaml.safe_dump(SEARCH | {"name": "end"}))
    process = start("mcrnn.tune", "end.yaml")
    assert process.stdout is not None
    for line in process.stdout:
        if "all trials are done" in line:
            break
    wait_for(lambda: (root / "searches/end/baselines/climatology/run.json").exists(), process)
    server.kill()
    time.sleep(20)
    server.start()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "warning: MLflow does not answer" in err
    (version,) = client_of(server.url).search_model_versions("name = 'mcrnn-end'")
    assert client_of(server.url).get_model_version_by_alias("mcrnn-end", "champion").version == version.version
    assert_all_metrics_are_there(root, server.url, "end")


def test_server_that_is_away_at_the_start_is_refused_in_one_line(command: CommandRunner, root: Path) -> None:
    (root / "one.yaml").write_text(yaml.safe_dump(CONFIGURATION | {"name": "one"}))
    refused = command("mcrnn.train", "one.yaml", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "the tracking server cannot be reached" in refused.stderr


def test_ui_does_not_show_the_address_of_its_database_to_other_users(start: Start, root: Path, database: Path) -> None:
    """Every user of the machine sees the arguments of processes, and the address may hold a password."""
    uri = f"sqlite:///{database}"
    process = start("mcrnn.ui", "--port", str(free_port()), MLFLOW_TRACKING_URI=uri)

    def arguments() -> list[str]:
        return psutil.Process(process.pid).cmdline()

    wait_for(lambda: "mlflow" in arguments(), process)
    assert "server" in arguments()
    assert uri not in arguments()
    assert psutil.Process(process.pid).environ()["MLFLOW_BACKEND_STORE_URI"] == uri
