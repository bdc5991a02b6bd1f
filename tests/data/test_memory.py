from __future__ import annotations

import math
from pathlib import Path

import pytest

from mcrnn.data.memory import left_in_cgroups, memory_budget
from mcrnn.errors import UserError


def group(folder: Path, **contents: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("memory_", "memory.")).write_text(content)


def test_what_is_left_is_that_of_the_narrowest_group(tmp_path: Path) -> None:
    """A batch system limits the job, and leaves the groups above and below it unlimited."""
    group(tmp_path / "slurm", memory_max="max", memory_current="7", memory_stat="inactive_file 0")
    group(tmp_path / "slurm/job1", memory_max="1000", memory_current="800", memory_stat="anon 750\ninactive_file 50")
    group(tmp_path / "slurm/job1/step0", memory_max="max", memory_current="7", memory_stat="inactive_file 0")
    (tmp_path / "membership").write_text("0::/slurm/job1/step0\n")
    assert left_in_cgroups(tmp_path / "membership", tmp_path) == 1000 - 800 + 50


def test_groups_of_version_1_are_read(tmp_path: Path) -> None:
    contents = {"memory_limit_in_bytes": "1000", "memory_usage_in_bytes": "400", "memory_stat": "total_inactive_file 9"}
    group(tmp_path / "memory/docker/3f", **contents)
    (tmp_path / "membership").write_text("9:name=systemd:/\n4:memory:/docker/3f\n0::/\n")
    assert left_in_cgroups(tmp_path / "membership", tmp_path) == 609


def test_without_limits_the_machine_decides(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/\n")
    assert left_in_cgroups(tmp_path / "membership", tmp_path) == math.inf
    assert left_in_cgroups(tmp_path / "not Linux", tmp_path) == math.inf


def test_budget_is_half_of_what_a_group_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MCRNN_MEMORY", raising=False)
    monkeypatch.setattr("mcrnn.data.memory.left_in_cgroups", lambda: 1000.0)
    assert memory_budget() == 500.0


def test_budget_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCRNN_MEMORY", "lots")
    with pytest.raises(UserError, match="MCRNN_MEMORY is a number of GB such as 16, not 'lots'"):
        memory_budget()
