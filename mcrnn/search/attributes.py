"""Names of what the study of a search records beside the parameters and errors of its trials.

They stand here, and not with what they are for, so that a study can be read without importing Optuna or PyTorch.
"""

from __future__ import annotations

VALUES_ATTRIBUTE = "values"
"""User attribute of a trial: the value of each field by its dotted path."""
RESULT = "result"
"""User attribute of a trial that has ended or was paused: the metrics of its last epoch."""
END = "end"
"""User attribute of a trial that has ended: how, as a value of `mcrnn.search.trial_report.TrialEnd`."""
ERROR = "error"
"""User attribute of a failed trial: what ended it, in one line that names the file with the traceback."""
TARGET = "target"
"""User attribute of a trial: the epoch to which it is trained before it is compared with others."""
STOPPED_PAUSED = "stopped while paused"
"""User attribute of a paused trial that the end of the search has stopped; None once a larger budget let it go on."""
COPIED_FROM = "from"
"""User attribute of a trial that was copied from an earlier study: its name."""
HOURS = "hours"
"""Attribute of the study: hours that the search and its confirmation have run, over all their starts."""
