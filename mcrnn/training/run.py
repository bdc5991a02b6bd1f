"""One training as plain data, and the record that it keeps in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.errors import UserError
from mcrnn.models import model_cost
from mcrnn.tracking.provenance import hardware, numerics
from mcrnn.tracking.run_folder import CONFIGURATION_FILE, MACHINE_FILE, RunEnd, RunFolder
from mcrnn.training.checkpoints import Checkpoints, deserialize
from mcrnn.training.session import End


@dataclass(frozen=True)
class TrainingRun:
    """One training, wherever it runs. It is plain data, so that it can be sent to workers."""

    config: Configuration
    field: FieldDescription
    """The field that the model is trained on."""
    folder: RunFolder
    """The folder of its checkpoints, its model and its record."""
    run_name: str
    """The name of its run in MLflow."""
    tags: tuple[tuple[str, str], ...] = ()
    """Tags of its run in MLflow, as pairs of name and value."""
    target: int | None = None
    """Epoch after which the training is paused; None to train to the end."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this training."""
        return Checkpoints(self.folder.checkpoints)

    def load_checkpoint(self, warn: Callable[[str], None]) -> bytes | None:
        """Read the newest checkpoint.

        Args:
            warn: takes a line for each damaged checkpoint, which is removed.

        Returns:
            The serialized state, None where there is no checkpoint.

        Raises:
            UserError: the checkpoint belongs to another store.
        """
        content = self.checkpoints.load(warn)
        if content is not None and (digest := deserialize(content)["store_digest"]) != self.field.store_digest:
            raise UserError(
                f"the store has changed since the checkpoint in '{self.folder.url}': its digest is "
                f"{self.field.store_digest}, the checkpoint's {digest}. Start a new run beside it with --new"
            )
        return content

    def write_record(self) -> None:
        """Write down what is trained, on which data and on which machine, for the run in MLflow."""
        config, field = self.config, self.field
        machine = hardware() | numerics()
        size = asdict(model_cost(config.model, field.frame_shape))
        tags = {
            "mcrnn.machine": f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gb']:g} GB",
            "mcrnn.gpus": ", ".join(machine["gpus"]) or "none",
            "mcrnn.store_digest": field.store_digest,
        }
        self.folder.write_record(
            self.run_name,
            tags=dict(self.tags) | tags,
            params=self._parameters() | {"size": size},
            files={CONFIGURATION_FILE: config.model_dump(), MACHINE_FILE: machine},
            dataset=field.as_dataset(config.data.store),
        )

    def _parameters(self) -> dict[str, Any]:
        """Return the configuration as the parameters of a run."""
        parameters = self.config.model_dump()
        if (weights := self.config.validation.channel_weights) is not None:
            # one text, because MLflow does not take all names of channels as names of parameters
            parameters["validation"]["channel_weights"] = json.dumps(weights)
        return parameters

    def finish(self, end: End, message: str = "") -> None:
        """Write down how the training ended; nothing where it goes on after an interruption or a pause.

        Args:
            end: how it ended.
            message: the error, where memory was not enough.
        """
        if end not in (End.INTERRUPTED, End.PAUSED):
            self.folder.write_end(RunEnd(end, message))


def mlflow_status(end: End) -> str:
    """Return the status in MLflow of a run whose training ended in a certain way.

    FAILED is for errors only. A training that diverged or ran out of memory has given its result, which is that this
    configuration cannot be used, so its run is FINISHED.
    """
    return "KILLED" if end == End.INTERRUPTED else "FINISHED"
