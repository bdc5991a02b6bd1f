"""Figures of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcrnn.reports import search_figures

ARCHITECTURE, GROUPS = "model.architecture", "model.norm_groups"


def trial(number: int, end: str, **more: Any) -> dict[str, Any]:
    values = {ARCHITECTURE: "convgru", "train.learning_rate": 10.0 ** -(number + 2), **more}
    return {"trial": number, "end": end, "best": 0.5 - 0.1 * number, "values": values}


@pytest.mark.parametrize("of_the_stopped", [{}, {GROUPS: 2}], ids=["never", "only when stopped"])
def test_field_whose_condition_never_held_has_no_axis(of_the_stopped: dict[str, Any], tmp_path: Path) -> None:
    trials = [trial(0, "finished"), trial(1, "finished"), trial(2, "stopped", **of_the_stopped)]
    fields = [ARCHITECTURE, "train.learning_rate", GROUPS]
    paths = search_figures.draw(tmp_path, trials, fields, {})
    assert [path.stem for path in paths] == ["history", "slices", "parallel_coordinates"]
    assert all(path.stat().st_size for path in paths)
