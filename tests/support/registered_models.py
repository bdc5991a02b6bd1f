"""Models with random weights in the registry, as a search might have found them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.models import trained_model
from mcrnn.models.forecaster import build_model
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking import registry
from mcrnn.tracking.experiment import Tracker
from mcrnn.tracking.provenance import origin
from mcrnn.tracking.run_folder import RunFolder
from mcrnn.tracking.sync import RunSync
from tests.commands.test_commands import CONFIGURATION


def describe(root: Path, **changes: Any) -> tuple[Configuration, FieldDescription]:
    """Return a configuration and what it makes of the tiny store."""
    content = CONFIGURATION | changes
    config = Configuration.model_validate(content)
    store = FieldStore.open(LocalFolder(root / "data/tiny.zarr"))
    return config, FieldDescription.of(store, config.data)


def save(
    folder: Path, config: Configuration, field: FieldDescription, scale: float = 1.0, seed: int = 0
) -> LocalFolder:
    """A model directory with random weights, the decoder's times `scale`."""
    torch.manual_seed(seed)
    network = build_model(config.model, field.frame_shape, field.padding, len(field.inputs))
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
    folder = RunFolder(place)
    folder.write_record("found", tags={})
    run = mirrors.update_now(folder, "FINISHED")
    found = {"search": "s", "trial": 0, "best": 0.5}
    result = registry.register(run, place, name, found=found, test_metrics=None, origin=origin())
    mirrors.close()
    return result
