"""The experiment in MLflow in which a command records its runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mcrnn.storage.process import is_gone
from mcrnn.storage.retry import PATIENCE, print_warning
from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import (
    Run,
    all_pages,
    artifact_root,
    client_of,
    is_experiment_deleted,
    quiet_mlflow,
    reachable,
    tracking_uri,
)
from mcrnn.tracking.provenance import origin

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

VIEW = "mcrnn"
"""Name of a view of an experiment's runs, which MLflow's UI shows at `view_addresses`."""
COLUMNS = (
    "attributes.`Dataset`",
    "metrics.`best`",
    "metrics.`test_rmse_closed_loop`",
    "params.`model.architecture`",
    "params.`size.parameters`",
    "metrics.`frames_per_second`",
    "params.`model.layers`",
    "params.`data.sequence_length`",
    "params.`train.teacher_forcing_steps`",
    "params.`train.learning_rate`",
    "params.`train.batch_size`",
    "tags.`mcrnn.kind`",
)
"""Columns of the table of runs in that view, as MLflow names them."""
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {"selectedColumns": COLUMNS, "orderByKey": "metrics.`best`", "orderByAsc": True}
    ),
}
"""Tags of an experiment: that MLflow's UI shows it as one of model training, not of language models, and the view."""
KEY_TAG = "mcrnn.key"
"""Tag with the key of the run's record on disk, by which the run is found again."""
PROCESS_TAG = "mcrnn.process"
"""Tag with the process that keeps a run up to date, as `mcrnn.storage.process.is_gone` takes it."""


@dataclass(frozen=True)
class Tracker:
    """An experiment in MLflow, in which a command records its runs."""

    tracking_uri: str
    experiment_id: str
    origin: dict[str, Any]
    """The command that records the runs; see `mcrnn.tracking.provenance.origin`."""
    name: str
    """Name of the experiment, as it was asked for."""
    artifacts: str | None
    """URI under which the artifacts of new experiments are kept; None if the tracking server decides that."""

    @classmethod
    def open(cls, storage: Storage, experiment: str, warn: Callable[[str], None] = print_warning) -> Tracker:
        """Find the experiment or create it, and MLflow's database with it.

        Runs of the experiment whose process is gone get the status KILLED.

        Args:
            storage: the storage root.
            experiment: name of the experiment. Where one of this name was deleted in MLflow, another is used in its
                place, whose name has a number at its end.
            warn: called with a line when an experiment is created in place of a deleted one; by default it is printed.

        Raises:
            UserError: the tracking server cannot be used; the message says why.
        """
        quiet_mlflow()
        uri, artifacts = tracking_uri(storage), artifact_root(storage)
        with reachable(uri):
            identifier = _open_experiment(client_of(uri), experiment, artifacts, warn)
            _end_abandoned(client_of(uri), [identifier])
        return cls(uri, identifier, origin(), experiment, artifacts)

    def is_deleted(self) -> bool:
        """Return whether the experiment was deleted in MLflow, so that no run can be added to it."""
        return is_experiment_deleted(client_of(self.tracking_uri), self.experiment_id)

    def in_place_of_deleted(self, warn: Callable[[str], None]) -> Tracker:
        """Return the experiment for further runs, once this one was deleted.

        Args:
            warn: called with a line if it is created.
        """
        client = client_of(self.tracking_uri)
        return replace(self, experiment_id=_open_experiment(client, self.name, self.artifacts, warn))

    def run(self, run_id: str, patience: float = PATIENCE) -> Run:
        """Return a run of the experiment.

        Args:
            run_id: id of the run.
            patience: seconds that its requests wait for an MLflow that does not answer.
        """
        return Run(self.tracking_uri, run_id, patience)


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None, warn: Callable[[str], None]) -> str:
    """Return the id of an experiment that is not deleted: of that name, or `NAME (2)` and so on after deleted ones.

    MLflow keeps the names of deleted experiments. It could restore them, but then all their runs would be back.
    """
    number, chosen = 1, name
    while (found := client.get_experiment_by_name(chosen)) is not None and found.lifecycle_stage != "active":
        number += 1
        chosen = f"{name} ({number})"
    if found is not None:
        for tag, value in EXPERIMENT_TAGS.items():  # those of an earlier version have none
            if tag not in found.tags:
                client.set_experiment_tag(found.experiment_id, tag, value)
        return found.experiment_id
    if number > 1:
        warn(f"the experiment '{name}' was deleted in MLflow; what is new is recorded in '{chosen}'")
    return client.create_experiment(chosen, artifact_location=artifacts, tags=EXPERIMENT_TAGS)


def view_addresses(uri: str, server: str) -> dict[str, str]:
    """Return the address in MLflow's UI of the view of each experiment, by the experiment's name.

    The address names the view for model training, because MLflow 3.17 opens that for language models whatever the tag
    of the experiment says.

    Args:
        uri: tracking URI.
        server: address of the UI.

    Raises:
        UserError: the tracking server cannot be used.
    """
    with reachable(uri):
        experiments = all_pages(client_of(uri).search_experiments)
    view = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    return {
        each.name: f"{server}/#/experiments/{each.experiment_id}/runs?{view}"
        for each in experiments
        if f"mlflow.sharedViewState.{VIEW}" in each.tags
    }


def end_abandoned(uri: str) -> None:
    """Set the status of runs whose process was killed to KILLED, in all experiments.

    They go on when their command is given again.

    Args:
        uri: tracking URI.

    Raises:
        UserError: the tracking server cannot be used.
    """
    quiet_mlflow()
    with reachable(uri):
        client = client_of(uri)
        _end_abandoned(client, [experiment.experiment_id for experiment in all_pages(client.search_experiments)])


def _end_abandoned(client: MlflowClient, experiments: list[str]) -> None:
    for run in all_pages(client.search_runs, experiments, "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS_TAG)
        if process and is_gone(json.loads(process)):
            client.set_terminated(run.info.run_id, "KILLED")
