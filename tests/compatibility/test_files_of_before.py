"""What an earlier version has written is read and continued: store, searches, runs, and a registered model.

written_by_0_1_0.tar.xz holds a storage root; make_files.py, which wrote it, says what is in it.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcrnn.search.study import state_of
from tests.compatibility.make_files import EPOCHS, FILES, ROOT
from tests.conftest import CommandRunner

pytestmark = pytest.mark.integration

ARCHIVE = Path(__file__).parent / "written_by_0_1_0.tar.xz"
URIS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""Columns of MLflow's database that name folders by absolute paths."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The storage root of before, at another place, which MLflow's database names."""
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(tmp_path, filter="data")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for table, column in URIS:
            database.execute(f"UPDATE {table} SET {column} = REPLACE({column}, ?, ?)", (str(ROOT), str(tmp_path)))
    database.close()
    return tmp_path


def files_below(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, without journals, in which Optuna also notes that they were opened."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("study.journal"))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def trials_of(root: Path, name: str) -> list[Any]:
    """The trials of a search, as its journal has them."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = JournalFileBackend(str(root / f"searches/{name}/study.journal"))
    return optuna.load_study(study_name="search", storage=JournalStorage(journal)).trials


def runs_of(root: Path, experiment: str) -> dict[str, tuple[str, str]]:
    """Id and status of the runs of an MLflow experiment, by their names, of which each must be there once."""
    query = """
        SELECT runs.name, run_uuid, status FROM runs JOIN experiments USING (experiment_id) WHERE experiments.name = ?
    """
    with sqlite3.connect(root / "mlflow.db") as database:
        rows = database.execute(query, (experiment,)).fetchall()
    database.close()
    runs = {name: (run_id, status) for name, run_id, status in rows}
    assert len(runs) == len(rows)
    return runs


def steps_in_mlflow(root: Path, run_id: str) -> list[int]:
    """The epochs of which a run has an error, in the order in which they were sent."""
    query = "SELECT step FROM metrics WHERE run_uuid = ? AND key = 'rmse_closed_loop' ORDER BY timestamp"
    with sqlite3.connect(root / "mlflow.db") as database:
        rows = database.execute(query, (run_id,)).fetchall()
    database.close()
    return [step for (step,) in rows]


def test_store_of_before_is_opened_and_verified(command: CommandRunner) -> None:
    verified = command("data_prep.inspect", "data/tiny.zarr", "--verify")
    assert verified.returncode == 0, verified.stderr
    assert "4 samples of 12 frames" in verified.stdout
    assert "as they were built" in verified.stdout


def test_half_finished_search_of_before_is_finished_without_its_trials_run_again(
    command: CommandRunner, root: Path, shared_ray: str
) -> None:
    trials, runs = trials_of(root, "half"), runs_of(root, "mcrnn-half")
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "RUNNING"]
    folders = [root / f"searches/half/trials/{number:04d}" for number in range(3)]
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in folders]

    (root / "searches/half/lock.json").unlink()  # it would be watched for a minute, see tests/storage/test_lease.py
    continued = command("mcrnn.tune", "half.yaml")
    assert continued.returncode == 0, continued.stderr
    assert "2 trials to run" in continued.stdout

    asked = FILES["half"]["search"]["trials"]
    after = trials_of(root, "half")
    assert len(after) == asked
    assert all(state_of(trial).is_finished() for trial in after)
    assert after[:2] == trials[:2]
    assert after[2].params == trials[2].params
    # times are among the metrics, so that an epoch trained again would differ
    now = [(folder / "metrics.jsonl").read_bytes() for folder in folders]
    assert now[:2] == metrics[:2]
    assert now[2].startswith(metrics[2])
    assert len(now[2]) > len(metrics[2])

    summary = json.loads((root / "searches/half/summary.json").read_text())
    assert [row["trial"] for row in summary["trials"]] == list(range(asked))
    assert summary["model"] == "mcrnn-half"
    runs_now = runs_of(root, "mcrnn-half")
    assert {name: run_id for name, (run_id, _) in runs_now.items() if name in runs} == {
        name: run_id for name, (run_id, _) in runs.items()
    }
    assert {name for name in runs_now if name.startswith("trial-")} == {f"trial-{number}" for number in range(asked)}
    assert {status for _, status in runs_now.values()} == {"FINISHED"}
    steps = steps_in_mlflow(root, runs["trial-2"][0])
    assert steps == list(range(1, len(now[2].splitlines()) + 1))


def test_finished_search_of_before_prints_its_summary_and_runs_nothing(command: CommandRunner, root: Path) -> None:
    files, trials = files_below(root), trials_of(root, "done")
    again = command("mcrnn.tune", "done.yaml")
    assert again.returncode == 0, again.stderr
    assert "best of every architecture" in again.stdout
    assert "python -m mcrnn.evaluate models:/mcrnn-done@champion" in again.stdout
    assert "trials to run" not in again.stdout
    assert files_below(root) == files
    assert trials_of(root, "done") == trials


def test_finished_run_of_before_is_finished(command: CommandRunner, root: Path) -> None:
    files = files_below(root)
    again = command("mcrnn.train", "finished.yaml")
    assert again.returncode == 0, again.stderr
    assert "finished: best closed-loop RMSE" in again.stdout
    assert files_below(root) == files


def test_half_finished_run_of_before_goes_on_from_its_checkpoint(command: CommandRunner, root: Path) -> None:
    metrics = root / "runs/half-run/metrics.jsonl"
    before, (run_id, status) = metrics.read_bytes(), runs_of(root, "mcrnn-runs")["half-run"]
    trained = len(before.splitlines())
    assert 0 < trained < EPOCHS
    assert status == "RUNNING"

    continued = command("mcrnn.train", "half-run.yaml")
    assert continued.returncode == 0, continued.stderr
    shown = [line.split()[1] for line in continued.stdout.splitlines() if line.startswith("epoch ")]
    assert shown == [f"{epoch}/{EPOCHS}:" for epoch in range(trained + 1, EPOCHS + 1)]
    assert metrics.read_bytes().startswith(before)
    assert runs_of(root, "mcrnn-runs")["half-run"] == (run_id, "FINISHED")
    assert steps_in_mlflow(root, run_id) == list(range(1, EPOCHS + 1))


def test_registered_model_of_before_gets_the_same_errors(command: CommandRunner, root: Path) -> None:
    (expected,) = json.loads((root / "expected/metrics.json").read_text())
    evaluated = command("mcrnn.evaluate", "models:/mcrnn-done@champion")
    assert evaluated.returncode == 0, evaluated.stderr
    (found,) = json.loads((root / "reports/mcrnn-done_champion/metrics.json").read_text())
    for name in ("rmse_closed_loop", "rmse_closed_loop_normalized", "rmse_teacher_forced"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    assert found["baselines"]["persistence"]["rmse_closed_loop"] == pytest.approx(
        expected["baselines"]["persistence"]["rmse_closed_loop"], rel=1e-6
    )


def test_registered_model_of_before_is_loaded_by_mlflow(root: Path) -> None:
    """It brings its own code, which a process that has not imported the package yet takes."""
    load = """
import mlflow, numpy as np
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/mcrnn-done@champion")
frames = np.load("expected/forecast.npz")["frames"]
np.save("forecast.npy", model.predict(frames, params={"steps": 3}))
"""
    loaded = subprocess.run([sys.executable, "-c", load], cwd=root, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    expected = np.load(root / "expected/forecast.npz")["forecast"]
    np.testing.assert_allclose(np.load(root / "forecast.npy"), expected, rtol=1e-5, atol=1e-6)


def test_registered_model_of_before_is_loaded_where_the_package_is_imported(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `from mcrnn import ...` then finds the package of now, in which what it asks for must have its name."""
    import mlflow

    import mcrnn.models  # noqa: F401

    monkeypatch.setattr(sys, "path", list(sys.path))  # to which MLflow adds the model's own code
    (folder,) = root.glob("mlartifacts/models/*/artifacts")
    model = mlflow.pyfunc.load_model(str(folder))
    kept = np.load(root / "expected/forecast.npz")
    forecast = model.predict(kept["frames"], params={"steps": 3})
    np.testing.assert_allclose(forecast, kept["forecast"], rtol=1e-5, atol=1e-6)
