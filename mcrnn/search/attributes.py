"""Names of what the study of a search records beside the parameters and errors of its trials.

They stand here, and not with what they are for, so that a study can be read without importing Optuna or PyTorch.
"""

from __future__ import annotations

from enum import StrEnum

VALUES_ATTRIBUTE = "values"
"""User attribute of a trial: the value of each field by its dotted path."""
RESULT = "result"
"""User attribute of a trial that has ended or was paused: the metrics of its last epoch."""
END = "end"
"""User attribute of a trial that has ended: how, as a value of `TrialEnd`."""
ERROR = "error"
"""User attribute of a failed trial: what ended it, in one line that names the file with the traceback."""
TARGET = "target"
"""User attribute of a trial: the epoch to which it is trained before it is compared with others."""
DECIDED = "decided"
"""User attribute of a trial: up to which epoch the pruner has decided on it, and whether that stops it."""
STOPPED_PAUSED = "stopped while paused"
"""User attribute of a paused trial that the end of the search has stopped; None once a larger budget let it go on."""
COPIED_FROM = "from"
"""User attribute of a trial that was copied from an earlier study: its name."""
HOURS = "hours"
"""Attribute of the study: hours that the search and its confirmation have run, over all their starts."""
CONFIRMATION, REGISTRATION = "confirmation", "registration"
"""What a search does after its trials, as its process writes it down. No request stops the last of it."""


class TrialEnd(StrEnum):
    """How a trial ended, as the study records it. The values are stored there."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """It was not worth training further, or a user has stopped it."""
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    """It raised an error, or its processes were lost, more often than `train.max_failures` allows."""

    @property
    def mlflow_status(self) -> str:
        """The status of the trial's run in MLflow."""
        return "FAILED" if self is TrialEnd.FAILED else "FINISHED"
