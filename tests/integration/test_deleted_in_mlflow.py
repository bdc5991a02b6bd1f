"""A search comes to its champion whatever its user deletes in MLflow meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import client_of, tracking_uri
from mcrnn.tracking.sync import PARENT_TAG
from tests.conftest import CommandRunner
from tests.support.processes import Start, wait_for
from tests.support.searches import tried, write

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


def runs_of(client: MlflowClient, kind: str) -> list[Run]:
    """The runs of a kind that are not deleted, in all experiments."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, f"tags.`mcrnn.kind` = '{kind}'")


def delete(client: MlflowClient, what: str) -> None:
    """Delete the experiment of the search, or all runs in it."""
    (search,) = runs_of(client, "search")
    if what == "experiment":
        client.delete_experiment(search.info.experiment_id)
        return
    for run in client.search_runs([search.info.experiment_id]):
        client.delete_run(run.info.run_id)


def assert_champion_is_registered(client: MlflowClient, root: Path) -> None:
    """The champion's run is there with all its metrics, and so is the search's own, with the others below it."""
    summary = json.loads((root / "searches/s/summary.json").read_text())
    version = client.get_model_version(summary["model"], str(summary["version"]))
    assert version.run_id == summary["run_id"]
    champion = client.get_run(summary["run_id"])
    assert (champion.info.lifecycle_stage, champion.info.status) == ("active", "FINISHED")
    lines = (root / f"searches/s/trials/{summary['best_trial']:04d}/metrics.jsonl").read_text().splitlines()
    history = client.get_metric_history(champion.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [
        (epoch["epoch"], pytest.approx(epoch["loss"])) for epoch in map(json.loads, lines)
    ]
    (search,) = runs_of(client, "search")
    assert search.info.status == "FINISHED"
    assert search.data.metrics["best"] == pytest.approx(summary["best"])
    trials = runs_of(client, "trial")
    assert champion.info.run_id in {run.info.run_id for run in trials}
    assert {run.data.tags[PARENT_TAG] for run in trials} == {search.info.run_id}


@pytest.mark.soak
@pytest.mark.parametrize("what", ["runs", "experiment"])
def test_search_registers_its_champion_whatever_is_deleted_in_mlflow(
    command: CommandRunner, root: Path, start: Start, shared_ray: str, what: str
) -> None:
    client = client_of(tracking_uri(Storage.open(str(root))))
    process = start("mcrnn.tune", write(root, "s", search={"trials": 4}))
    wait_for(lambda: tried(root, "s") >= 2, process)
    delete(client, what)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "was deleted in MLflow; " in err
    assert all(line.startswith("warning: the ") and "was deleted in MLflow; " in line for line in err.splitlines()), err
    assert len(err.splitlines()) <= 4
    assert_champion_is_registered(client, root)
    delete(client, what)
    again = command("mcrnn.tune", "s.yaml", "--set", "search.trials=5")
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert_champion_is_registered(client, root)
