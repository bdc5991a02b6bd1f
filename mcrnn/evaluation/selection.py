"""Select the models to evaluate by registry URIs, MLflow runs and folders, with wildcards."""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.root import Storage
from mcrnn.tracking import model_loading
from mcrnn.tracking.mlflow_client import all_pages, client_of, quiet_mlflow, reachable, tracking_uri
from mcrnn.tracking.run_folder import RunFolder

JOINED = "+"
"""Sign between the models of an ensemble."""
WILDCARDS = "*?["
"""Characters that make a name a pattern."""


@dataclass(frozen=True)
class SelectedModel:
    """A model to be evaluated.

    Attributes:
        uri: registry URI, run URI or folder.
        model: the model, loaded.
        run_id: MLflow run in which it was trained; None where it was given as a folder.
        training_seconds: how long its training took; None where that is not known.
    """

    uri: str
    model: TrainedModel
    run_id: str | None
    training_seconds: float | None

    @property
    def group(self) -> str:
        """A key that is equal for models which differ in their seed only."""
        if isinstance(self.model, Ensemble):
            return self.uri
        config = self.model.config.model_dump()
        config["train"].pop("seed")
        config.pop("name")
        return json.dumps([config, self.model.field.store_digest], sort_keys=True)


def select_models(patterns: Iterable[str], storage: Storage) -> tuple[list[SelectedModel], list[str]]:
    """Load the models that patterns name.

    Args:
        patterns: registry URIs, run URIs and folders, with wildcards; see `expand`. Several with a plus between them
            are an ensemble.
        storage: the storage root.

    Returns:
        The models, in the order of the patterns, each once; and a message for each that could not be loaded.
    """
    selected: dict[str, SelectedModel] = {}
    failures = []
    for pattern in patterns:
        try:
            if JOINED in pattern:
                selected[pattern] = _joined(pattern, storage)
                continue
            uris = expand(pattern, storage)
        except UserError as error:
            failures.append(str(error))
            continue
        for uri in uris:
            if uri in selected:
                continue
            try:
                loaded = model_loading.find(uri, storage)
                seconds = _training_seconds(uri, loaded.run_id, storage)
                selected[uri] = SelectedModel(uri, loaded.model, loaded.run_id, seconds)
            except UserError as error:
                failures.append(str(error))
    return list(selected.values()), failures


def _joined(pattern: str, storage: Storage) -> SelectedModel:
    """Load the models of an ensemble; one that is named several times counts as often.

    Raises:
        UserError: a model cannot be loaded, or the models do not go together.
    """
    counts = Counter(uri for part in pattern.split(JOINED) for uri in expand(part.strip(), storage))
    loaded = {uri: model_loading.find(uri, storage) for uri in counts}
    seconds = [_training_seconds(uri, each.run_id, storage) for uri, each in loaded.items()]
    known = [each for each in seconds if each is not None]
    ensemble = Ensemble.of([each.model for each in loaded.values()], list(counts.values()), list(counts))
    return SelectedModel(pattern, ensemble, None, sum(known) if len(known) == len(seconds) else None)


def expand(pattern: str, storage: Storage) -> list[str]:
    """Return the names that a pattern matches.

    Args:
        pattern: `models:/NAME@ALIAS` or `models:/NAME/VERSION` with wildcards in NAME, or a folder with wildcards in
            any part, relative to the storage root. A name without wildcards, and any `runs:/` URI, stands for itself.
        storage: the storage root.

    Raises:
        UserError: nothing matches.
    """
    if not any(sign in pattern for sign in WILDCARDS) or pattern.startswith("runs:/"):
        return [pattern]
    found = _registered(pattern, storage) if pattern.startswith("models:/") else _folders(pattern, storage)
    if not found:
        raise UserError(f"no model is named like '{pattern}'")
    return found


def _registered(pattern: str, storage: Storage) -> list[str]:
    name, sign, rest = pattern.removeprefix("models:/").partition("@" if "@" in pattern else "/")
    quiet_mlflow()
    with reachable(tracking_uri(storage)):
        models = all_pages(client_of(tracking_uri(storage)).search_registered_models)
    found = []
    for model in sorted(models, key=lambda model: model.name):
        if fnmatch.fnmatchcase(model.name, name) and (sign != "@" or rest in model.aliases):
            found.append(f"models:/{model.name}{sign}{rest}")
    return found


def _folders(pattern: str, storage: Storage) -> list[str]:
    """Return the matching folders of runs, and model directories, in the order of their names."""
    parts = PurePosixPath(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in WILDCARDS))
    top = str(PurePosixPath(*parts[:fixed])) if fixed else "."  # the part of the pattern without wildcards
    depth = len(parts) - fixed
    found = set()
    for key in storage.location(top).sizes():
        if not key.endswith(f"/{trained_model.CONFIG}"):
            continue
        folder = PurePosixPath(key).parent
        folder = folder.parent if folder.name == "model" else folder
        if len(folder.parts) == depth and all(
            fnmatch.fnmatchcase(part, wanted) for part, wanted in zip(folder.parts, parts[fixed:], strict=True)
        ):
            found.add(str(PurePosixPath(top) / folder))
    return sorted(found)


def _training_seconds(uri: str, run_id: str | None, storage: Storage) -> float | None:
    """Add up the seconds of a model's epochs, which MLflow or the run's folder records; None where neither does."""
    if run_id is not None:
        history = client_of(tracking_uri(storage)).get_metric_history(run_id, "seconds")
        return sum({metric.step: metric.value for metric in history}.values()) or None
    epochs = RunFolder(storage.location(uri)).read_metrics()
    return sum(epoch.get("seconds", 0.0) for epoch in epochs) if epochs else None
