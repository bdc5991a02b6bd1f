"""What MLflow knows of a training, from which it can be repeated, and how a repetition compares with it."""

from __future__ import annotations

import json
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.root import Storage
from mcrnn.tracking.mlflow_client import client_of, quiet_mlflow, reachable, silenced, summarize_error, tracking_uri
from mcrnn.tracking.model_loading import find, find_version
from mcrnn.tracking.provenance import DIGITS, commit, hardware, numerics, packages
from mcrnn.tracking.run_folder import (
    CONFIGURATION_FILE,
    MACHINE_FILE,
    ORIGIN_FILE,
    RunFolder,
    SearchFolder,
)

COMPARED = ("loss", "gradient_norm", "rmse_teacher_forced", "rmse_closed_loop", "rmse_closed_loop_normalized")
"""Metrics of an epoch that are the same where the weights are."""
SAME = 1e-14
"""Relative difference that a database may add to a number."""


@dataclass(frozen=True)
class Lineage:
    """A training as MLflow has recorded it.

    Attributes:
        run_id: id of its run.
        run_name: name of its run.
        search: the search that it belongs to, None for a single training.
        configuration: what it has trained.
        store_digest: digest of the store that it was trained on.
        epochs: the metrics of each epoch, by its number.
        packages: versions of the packages.
        commit: git commit of the code, and whether it had been changed; empty where git did not know it.
        machine: processor, cores, threads and so on.
        threads: threads of the training; None where they are not known.
    """

    run_id: str
    run_name: str
    search: str | None
    configuration: dict[str, Any]
    store_digest: str
    epochs: dict[int, dict[str, float]]
    packages: dict[str, str]
    commit: dict[str, Any]
    machine: dict[str, Any]
    threads: int | None


def read_lineage(storage: Storage, name: str) -> Lineage:
    """Read what MLflow knows of a training.

    Args:
        storage: the storage root.
        name: id of a run, or registry URI of a model.

    Raises:
        UserError: there is no such run, or it is not of a training.
    """
    from mlflow.exceptions import MlflowException

    quiet_mlflow()
    uri = tracking_uri(storage)
    with reachable(uri):
        client = client_of(uri)
        client.search_experiments(max_results=1)
    try:
        run_id = str(find_version(client, name).run_id) if name.startswith("models:/") else name
        run = client.get_run(run_id)
        digest = run.data.tags["mcrnn.store_digest"]
        with silenced(), tempfile.TemporaryDirectory(prefix="mcrnn-run-") as folder:
            there = {artifact.path for artifact in client.list_artifacts(run_id)}

            def read(file: str) -> dict[str, Any]:
                return json.loads(Path(client.download_artifacts(run_id, file, folder)).read_bytes())

            configuration = read(CONFIGURATION_FILE)
            machine, origin = (read(file) if file in there else {} for file in (MACHINE_FILE, ORIGIN_FILE))
        epochs: dict[int, dict[str, float]] = {}
        for metric in (m for m in COMPARED if m in run.data.metrics):
            for value in client.get_metric_history(run_id, metric):
                epochs.setdefault(value.step, {})[metric] = value.value
    except KeyError:
        raise UserError(f"the run {name} is not of a training: it has no record of what it trained on") from None
    except (MlflowException, OSError) as error:
        raise UserError(f"there is no run {name} with a configuration: {summarize_error(str(error))}") from None
    # Trials train on one thread, and this was not written down before.
    alone = run.data.tags.get("mcrnn.kind") == "run" and configuration.get("train", {}).get("workers", 1) == 1
    return Lineage(
        run_id,
        str(run.info.run_name),
        run.data.tags.get("mcrnn.search"),
        configuration,
        digest,
        epochs,
        origin.get("packages", {}),
        {key: origin[key] for key in ("commit", "dirty") if key in origin},
        machine,
        machine.get("threads", None if alone else 1),
    )


def _find_model(lineage: Lineage, storage: Storage) -> TrainedModel | None:
    """Return the model: from the artifacts of its run if it was registered, else from its folder if that is there."""
    try:
        return find(f"runs:/{lineage.run_id}/model", storage).model
    except UserError:
        pass
    name = lineage.run_name
    folders = [RunFolder(storage.location(f"runs/{name}"))]
    if lineage.search is not None:
        search = SearchFolder(storage.location(f"searches/{lineage.search}"))
        number = re.search(r"\d+$", name)
        folders = [*([search.trial(int(number.group()))] if number else []), search.retraining(name)]
    for folder in folders:
        if folder.read_sync_state().get("run_id") == lineage.run_id and trained_model.exists(folder.model):
            return trained_model.load(folder.model)
    return None


@dataclass(frozen=True)
class Comparison:
    """How a repetition compares with what is repeated.

    Attributes:
        is_same: whether the weights are the same bits; where they are not kept, whether all metrics are equal.
        lines: what was found, for a person.
    """

    is_same: bool
    lines: list[str]


def compare(lineage: Lineage, folder: RunFolder, storage: Storage) -> Comparison:
    """Compare a repetition with the training that it has repeated.

    Args:
        lineage: the training.
        folder: folder of the repetition, which has ended.
        storage: the storage root.
    """
    repeated = {int(epoch["epoch"]): epoch for epoch in folder.read_metrics()}
    before = _find_model(lineage, storage)
    first = _first_difference(lineage.epochs, repeated)
    ours, theirs = trained_model.load(folder.model).digest, before.digest if before is not None else None
    is_same = first is None and theirs in (None, ours)
    if theirs is None:
        lines = [
            f"the model of the run {lineage.run_id} is not kept; "
            + (f"the metrics of all {len(lineage.epochs)} epochs are equal" if is_same else "the metrics differ")
        ]
    elif theirs == ours:
        lines = [f"the weights are the same bits as those of the run {lineage.run_id} (sha256 {ours[:DIGITS]})"]
    else:
        lines = [
            f"the weights are not those of the run {lineage.run_id}: sha256 {ours[:DIGITS]}, there {theirs[:DIGITS]}"
        ]
    if first is not None:
        epoch, metric, was, now = first
        lines.append(f"they differ from epoch {epoch} on: {metric} is {now!r}, was {was!r}")
    elif not is_same:
        lines.append(f"the metrics of all {len(lineage.epochs)} epochs are equal")
    different = _differences(lineage)
    if different:
        lines += [f"differs: {text}" for text in different]
    else:
        lines.append("packages, code and machine are the same, as far as they are recorded")
    return Comparison(is_same, lines)


def _first_difference(
    before: dict[int, dict[str, float]], now: dict[int, dict[str, float]]
) -> tuple[int, str, float, float] | None:
    """Return epoch, metric and both values of the first difference, None if there is none."""
    for epoch in sorted(before):
        for metric, value in before[epoch].items():
            found = now.get(epoch, {}).get(metric, math.nan)
            # MLflow keeps what is not finite as another number
            if math.isfinite(value) and not math.isclose(value, found, rel_tol=SAME):
                return epoch, metric, value, found
    return None


def _differences(lineage: Lineage) -> list[str]:
    """Name what differs in packages, code and machine between a training and this process."""
    here = hardware() | numerics()
    pairs = [(f"package {k}", v, packages().get(k, "not installed")) for k, v in lineage.packages.items()]
    pairs += [(f"code, {key}", value, commit().get(key, value)) for key, value in lineage.commit.items()]
    pairs += [(f"machine, {key}", value, here[key]) for key, value in lineage.machine.items() if key in here]
    return [f"{name} is {now}, was {before}" for name, before, now in pairs if before != now]
