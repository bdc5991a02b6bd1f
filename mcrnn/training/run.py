"""One training as plain data, and what it leaves in its folder: checkpoints, the best model, metrics, how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.errors import UserError
from mcrnn.models import model_cost
from mcrnn.storage.location import Location
from mcrnn.tracking.provenance import hardware
from mcrnn.tracking.run_folder import (
    CHECKPOINT_FOLDER,
    CONFIGURATION_FILE,
    END_FILE,
    write_record,
)
from mcrnn.training.checkpoints import Checkpoints, deserialize
from mcrnn.training.session import End


@dataclass(frozen=True)
class TrainingRun:
    """One training, wherever it runs: plain data, so that it can be sent to workers."""

    config: Configuration
    field: FieldDescription
    folder: Location
    """for its checkpoints, its model and its record"""
    run_name: str
    tags: tuple[tuple[str, str], ...] = ()

    @property
    def checkpoints(self) -> Checkpoints:
        """Those of this training."""
        return Checkpoints(self.folder.child(CHECKPOINT_FOLDER))

    def load_checkpoint(self, warn: Callable[[str], None]) -> bytes | None:
        """The newest packed state.

        Raises:
            UserError: it belongs to another store.
        """
        content = self.checkpoints.load(warn)
        if content is not None and (digest := deserialize(content)["store_digest"]) != self.field.store_digest:
            raise UserError(
                f"the store has changed since the checkpoint in '{self.folder.url}': its digest is "
                f"{self.field.store_digest}, the checkpoint's {digest}. Start a new run beside it with --new"
            )
        return content

    def write_record(self) -> None:
        """Write down what is trained, on what and where, for its run in MLflow."""
        config, field = self.config, self.field
        machine = hardware()
        size = asdict(model_cost(config.model, field.frame_shape))
        tags = {
            "mcrnn.machine": f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gb']:g} GB",
            "mcrnn.gpus": ", ".join(machine["gpus"]) or "none",
            "mcrnn.store_digest": field.store_digest,
        }
        dataset = {
            "name": config.data.store,
            "source": field.store or config.data.store,
            "digest": field.store_digest,
            "recipe": field.recipe,
            "schema": {"variable": field.variable, "units": field.units, "channels": field.channels},
        }
        write_record(
            self.folder,
            self.run_name,
            tags=dict(self.tags) | tags,
            params=config.model_dump() | {"size": size},
            files={CONFIGURATION_FILE: config.model_dump(), "machine.json": machine},
            dataset=dataset,
        )

    def finish(self, end: End, message: str = "") -> None:
        """Write down how it ended, unless it goes on."""
        if end != End.INTERRUPTED:
            self.folder.write(END_FILE, json.dumps({"end": end, "message": message}).encode())
