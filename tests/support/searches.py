"""A small search on the tiny store, as a file, and what its study says while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TRIALS = 8
SEARCH: dict[str, Any] = {
    "name": "s",
    "data": {"store": "data/tiny.zarr", "coarsen": 2, "sequence_length": 6, "windows_per_epoch": 24},
    "model": {"layers": 1},
    "train": {"epochs": 4, "batch_size": 4, "teacher_forcing_steps": 4, "checkpoint_minutes": 0.002},
    "validation": {"warm_up": 4, "horizon": 5},
    "search": {"trials": TRIALS, "concurrency": 1, "seed": 3, "asha": {"grace_epochs": 2, "reduction_factor": 2}},
    "space": {
        "model.architecture": {"choice": ["convgru", "minconvgru", "minconvexplstm"]},
        "model.hidden_size": [
            {"int": [2, 8], "when": {"model.architecture": "convgru"}},
            {"int": [4, 16], "step": 4, "when": {"model.architecture": ["minconvgru", "minconvexplstm"]}},
        ],
        "train.learning_rate": {"float": [1e-3, 1e-2], "log": True},
    },
}


def write(root: Path, name: str, **changes: Any) -> str:
    """Write the file of a search, SEARCH with changes in its sections, and return its name."""
    content = SEARCH | {"name": name}
    for section, values in changes.items():
        content[section] = content[section] | values
    (root / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return f"{name}.yaml"


def journal(root: Path, name: str) -> Any:
    """The study of a search, from its file alone, which the driver may be writing."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = root / "searches" / name / "study.journal"
    return optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(path))))


def tried(root: Path, name: str) -> int:
    """How many trials have ended or were paused so far."""
    try:
        return len([t for t in journal(root, name).get_trials(deepcopy=False) if "result" in t.user_attrs])
    except (KeyError, OSError):
        return 0
