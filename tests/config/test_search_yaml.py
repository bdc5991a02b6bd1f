"""A search that was written down starts again from the YAML file that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcrnn.config.loading import load_search
from mcrnn.config.search_yaml import as_yaml, search_of

SPACES = sorted(Path("search_spaces").rglob("*.yaml"))


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_yaml_of_a_search_that_was_written_down_is_that_search(file: Path, tmp_path: Path) -> None:
    search = load_search(str(file), ["search.seed=7", "data.store=elsewhere.zarr", "validation.channel_weights={z: 2}"])
    written = json.loads(json.dumps(search.content())) | {"store_digest": "0123"}
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(written))
    assert load_search(str(again)) == search
    assert search_of(written) == search
