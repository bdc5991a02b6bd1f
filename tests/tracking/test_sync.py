"""What users delete in MLflow, and what MLflow refuses, holds nothing back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking.experiment import EXPERIMENT_TAGS, Tracker, view_addresses
from mcrnn.tracking.mlflow_client import client_of, is_experiment_deleted, tracking_uri
from mcrnn.tracking.run_folder import RunFolder
from mcrnn.tracking.sync import PARENT_TAG, RunSync, is_synced
from tests.support import shared


class Command:
    """What a command does with MLflow: a search and its trials, whose folders it keeps in step."""

    def __init__(self, root: Path) -> None:
        self.root, self.storage = root, Storage.open(str(root))
        self.client: MlflowClient = client_of(tracking_uri(self.storage))
        self.said: list[str] = []
        self.sync = RunSync(Tracker.open(self.storage, "mcrnn-s", self.said.append), self.said.append)

    def folder(self, name: str, **record: Any) -> RunFolder:
        folder = RunFolder(LocalFolder(self.root / "searches/s" / name))
        folder.write_record(name, tags={"mcrnn.kind": "trial"}, params={"size": 3} | record)
        return folder

    def epochs(self, folder: RunFolder, count: int, status: str | None = "RUNNING") -> None:
        """Let a training come to an epoch."""
        folder.write_metrics([{"epoch": n, "time": 1.0 * n, "loss": 1 / n} for n in range(1, count + 1)])
        self.sync.update(folder, status)

    def run_id(self, folder: RunFolder) -> str:
        return folder.read_sync_state()["run_id"]

    def losses(self, folder: RunFolder) -> list[float]:
        return [metric.value for metric in self.client.get_metric_history(self.run_id(folder), "loss")]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    shutil.copy(shared.mlflow_database(), tmp_path / "mlflow.db")
    return Command(tmp_path)


def test_experiment_has_the_view_for_model_training_and_what_a_user_chose_stays(command: Command) -> None:
    tracker, server = command.sync.tracker, "http://127.0.0.1:5000"
    tags = command.client.get_experiment(tracker.experiment_id).tags
    assert tags.items() >= EXPERIMENT_TAGS.items()
    address = (
        f"{server}/#/experiments/{tracker.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=mcrnn"
    )
    assert view_addresses(tracker.tracking_uri, server) == {"mcrnn-s": address}
    before = command.client.create_experiment("mcrnn-before", tags={"mlflow.experimentKind": "forecasting"})
    assert Tracker.open(command.storage, "mcrnn-before").experiment_id == before
    assert command.client.get_experiment(before).tags == EXPERIMENT_TAGS | {"mlflow.experimentKind": "forecasting"}


@pytest.mark.parametrize("for_good", [False, True])
def test_deleted_run_is_left_alone_with_one_warning_and_holds_nothing_back(command: Command, for_good: bool) -> None:
    deleted, other = command.folder("0000"), command.folder("0001")
    for folder in (deleted, other):
        command.epochs(folder, 1)
    command.sync.wait(30)
    run_id = command.run_id(deleted)
    command.client.delete_run(run_id)
    if for_good:  # as `mlflow gc` does
        command.client._tracking_client.store._hard_delete_run(run_id)
    for count in (2, 3):
        for folder in (deleted, other):
            command.epochs(folder, count, "FINISHED")
        command.sync.wait(30)
    assert command.said == [f"the run of '{deleted.url}' was deleted in MLflow; it is left alone"]
    assert command.losses(other) == [1, 1 / 2, 1 / 3]
    assert is_synced(deleted)
    assert is_synced(other)
    assert len(command.client.search_runs([command.sync.tracker.experiment_id])) == 1
    if not for_good:
        assert command.client.get_run(run_id).info.lifecycle_stage == "deleted"
    later = Command(command.root)
    later.epochs(deleted, 4)
    later.sync.wait(30)
    assert later.said == []


def test_deleted_run_that_is_needed_is_recorded_anew_and_keeps_what_is_below_it(command: Command) -> None:
    search = command.folder("search")
    first = command.sync.update_now(search, "RUNNING").run_id
    command.sync.parent = search
    before, after = command.folder("0000"), command.folder("0001")
    command.epochs(before, 2, "FINISHED")
    command.sync.wait(30)
    command.client.delete_run(first)
    command.epochs(after, 1)
    command.sync.wait(30)
    # it was made anew for the run below it
    second = command.run_id(search)
    assert second != first
    assert command.said == [f"the run of '{search.url}' was deleted in MLflow; it is recorded anew"]
    for folder in (before, after):
        assert command.client.get_run(command.run_id(folder)).data.tags[PARENT_TAG] == second
    # and is made anew once more, with all that it holds
    command.epochs(search, 3, "FINISHED")
    command.sync.wait(30)
    command.client.delete_run(second)
    third = command.sync.update_now(search).run_id
    assert third not in (first, second)
    run = command.client.get_run(third)
    assert (run.info.status, run.data.params, run.data.tags["mcrnn.kind"]) == ("FINISHED", {"size": "3"}, "trial")
    assert command.losses(search) == [1, 1 / 2, 1 / 3]
    assert len(command.said) == 2
    assert len(command.client.search_runs([command.sync.tracker.experiment_id])) == 3


def test_run_that_was_left_alone_is_recorded_anew_when_it_is_needed(command: Command) -> None:
    champion = command.folder("0000")
    command.epochs(champion, 1)
    command.sync.wait(30)
    command.client.delete_run(command.run_id(champion))
    command.epochs(champion, 2, "FINISHED")
    command.sync.wait(30)
    later = Command(command.root)
    run = later.sync.update_now(champion, "FINISHED")
    assert later.client.get_run(run.run_id).info.status == "FINISHED"
    assert later.losses(champion) == [1, 1 / 2]


def test_deleted_experiment_gets_a_successor_with_one_warning(command: Command) -> None:
    search = command.folder("search")
    command.sync.update_now(search, "RUNNING")
    command.sync.parent = search
    before, after = command.folder("0000"), command.folder("0001")
    command.epochs(before, 1)
    command.sync.wait(30)
    command.client.delete_experiment(command.sync.tracker.experiment_id)
    for folder in (after, before):
        command.epochs(folder, 2)
    command.sync.wait(30)
    assert command.said == ["the experiment 'mcrnn-s' was deleted in MLflow; what is new is recorded in 'mcrnn-s (2)'"]
    experiment = command.client.get_experiment_by_name("mcrnn-s (2)")
    runs = {run.info.run_id: run for run in command.client.search_runs([experiment.experiment_id])}
    assert set(runs) == {command.run_id(search), command.run_id(after)}
    assert runs[command.run_id(after)].data.tags[PARENT_TAG] == command.run_id(search)
    assert experiment.artifact_location.startswith((command.root / "mlartifacts").as_uri())
    # the next command goes on there
    later = Command(command.root)
    assert later.sync.update_now(search).run_id == command.run_id(search)
    assert later.said == []
    later.client.delete_experiment(experiment.experiment_id)
    last = Command(command.root)
    assert last.said == ["the experiment 'mcrnn-s' was deleted in MLflow; what is new is recorded in 'mcrnn-s (3)'"]
    last.sync.update_now(search)
    assert len(last.said) == 1


def test_experiment_that_is_deleted_while_a_run_is_created_gets_a_successor(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = command.sync.tracker.experiment_id

    def is_deleted_just_after(tracker: Tracker) -> bool:
        found = is_experiment_deleted(command.client, tracker.experiment_id)
        if tracker.experiment_id == deleted and not found:
            command.client.delete_experiment(deleted)
        return found

    monkeypatch.setattr(Tracker, "is_deleted", is_deleted_just_after)
    folder = command.folder("0000")
    command.epochs(folder, 1)
    command.sync.wait(30)
    assert command.said == ["the experiment 'mcrnn-s' was deleted in MLflow; what is new is recorded in 'mcrnn-s (2)'"]
    assert command.losses(folder) == [1]


def test_runs_of_a_deleted_experiment_are_left_alone_with_one_warning(command: Command) -> None:
    folders = [command.folder(f"000{number}") for number in range(3)]
    for folder in folders:
        command.epochs(folder, 1)
    command.sync.wait(30)
    command.client.delete_experiment(command.sync.tracker.experiment_id)
    for folder in folders:
        command.epochs(folder, 2, "FINISHED")
    command.sync.wait(30)
    assert command.said == ["the experiment 'mcrnn-s' was deleted in MLflow; its runs are left alone"]


def test_what_mlflow_refuses_is_named_once_and_holds_nothing_back(command: Command) -> None:
    refused, other = command.folder("0000", **{"x" * 300: 1}), command.folder("0001")
    for count in (1, 2):
        for folder in (refused, other):
            command.epochs(folder, count, "FINISHED")
        command.sync.wait(30)
    (line,) = command.said
    assert line.startswith(f"MLflow refuses the run of '{refused.url}' (")
    assert line.endswith("); it is left out")
    assert command.losses(other) == [1, 1 / 2]
    assert not is_synced(refused)
    assert command.sync.update_now(refused).run_id == command.run_id(refused)  # a model can be registered from it


@pytest.mark.parametrize("file", ["record.json", "run.json", "metrics.jsonl"])
def test_folder_with_a_damaged_file_is_named_once_and_holds_nothing_back(command: Command, file: str) -> None:
    damaged, other = command.folder("0000"), command.folder("0001")
    damaged.location.write(file, b"\0\0\n")
    for _ in range(2):
        command.sync.update(damaged, "FINISHED")
        command.epochs(other, 2, "FINISHED")
        command.sync.wait(30)
    assert len(command.said) == 1
    assert f"the run of '{damaged.url}' (" in command.said[0]
    assert f"/{file}' is damaged" in command.said[0]
    assert command.losses(other) == [1, 1 / 2]
    assert is_synced(other)
    assert not is_synced(damaged)
