"""What an earlier version has written down is compared with what is configured now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mcrnn.config.comparison import completed, differences
from mcrnn.config.loading import load_configuration, load_search
from mcrnn.errors import UserError
from mcrnn.search.search_run import MAY_CHANGE
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import CONFIGURATION_FILE, RunFolder

SPACE = "search_spaces/ns.yaml"


def stored(*settings: str) -> dict[str, Any]:
    """A search as it is written down."""
    return json.loads(json.dumps(load_search(SPACE, settings).content())) | {"store_digest": "d"}


def without(content: dict[str, Any], path: str) -> dict[str, Any]:
    """The same as a version would have written it that did not have a field."""
    copy = json.loads(json.dumps(content))
    *parents, leaf = path.split(".")
    node = copy
    for part in parents:
        node = node[part]
    del node[leaf]
    return copy


@pytest.mark.parametrize("path", ["search.seed", "search.asha.reduction_factor", "search.asha", "search.cover"])
def test_search_goes_on_that_was_started_before_a_field_was_added(tmp_path: Path, path: str) -> None:
    folder, now = RunFolder(LocalFolder(tmp_path)), stored()
    folder.location.write(CONFIGURATION_FILE, json.dumps(without(now, path)).encode())
    folder.claim(now, MAY_CHANGE)
    recorded = folder.read_configuration()
    assert recorded == without(now, path)  # which means the same
    assert recorded is not None
    assert completed(recorded) == completed(now)


def test_search_with_other_weights_of_channels_is_another_search() -> None:
    now = stored("validation.channel_weights={z: 2}")
    assert differences(stored(), stored("validation.channel_weights=null")) == {}
    assert list(differences(stored(), now).values()) == ["validation.channel_weights is {'z': 2}, was not given"]


def test_run_goes_on_that_was_started_before_a_field_was_added(tmp_path: Path) -> None:
    file = "search_spaces/paper/ns_s25_tf20.yaml"
    now = load_configuration(file, ["model.architecture=minconvexplstm"]).model_dump()
    folder = RunFolder(LocalFolder(tmp_path))
    for path in ("train.plateau_factor", "model.dropout"):
        folder.location.write(CONFIGURATION_FILE, json.dumps(without(now, path)).encode())
        folder.claim(now)


def test_another_value_than_the_default_of_an_added_field_is_refused(tmp_path: Path) -> None:
    folder, now = RunFolder(LocalFolder(tmp_path)), stored("search.asha.reduction_factor=4")
    folder.location.write(CONFIGURATION_FILE, json.dumps(without(now, "search.asha.reduction_factor")).encode())
    with pytest.raises(UserError, match=r"search.asha.reduction_factor is 4, was not given\. Start a new one"):
        folder.claim(now, MAY_CHANGE)


def test_field_that_has_no_default_or_is_no_field_must_be_the_same() -> None:
    now = stored()
    assert differences(without(now, "store_digest"), now) == {"store_digest": "store_digest is d, was not given"}
    store = now["data"]["store"]
    assert differences(without(now, "data.store"), now) == {"data.store": f"data.store is {store}, was not given"}


def test_field_left_out_of_the_file_is_its_default() -> None:
    now = stored()
    now["train"].pop("optimizer", None)
    before = json.loads(json.dumps(now))
    before["train"]["optimizer"] = "adam"
    assert differences(before, now) == differences(now, before) == {}


def test_field_that_is_added_to_the_entries_of_a_space_is_its_default() -> None:
    now = stored()
    before = json.loads(json.dumps(now))
    del before["space"]["train.learning_rate"][0]["log"]
    (only,) = differences(before, now).values()
    assert only.startswith("space.train.learning_rate is ")
    now["space"]["train.learning_rate"][0]["log"] = False
    assert differences(before, now) == {}


def test_section_that_is_left_out_differs_from_one_with_defaults() -> None:
    assert "search.confirm.seeds" not in completed({"search": {"confirm": None}})
    given = completed({"search": {"confirm": {}}})
    assert given["search.confirm.seeds"] == 5
    assert differences({"search": {"confirm": None}}, {"search": {"confirm": {"seeds": 5}}})
