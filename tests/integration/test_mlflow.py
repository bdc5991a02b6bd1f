"""MLflow as a record and a registry: lineage, a server that goes away, models loaded elsewhere, promotion."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation import promotion
from mcrnn.models import trained_model
from mcrnn.models.forecaster import build_model
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking import mlflow_client, model_loading, registry
from mcrnn.tracking.mlflow_client import Tracker, client_of, tracking_uri
from mcrnn.tracking.provenance import origin
from mcrnn.tracking.run_folder import write_record
from mcrnn.tracking.sync import RunSync
from mcrnn.training.checkpoints import Checkpoints
from tests.commands.test_commands import CONFIGURATION
from tests.conftest import CommandRunner
from tests.integration.test_search import SEARCH
from tests.integration.test_search_faults import ended
from tests.support.processes import Start, free_port, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def storage(root: Path) -> Storage:
    return Storage.open(str(root))


def describe(root: Path, **changes: Any) -> tuple[Configuration, FieldDescription]:
    content = CONFIGURATION | changes
    config = Configuration.model_validate(content)
    store = FieldStore.open(LocalFolder(root / "data/tiny.zarr"))
    return config, FieldDescription.of(store, config.data)


def save(
    folder: Path, config: Configuration, field: FieldDescription, scale: float = 1.0, seed: int = 0
) -> LocalFolder:
    """A model directory with random weights, the decoder's times `scale`."""
    torch.manual_seed(seed)
    network = build_model(config.model, field.frame_shape, field.padding)
    with torch.no_grad():
        for weight in network.decoder.parameters():
            weight.mul_(scale)
    place = LocalFolder(folder)
    trained_model.save(place, config, field, network.state_dict())
    return place


def register(storage: Storage, name: str, place: LocalFolder) -> tuple[int, str]:
    """A model that a search might have found."""
    tracker = Tracker.open(storage, "searches")
    mirrors = RunSync(tracker)
    write_record(place, "found", tags={})
    run = mirrors.now(place, "FINISHED")
    found = {"search": "s", "trial": 0, "best": 0.5}
    result = registry.register(run, place, name, found=found, judged=None, origin=origin())
    mirrors.close()
    return result


# ------------------------------------------------------------------------------------------------ lineage


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

    again = command("mcrnn.train", "--from-run", run.info.run_id)
    assert again.returncode == 0, again.stderr
    folder = root / f"runs/one-from-{run.info.run_id[:8]}"
    repeated = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(repeated, local, strict=True):
        assert {ours[k] == theirs[k] for k in ("loss", "gradient_norm", "rmse_closed_loop")} == {True}

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


def test_run_of_a_killed_process_does_not_stay_running(root: Path, storage: Storage, command: CommandRunner) -> None:
    (root / "long.yaml").write_text(
        yaml.safe_dump(CONFIGURATION | {"name": "long", "train": CONFIGURATION["train"] | {"epochs": 4000}})
    )
    environment = os.environ | {"MCRNN_STORAGE": str(root)}
    process = subprocess.Popen([sys.executable, "-m", "mcrnn.train", "long.yaml"], cwd=root, env=environment)
    try:
        wait_for(lambda: (root / "runs/long/run.json").exists(), process)
    finally:
        process.kill()
        process.wait()
    client = client_of(tracking_uri(storage))
    experiment = client.get_experiment_by_name("mcrnn-runs").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "RUNNING"
    mlflow_client.end_abandoned(tracking_uri(storage))
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    epochs = len((root / "runs/long/metrics.jsonl").read_text().splitlines())
    again = command("mcrnn.train", "long.yaml", f"--set=train.epochs={epochs + 2}", "--set=train.schedule=constant")
    assert again.returncode == 2  # another configuration
    (only,) = client.search_runs([experiment])
    assert only.info.run_id == run.info.run_id


# ------------------------------------------------------------------------------------- a server that goes away


