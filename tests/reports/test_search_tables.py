"""Tables of a search in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcrnn.config.loading import load_search
from mcrnn.config.paths import ARCHITECTURE
from mcrnn.reports.search_tables import print_summary
from mcrnn.storage.root import Storage


@pytest.mark.parametrize("columns", [80, 200])
def test_every_value_of_the_best_trials_can_be_read_at_any_width(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    search = load_search("search_spaces/geopotential.yaml")
    values: dict[str, Any] = {path: 31_000 + number for number, path in enumerate(search.space)}
    values |= {ARCHITECTURE: "minconvexplstm", "train.learning_rate": 0.0068}
    del values["model.norm_groups"]  # its condition never held
    row = {"trial": 7, "end": "finished", "values": values, "parameters": 74_834, "epoch": 9, "epochs": 20}
    summary = {
        "trials": [row | {"best": 0.2518}], "front": [], "best_trial": 7, "confirmed": [], "importance": {},
        "model": "m", "alias": "champion", "version": 1, "test": None,
    }  # fmt: skip
    print_summary(summary, search, Storage.open(str(tmp_path)))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "groups" not in printed
    for value in [*values.values(), "74.8k", "9/20", "0.2518"]:
        assert str(value) in printed
    assert max(map(len, printed.splitlines()[: 10 if columns == 80 else 6])) <= columns
