"""Which models are judged: registry URIs, MLflow runs and folders, with wildcards; and which belong together."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.root import Storage
from mcrnn.tracking import model_loading
from mcrnn.tracking.mlflow_client import client_of, quiet_mlflow, reachable, tracking_uri
from mcrnn.tracking.run_folder import METRICS_FILE

WILDCARDS = "*?["


@dataclass(frozen=True)
class Chosen:
    """A model that is to be judged."""

    uri: str
    model: TrainedModel
    run_id: str | None
    training_seconds: float | None

    @property
    def group(self) -> str:
        """The same for models that differ in their seed only."""
        config = self.model.config.model_dump()
        config["train"].pop("seed")
        config.pop("name")
        return json.dumps([config, self.model.field.store_digest], sort_keys=True)


def choose(patterns: Iterable[str], storage: Storage) -> tuple[list[Chosen], list[str]]:
    """Load what the patterns name.

    Returns:
        The models, in the order of the patterns, each once; and a line for each that could not be loaded.
    """
    chosen: dict[str, Chosen] = {}
    failures = []
    for pattern in patterns:
        try:
            uris = expand(pattern, storage)
        except UserError as error:
            failures.append(str(error))
            continue
        for uri in uris:
            if uri in chosen:
                continue
            try:
                loaded = model_loading.find(uri, storage)
                chosen[uri] = Chosen(uri, loaded.model, loaded.run_id, _seconds(uri, loaded.run_id, storage))
            except UserError as error:
                failures.append(str(error))
    return list(chosen.values()), failures


def expand(pattern: str, storage: Storage) -> list[str]:
    """The names that a pattern stands for, itself where it has no wildcard.

    Raises:
        UserError: there is none.
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
        models = client_of(tracking_uri(storage)).search_registered_models()
    found = []
    for model in sorted(models, key=lambda model: model.name):
        if fnmatch.fnmatchcase(model.name, name) and (sign != "@" or rest in model.aliases):
            found.append(f"models:/{model.name}{sign}{rest}")
    return found


def _folders(pattern: str, storage: Storage) -> list[str]:
    """Folders of runs, or model directories, below the part of the pattern that has no wildcard."""
    parts = PurePosixPath(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in WILDCARDS))
    top = str(PurePosixPath(*parts[:fixed])) if fixed else "."
    depth = len(parts) - fixed
    found = set()
    for key in storage.location(top).sizes():
        if not key.endswith(f"/{trained_model.CONFIG}"):
            continue
        place = PurePosixPath(key).parent
        place = place.parent if place.name == "model" else place
        if len(place.parts) == depth and all(
            fnmatch.fnmatchcase(part, wanted) for part, wanted in zip(place.parts, parts[fixed:], strict=True)
        ):
            found.add(str(PurePosixPath(top) / place))
    return sorted(found)


def _seconds(uri: str, run_id: str | None, storage: Storage) -> float | None:
    """How long the training took, where that is known."""
    if run_id is not None:
        history = client_of(tracking_uri(storage)).get_metric_history(run_id, "seconds")
        return sum({metric.step: metric.value for metric in history}.values()) or None
    try:
        lines = storage.location(uri).read(METRICS_FILE).splitlines()
    except FileNotFoundError:
        return None
    return sum(json.loads(line).get("seconds", 0.0) for line in lines)