class Server:
    """An MLflow server on loopback."""

    def __init__(self, root: Path) -> None:
        self.port = free_port()
        self.root = root
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        arguments = ["server", "--backend-store-uri", f"sqlite:///{self.root / 'server.db'}", "--host", "127.0.0.1"]
        arguments += ["--port", str(self.port), "--artifacts-destination", str(self.root / "server"), "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
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
        wait_for(lambda: ended(root, "s") >= 2, process)
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


def test_nothing_is_lost_while_the_server_is_away(
    root: Path,
    server: Server,
    start: Start,
    ray_folder: Path,
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


# --------------------------------------------------------------------------------- models loaded somewhere else

CHECK = """
import sys
sys.path.append(sys.argv[1])
try:
    import mcrnn
except ImportError:
    pass
else:
    raise SystemExit("the package is installed here")
import json, mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[2])
for case in json.loads(sys.argv[3]):
    model = mlflow.pyfunc.load_model(f"models:/{case['name']}@champion")
    for batch, length, steps, height, width in case["shapes"]:
        frames = np.random.default_rng(0).normal(size=(batch, length, case["channels"], height, width))
        forecast = model.predict(frames.astype(np.float32), params={"steps": steps})
        np.save(f"{case['name']}-{batch}-{height}.npy", forecast)
print("loaded")
"""


def packages_without_ours(folder: Path) -> Path:
    """All that is installed, but for this project."""
    folder.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "mcrnn" not in path.name and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


def test_registered_models_load_without_the_package_and_give_the_same_numbers(root: Path, storage: Storage) -> None:
    cases = []
    for architecture in ARCHITECTURES:
        for prediction in ("frame", "increment"):
            model = {"architecture": architecture, "prediction": prediction, "hidden_size": 4, "layers": 2}
            cases.append((f"{architecture}-{prediction}", model, 1))
    cases.append(("two-channels", {"architecture": "convlstm", "hidden_size": 4, "layers": 1, "channels_out": 1}, 2))
    cases.append(("any-grid", {"architecture": "minconvlstm", "hidden_size": 4, "layers": 1, "norm": "group"}, 1))
    content = []
    for name, model, channels in cases:
        config, field = describe(root, model=model)
        if channels == 2:
            field = replace(field, channels=("a", "b"), frame_shape=(2, 8, 8), mean=(1.0, -2.0), std=(0.5, 3.0))
        version = register(storage, name, save(root / "models" / name, config, field))
        assert version == (1, "champion")
        shapes = [(1, 1, 1, 8, 8), (3, 7, 5, 8, 8), *([(2, 4, 3, 12, 20)] if name == "any-grid" else [])]
        content.append({"name": name, "channels": channels, "shapes": shapes})
    assert not list((root / "mlartifacts").rglob("*.pkl"))
    clean = packages_without_ours(root / "packages")
    arguments = [sys.executable, "-I", "-S", "-c", CHECK, str(clean), tracking_uri(storage), json.dumps(content)]
    loaded = subprocess.run(arguments, capture_output=True, text=True, cwd=root, check=False)
    assert loaded.stdout.strip().endswith("loaded"), loaded.stderr
    for case in content:
        ours = trained_model.load(LocalFolder(root / "models" / case["name"]))
        for batch, length, steps, height, width in case["shapes"]:
            frames = np.random.default_rng(0).normal(size=(batch, length, case["channels"], height, width))
            expected = ours.predict(frames.astype(np.float32), steps)
            found = np.load(root / f"{case['name']}-{batch}-{height}.npy")
            assert found.shape == expected.shape == (batch, steps, ours.network.channels_out, height, width)
            assert np.abs(found - expected).max() <= 1e-5 * min(ours.field.std), case["name"]
    card = client_of(tracking_uri(storage)).get_model_version("any-grid", "1").description
    assert "any grid" in card
    assert "**minconvlstm**" in card


def test_predict_returns_the_kind_of_array_that_it_was_given(root: Path, storage: Storage) -> None:
    config, field = describe(root)
    register(storage, "kinds", save(root / "m", config, field))
    model = model_loading.load_model("models:/kinds@champion", storage)
    frames = np.random.default_rng(1).normal(size=(2, 5, 1, 8, 8)).astype(np.float32)
    expected = model.predict(frames, 3)
    assert isinstance(expected, np.ndarray)
    assert np.array_equal(model.predict(torch.from_numpy(frames), 3).numpy(), expected)
    times = xr.date_range("2000-01-01", periods=5, freq="6h")
    latitude = np.linspace(-80, 80, 8)
    labelled = xr.DataArray(
        frames[:, :, 0].transpose(1, 0, 2, 3),
        {"time": times, "lat": latitude},
        ("time", "member", "lat", "lon"),
        "vorticity",
        {"units": "1"},
    )
    forecast = model.predict(labelled, 3)
    assert forecast.dims == labelled.dims
    assert np.array_equal(forecast.values, expected[:, :, 0].transpose(1, 0, 2, 3))
    assert list(forecast.indexes["time"]) == list(xr.date_range("2000-01-02T06", periods=3, freq="6h"))
    assert np.array_equal(forecast.lat, latitude)
    assert forecast.attrs == {"units": "1"}
    with pytest.raises(ValueError, match="expected frames of shape"):
        model.predict(frames[..., :4], 3)
    with pytest.raises(ValueError, match="at most one of samples"):
        model.predict(labelled.expand_dims("more"), 3)


class Malicious:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_planted_pickles_are_refused(root: Path, command: CommandRunner) -> None:
    trap = root / "executed"
    config, field = describe(root)
    place = save(root / "m", config, field)
    place.write(trained_model.WEIGHTS, pickle.dumps(Malicious(trap)))
    with pytest.raises(UserError, match="is not a model directory"):
        trained_model.load(place)
    # in place of a run's checkpoint, with a name that is right
    (root / "one.yaml").write_text(yaml.safe_dump(CONFIGURATION | {"name": "one"}))
    assert command("mcrnn.train", "one.yaml").returncode == 0
    folder = root / "runs/one/checkpoints"
    shutil.rmtree(folder)
    content = io.BytesIO()
    torch.save({"epoch": 1, "batch": 0, "model": Malicious(trap)}, content)
    Checkpoints(LocalFolder(folder)).save(content.getvalue(), epoch=1, batch=0)
    (root / "runs/one/end.json").unlink()
    refused = command("mcrnn.train", "one.yaml")
    assert refused.returncode == 2
    assert "holds more than data" in refused.stderr
    assert not trap.exists()


# ------------------------------------------------------------------------------------------------- promotion

WRONG = {"architecture": "minconvgru", "hidden_size": 4, "layers": 1, "prediction": "increment"}
"""an increment of 0 is persistence; the larger the decoder's weights are, the larger the error is"""


def versions(root: Path, storage: Storage, *scales: float) -> None:
    """Versions of the model `m`, the first of which is the champion."""
    for number, scale in enumerate(scales, start=1):
        config, field = describe(root, model=WRONG)
        found = register(storage, "m", save(root / f"models/{number}", config, field, scale))
        assert found == (number, "champion" if number == 1 else "candidate")


def test_candidate_wins_only_where_it_is_better_and_every_move_is_recorded(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    versions(root, storage, 3.0, 0.0, 1.0)
    client = client_of(tracking_uri(storage))

    worse = command("mcrnn.promote", "m", "--version", "1", "--alias", "other", "--reason", "for a test")
    assert worse.returncode == 0, worse.stderr
    won = command("mcrnn.promote", "m", "--version=2")
    assert won.returncode == 0, won.stderr
    assert "version 2 is the champion" in won.stdout
    assert registry.aliases(client, "m") == {"champion": 2, "previous": 1, "candidate": 3, "other": 1}
    lost = command("mcrnn.promote", "m")
    assert lost.returncode == 1
    assert "the champion stays" in lost.stdout
    assert registry.champion(client, "m") == 2
    # not better by so much
    assert command("mcrnn.promote", "m", "--version=3", "--margin=0.5").returncode == 1
    back = command("mcrnn.promote", "m", "--rollback", "--reason", "it drifts")
    assert back.returncode == 0
    assert registry.aliases(client, "m")["champion"] == 1
    assert registry.aliases(client, "m")["previous"] == 2
    by_hand = command("mcrnn.promote", "m", "--version=3", "--alias=champion", "--reason", "asked for")
    assert by_hand.returncode == 0
    assert "candidate" not in registry.aliases(client, "m")
    assert "is the champion already" in command("mcrnn.promote", "m").stdout
    record = registry.champion_history(client, "m")
    assert [(move["from"], move["to"]) for move in record] == [(None, 1), (1, 2), (2, 1), (1, 3)]
    assert [move["why"] for move in record][2:] == ["it drifts", "asked for"]
    assert record[1]["rmse_candidate"] < record[1]["rmse_champion"]
    assert all(move["who"] and move["when"] for move in record)
    history = command("mcrnn.promote", "m", "--history")
    assert "it drifts" in history.stdout


def test_only_a_models_own_exam_is_recorded_in_the_run_of_its_training(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    versions(root, storage, 1.0)
    client = client_of(tracking_uri(storage))
    run_id = client.get_model_version_by_alias("m", "champion").run_id
    name = "test_rmse_closed_loop_normalized"
    assert command("mcrnn.evaluate", "models:/m@champion", "--horizon=1").returncode == 0
    assert name not in client.get_run(run_id).data.metrics
    assert command("mcrnn.evaluate", "models:/m@champion").returncode == 0
    assert client.get_run(run_id).data.metrics[name] > 0


def test_versions_of_other_data_are_refused_with_all_reasons(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    versions(root, storage, 1.0)
    config, field = describe(root, model=WRONG)
    other = replace(field, store_digest="f" * 64, units="1 s-1", frame_shape=(1, 4, 4))
    register(storage, "m", save(root / "other", config, other))
    refused = command("mcrnn.promote", "m")
    assert refused.returncode == 2
    for reason in ("digest ffffffffffff", "units 1 s-1 instead of 1", "a grid of 4 x 4 instead of 8 x 8"):
        assert reason in refused.stderr
    for arguments, message in (
        (["n"], "there is no model 'n'"),
        (["m", "--version=9"], "has no version 9; it has 1, 2"),
        (["m", "--rollback"], "has no previous champion"),
        (["m", "--alias=champion"], "--alias needs --version"),
        (["m", "--version=1", "--alias=v7", "--reason=x"], "--alias v7 cannot be used"),
    ):
        wrong = command("mcrnn.promote", *arguments)
        assert wrong.returncode == 2
        assert message in wrong.stderr


def test_two_promotions_at_once_leave_the_better_champion_and_a_full_record(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    versions(root, storage, 3.0, 0.0, 1.0)
    with ThreadPoolExecutor(2) as both:
        second, third = both.map(lambda number: command("mcrnn.promote", "m", f"--version={number}"), (2, 3))
    assert second.returncode == 0, second.stderr
    assert third.returncode in (0, 1), third.stderr
    client = client_of(tracking_uri(storage))
    assert registry.champion(client, "m") == 2
    record = registry.champion_history(client, "m")
    chain = [(move["from"], move["to"]) for move in record]
    assert chain in ([(None, 1), (1, 2)], [(None, 1), (1, 3), (3, 2)])
    assert registry.aliases(client, "m")["previous"] == chain[-1][0]
    assert [m.name for m in client.search_registered_models()] == ["m"]  # the lock is gone


def test_comparison_of_equals_and_of_halves() -> None:
    rng = np.random.default_rng(0)
    champion_N = rng.gamma(4, size=200)
    equal = promotion.compare(champion_N * rng.normal(1, 0.2, 200).clip(0.5), champion_N)
    assert equal.low < 0 < equal.high
    assert not equal.wins(0.0)
    half = promotion.compare(0.25 * champion_N, champion_N)
    assert half.candidate == pytest.approx(half.champion / 2)
    assert half.high == pytest.approx(-0.5)
    assert half.wins(0.4)
    assert not half.wins(0.6)
