"""Two gloo workers of Ray Train: the same training as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from mcrnn.models import trained_model
from mcrnn.storage.local import LocalFolder
from tests.commands.test_commands import CONFIGURATION
from tests.conftest import CommandRunner

pytestmark = pytest.mark.integration


@pytest.mark.soak
def test_two_workers_train_the_model_that_one_trains(command: CommandRunner, root: Path, ray_folder: Path) -> None:
    results = {}
    for workers in (1, 2):
        content = CONFIGURATION | {
            "name": f"workers-{workers}",
            # batches of 4 and 2 of the 6 samples: the second leaves one window for each worker
            "train": {"epochs": 2, "batch_size": 4, "teacher_forcing_steps": 4, "workers": workers},
        }
        (root / "file.yaml").write_text(yaml.safe_dump(content))
        finished = command("mcrnn.train", "file.yaml")
        assert finished.returncode == 0, finished.stderr + finished.stdout
        folder = root / "runs" / f"workers-{workers}"
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        results[workers] = metrics, trained_model.load(LocalFolder(folder / "model")).network.state_dict()
    one, two = results[1], results[2]
    for a, b in zip(one[0], two[0], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["rmse_closed_loop"] == pytest.approx(b["rmse_closed_loop"], rel=1e-5)
    for name, weight in one[1].items():
        assert torch.allclose(weight, two[1][name], rtol=1e-4, atol=1e-6), name
