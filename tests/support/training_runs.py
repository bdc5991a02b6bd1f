"""The training that the integration tests disturb, and what it gives when nothing does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcrnn.tracking.run_folder import METRICS_FILE
from tests.conftest import CommandRunner

TIMES = ("seconds", "frames_per_second", "time")
EPOCHS = 12
CONTENT: dict[str, Any] = {
    "name": "run",
    "data": {"store": "data/tiny.zarr", "coarsen": 2, "sequence_length": 6, "windows_per_epoch": 60, "noise": 0.01},
    "model": {"architecture": "minconvgru", "hidden_size": 8, "layers": 2},
    "train": {"epochs": EPOCHS, "batch_size": 4, "teacher_forcing_steps": 4, "checkpoint_minutes": 0.002},
    "validation": {"warm_up": 4, "horizon": 5},
}


def timeless(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """The metrics without those that differ from run to run."""
    return [{k: v for k, v in epoch.items() if k not in TIMES and not k.startswith("system/")} for epoch in metrics]


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of each epoch that the run has recorded so far."""
    file = folder / METRICS_FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def undisturbed(command: CommandRunner, root: Path, file: str, *arguments: str) -> list[dict[str, float]]:
    """The metrics of the training that nothing interrupts."""
    result = command("mcrnn.train", file, "--set", "name=undisturbed", *arguments)
    assert result.returncode == 0, result.stderr
    metrics = timeless(metrics_of(root / "runs/undisturbed"))
    assert len(metrics) == EPOCHS
    return metrics
