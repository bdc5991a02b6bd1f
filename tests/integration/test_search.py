"""The main job on real Ray and MLflow: search, registry, evaluation, and all of it once more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import CommandRunner
from tests.support import shared
from tests.support.commands import ForkedProcess

pytestmark = pytest.mark.integration

SEARCH: dict[str, Any] = {
    "name": "small",
    "data": {"store": "data/tiny.zarr", "coarsen": 2, "sequence_length": 6},
    "model": {},
    "train": {"epochs": 3, "batch_size": 3, "teacher_forcing_steps": 4},
    "validation": {"warm_up": 4, "horizon": 5},
    "search": {"trials": 6, "asha": {"grace_epochs": 1, "reduction_factor": 2}},
    "space": {
        "model.architecture": {"choice": ["convgru", "convlstm", "minconvgru", "minconvlstm", "minconvexplstm"]},
        "model.hidden_size": {"int": [2, 6]},
        "train.learning_rate": {"float": [1e-3, 1e-2], "log": True},
    },
}


def write(root: Path, content: dict[str, Any]) -> str:
    (root / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return "small.yaml"


@pytest.mark.long(40)
def test_search_to_champion_to_evaluation_and_again(
    command: CommandRunner, root: Path, ray_folder: Path, request: pytest.FixtureRequest
) -> None:
    import mlflow

    file = write(root, SEARCH)
    first = command("mcrnn.tune", file)
    assert first.returncode == 0, first.stderr + first.stdout
    assert "python -m mcrnn.evaluate models:/mcrnn-small@champion" in first.stdout
    assert "python -m mcrnn.ui" in first.stdout
    summary = json.loads((root / "searches/small/summary.json").read_text())
    assert len(summary["trials"]) == 6
    architectures = {row["values"]["model.architecture"] for row in summary["trials"]}
    assert len(architectures) == 5
    assert summary["best"] == min(r["best"] for r in summary["trials"] if r["end"] == "finished")

    # MLflow: a parent with one child a trial, all ended, metrics by epoch, parameters and configuration
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "mcrnn-small"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags["mcrnn.kind"] == "search"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    kinds = {kind: [r for r in children if r.data.tags["mcrnn.kind"] == kind] for kind in ("trial", "baseline")}
    assert len(kinds["trial"]) == 6
    assert {r.info.run_name for r in kinds["baseline"]} == {"persistence", "climatology"}
    assert {r.info.status for r in runs} == {"FINISHED"}
    # the parent has the data set of its trials, and the page of the search, which is also in its folder
    (dataset,) = [each.dataset for each in parent.inputs.dataset_inputs]
    assert {each.dataset.digest for r in kinds["trial"] for each in r.inputs.dataset_inputs} == {dataset.digest}
    page = Path(client.download_artifacts(parent.info.run_id, "report.html", str(root))).read_text()
    assert page == (root / "searches/small/report.html").read_text()
    assert 'load_model("models:/mcrnn-small@champion")' in page
    assert '<span class="state">finished</span>' in page
    for child in kinds["trial"]:
        history = client.get_metric_history(child.info.run_id, "rmse_closed_loop")
        assert [m.step for m in history] == list(range(1, len(history) + 1))
        assert child.data.params["model.architecture"] in architectures
        artifacts = {a.path for a in client.list_artifacts(child.info.run_id)} - {"evaluation"}
        assert artifacts == {"configuration.json", "machine.json", "origin.json"}
    assert (root / "mlartifacts").is_dir()

    version = client.get_model_version_by_alias("mcrnn-small", "champion")
    assert int(version.version) == summary["version"] == 1
    assert version.run_id == summary["run_id"]

    evaluated = command("mcrnn.evaluate", "models:/mcrnn-small@champion")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "persistence" in evaluated.stdout
    report = root / "reports" / "mcrnn-small_champion"
    assert (report / "report.html").exists()
    (metrics,) = json.loads((report / "metrics.json").read_text())
    logged = {a.path for a in client.list_artifacts(version.run_id, "evaluation")}
    assert {"evaluation/metrics.json", "evaluation/rmse.png", "evaluation/report.html"} <= logged
    assert client.get_run(version.run_id).data.metrics["test_rmse_closed_loop"] == metrics["rmse_closed_loop"]

    # the champion once more, from what MLflow knows of it alone
    repeated = command("mcrnn.train", "--from-run", "models:/mcrnn-small@champion", "--compare")
    assert repeated.returncode == 0, repeated.stderr + repeated.stdout
    assert f"the weights are the same bits as those of the run {version.run_id}" in repeated.stdout

    # as pyfunc, in another process: the same forecasts as ours, for any batch and length
    check = f"""
import mlflow, numpy as np, torch
from mcrnn import load_model
from mcrnn.storage.root import Storage
mlflow.set_tracking_uri("sqlite:///{root / "mlflow.db"}")
model = mlflow.pyfunc.load_model("models:/mcrnn-small@champion")
ours = load_model("models:/mcrnn-small@champion", Storage.open("{root}"))
for batch, time, steps in ((1, 3, 1), (4, 7, 5)):
    frames = np.random.default_rng(0).normal(size=(batch, time, 1, 8, 8)).astype(np.float32)
    forecast = model.predict(frames, params={{"steps": steps}})
    assert forecast.shape == (batch, steps, 1, 8, 8)
    assert np.allclose(forecast, ours.predict(frames, steps), atol=1e-6)
