"""The leaderboard ranks all models of a store."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mcrnn.data.store import FieldStore
from tests.conftest import CommandRunner
from tests.reports.test_evaluation_report import save


@pytest.mark.usefixtures("database")
def test_leaderboard_ranks_models_of_a_store_in_groups_that_cannot_be_told_apart(
    command: CommandRunner, root: Path, store: FieldStore
) -> None:
    assert refused_line(command("mcrnn.leaderboard", "data/tiny.zarr")).startswith("error: there is no model of")
    for name, scale in (("hold", 0.0), ("same", 0.0), ("worse", 3.0)):
        save(root / f"runs/{name}/model", store, scale=scale)
    assert command("mcrnn.evaluate", "runs/*", "--out", "reports/all").returncode == 0
    result = command("mcrnn.leaderboard", "data/tiny.zarr", "--out", "board", COLUMNS="200")
    assert result.returncode == 0, result.stderr
    assert "models of one rank cannot be told apart" in result.stdout
    board = json.loads((root / "board/leaderboard.json").read_text())
    ranks = {row["model"]: row["rank"] for row in board["rows"]}
    assert ranks == {"runs/hold": 1, "runs/same": 1, "runs/worse": 2, "persistence": None, "climatology": None}
    errors = [row["error"] for row in board["rows"] if row["rank"]]
    assert errors == sorted(errors)
    assert "| 2 | runs/worse" in (root / "board/leaderboard.md").read_text()
    assert r"\toprule" in (root / "board/leaderboard.tex").read_text()


def refused_line(result: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr of a command that must end with exit code 2."""
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    return line