print("equal")
"""
    checked = ForkedProcess(shared.command_server(), ["-c", check], root, os.environ)
    out, err = checked.communicate(60)
    assert out.strip() == "equal", err

    # a finished search prints its summary; --new starts beside it; a larger budget continues
    again = command("mcrnn.tune", file)
    assert again.returncode == 0
    assert "best of every architecture" in again.stdout
    assert "trials to run" not in again.stdout

    request.getfixturevalue("shared_ray")
    larger = SEARCH | {"search": SEARCH["search"] | {"trials": 7, "ensemble": 3}}
    more = command("mcrnn.tune", write(root, larger))
    assert more.returncode == 0, more.stderr + more.stdout
    assert "1 trials to run" in more.stdout
    summary = json.loads((root / "searches/small/summary.json").read_text())
    assert len(summary["trials"]) == 7
    # the ensemble that it asks for is a model like others, and in use only where it has won
    ensemble = summary["ensemble"]
    assert sum(each["count"] for each in ensemble["members"]) in (2, 3)
    assert ensemble["error"] < ensemble["best_member"]
    assert f"ensemble of {ensemble['members'][0]['count']} x trial-" in more.stdout
    in_use = int(client.get_model_version_by_alias("mcrnn-small", "champion").version)
    assert in_use == (ensemble["version"] if ensemble["alias"] else 1)
    found = client.get_model_version("mcrnn-small", str(ensemble["version"]))
    assert found.tags["mcrnn.architecture"].startswith("ensemble of")
    figures = {a.path for a in client.list_artifacts(found.run_id, "evaluation")}
    assert "evaluation/spread_skill.png" in figures
    named = f"models:/mcrnn-small/1+models:/mcrnn-small/{ensemble['version']}"
    joined = command("mcrnn.evaluate", f"models:/mcrnn-small/{ensemble['version']}", named)
    assert joined.returncode == 0, joined.stderr
    assert joined.stdout.count("ensemble of") >= 2

    beside = command("mcrnn.tune", write(root, SEARCH | {"search": {"trials": 5}}), "--new")
    assert beside.returncode == 0, beside.stderr + beside.stdout
    assert (root / "searches" / "small-2" / "summary.json").exists()
    # the first stays in use until another is promoted; the same best is not registered twice
    assert int(client.get_model_version_by_alias("mcrnn-small", "champion").version) == in_use
    newest = int(client.get_model_version_by_alias("mcrnn-small", "candidate").version)
    assert newest == len(client.search_model_versions("name = 'mcrnn-small'"))

    changed = SEARCH | {"validation": {"warm_up": 3, "horizon": 5}}
    refused = command("mcrnn.tune", write(root, changed))
    assert refused.returncode == 2
    assert "validation.warm_up is 3, was 4" in refused.stderr


@pytest.mark.soak
def test_trials_of_two_workers_run_on_ray_train(command: CommandRunner, root: Path, ray_folder: Path) -> None:
    content = SEARCH | {
        "train": SEARCH["train"] | {"workers": 2},
        "search": {"trials": 2, "scheduler": "none", "cover": None},
    }
    result = command("mcrnn.tune", write(root, content))
    assert result.returncode == 0, result.stderr + result.stdout
    summary = json.loads((root / "searches/small/summary.json").read_text())
    assert [row["end"] for row in summary["trials"]] == ["finished", "finished"]


@pytest.mark.soak
def test_trials_of_two_workers_are_paused_and_go_on(command: CommandRunner, root: Path, ray_folder: Path) -> None:
    content = SEARCH | {"train": SEARCH["train"] | {"workers": 2}, "search": SEARCH["search"] | {"trials": 4}}
    result = command("mcrnn.tune", write(root, content))
    assert result.returncode == 0, result.stderr + result.stdout
    assert "paused at epoch 1" in result.stdout
    rows = json.loads((root / "searches/small/summary.json").read_text())["trials"]
    assert sorted(row["epoch"] for row in rows) == [1, 1, 2, 3]
    assert [row["end"] for row in rows if row["epoch"] == 3] == ["finished"]


@pytest.mark.soak
def test_stopped_trials_go_on_with_a_larger_budget_though_their_checkpoints_are_deleted(
    command: CommandRunner, root: Path, ray_folder: Path
) -> None:
    import mlflow

    def run(trials: int) -> tuple[str, dict[int, dict[str, Any]]]:
        budget = {"trials": trials, "cover": None, "sampler": "random", "keep": 1}
        result = command("mcrnn.tune", write(root, SEARCH | {"search": SEARCH["search"] | budget}))
        assert result.returncode == 0, result.stderr + result.stdout
        summary = json.loads((root / "searches/small/summary.json").read_text())
        return result.stdout, {row["trial"]: row for row in summary["trials"]}

    said, before = run(4)
    stopped = {number for number, row in before.items() if row["end"] == "stopped"}
    assert f"{len(stopped)} paused trials have been stopped, and a larger budget lets them go on" in said
    folders = {number: root / "searches/small/trials" / f"{number:04d}" for number in range(12)}
    assert not any((folders[number] / "checkpoints").exists() for number in stopped)
    _, after = run(12)
    assert len(after) == 12
    further = {number for number in stopped if after[number]["epoch"] > before[number]["epoch"]}
    assert further
    for number in further:
        lines = (folders[number] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, after[number]["epoch"] + 1))
        assert after[number]["best"] <= before[number]["best"]
    runs = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}").search_runs(["1"])
    assert {run.info.status for run in runs} == {"FINISHED"}
