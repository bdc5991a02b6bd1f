from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcrnn.config.loading import load_configuration, load_search
from mcrnn.config.paths import known_fields
from mcrnn.config.sections import ModelConfig
from mcrnn.errors import UserError

PROJECT = Path(__file__).parent.parent.parent

MINIMAL: dict[str, Any] = {
    "name": "test",
    "data": {"store": "data/x.zarr"},
    "model": {"architecture": "convgru"},
    "search": {"trials": 3},
    "space": {
        "model.architecture": {"choice": ["convgru", "minconvgru"]},
        "model.hidden_size": {"int": [4, 8]},
        "train.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    },
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(content: Any) -> str:
        path = tmp_path / "file.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return write


def changed(path: str, value: Any) -> dict[str, Any]:
    """The minimal search with one value replaced, or removed where it is None."""
    content = yaml.safe_load(yaml.safe_dump(MINIMAL))
    node, (*parents, leaf) = content, path.split("/")
    for parent in parents:
        node = node.setdefault(parent, {})
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    return content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": [4, 0]}, "must be a whole number from 1 to 4096, or a list of at most 64 such, not [4, 0]"),
        ({"hidden_size": []}, "must be a whole number"),
        ({"hidden_size": True}, "must be a whole number"),
        ({"hidden_size": [4, 8], "layers": 3}, "layers (3) and hidden_size (2 widths) do not agree"),
        ({"hidden_size": 8, "norm": "group", "norm_groups": 3}, "norm_groups (3) must divide hidden_size (8)"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.model_validate({"architecture": "convgru", **fields})


def test_widths_give_the_number_of_layers_also_after_a_round_trip() -> None:
    config = ModelConfig.model_validate({"architecture": "convgru", "hidden_size": [4, 8, 6]})
    assert config.widths == [4, 8, 6]
    assert ModelConfig.model_validate(config.model_dump()) == config
    assert ModelConfig(architecture="convgru", hidden_size=5, layers=2).widths == [5, 5]


def test_space_takes_the_place_of_fields(write: Any) -> None:
    search = load_search(write(changed("model", {"layers": 2})))
    config = search.configuration(
        {"model.architecture": "minconvgru", "model.hidden_size": 5, "train.learning_rate": 1e-3}
    )
    assert config.model.architecture == "minconvgru"
    assert config.model.hidden_size == 5
    assert config.model.layers == 2
    assert config.train.learning_rate == 1e-3


def test_numbers_in_exponent_notation_without_a_point_are_numbers(write: Any) -> None:
    text = yaml.safe_dump(MINIMAL, sort_keys=False).replace("0.0001", "1e-4")
    assert "1e-4" in text  # which YAML 1.1 reads as a string
    assert load_search(write(text)).space.entries["train.learning_rate"][0].float_range == (1e-4, 1e-2)


def test_what_is_tried_first_is_possible(write: Any) -> None:
    entries = {
        "data.sequence_length": {"int": [4, 20]},
        "train.teacher_forcing_steps": {"int": [1, "data.sequence_length"]},
    }
    content = changed("space", MINIMAL["space"] | entries)

    def first_of(first: list[dict[str, Any]], *settings: str) -> list[dict[str, Any]]:
        return load_search(write(content | {"search": {"first": first}}), settings).search.first

    both = {"data.sequence_length": 8, "train.teacher_forcing_steps": 8}
    assert first_of([both]) == [both]
    with pytest.raises(UserError, match=r"teacher_forcing_steps is from 1 to 8, not 9"):
        first_of([both | {"train.teacher_forcing_steps": 9}])
    with pytest.raises(
        UserError, match=r"a value of train\.teacher_forcing_steps needs one of data\.sequence_length, too"
    ):
        first_of([{"train.teacher_forcing_steps": 8}])
    with pytest.raises(UserError, match=r"a grid tries every combination once: leave first empty"):
        first_of([both], "search.sampler=grid")
    # a text in YAML 1.1, because it has no point
    assert first_of([{"train.learning_rate": "1e-3"}]) == [{"train.learning_rate": 1e-3}]
    convgru, other = {"model.architecture": "convgru"}, {"model.architecture": "minconvgru"}
    assert first_of([convgru | both, other], "model.architecture=convgru") == [both]
    with pytest.raises(UserError, match=r"search\.first\.1: train\.learning_rate is from"):  # as in the file
        first_of([other, {"train.learning_rate": 9.0}], "model.architecture=convgru")


@pytest.mark.parametrize("name", sorted(str(p.relative_to(PROJECT)) for p in PROJECT.glob("search_spaces/**/*.yaml")))
def test_shipped_files_are_valid_and_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load_search(name)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data/stor", "x", "data.stor: unknown key; did you mean 'store'?"),
        ("model/hidden_sise", 3, "model.hidden_sise: unknown key; did you mean 'hidden_size'?"),
        ("trian", {}, "trian: unknown key; did you mean 'train'?"),
        ("search/trails", 3, "search.trails: unknown key; did you mean 'trials'?"),
        ("search/asha", {"grace_epoch": 1}, "search.asha.grace_epoch: unknown key; did you mean 'grace_epochs'?"),
        ("space/model.hidden_size/log_scale", True, "unknown key"),
        ("space/model.hiden_size", {"int": [1, 2]}, "did you mean 'model.hidden_size'?"),
        ("data/store", None, "data.store: is missing"),
        ("name", None, "name: is missing"),
        ("name", "a/b", "name: string should match"),
        ("model/decode", "last", "not 'last'"),
        ("data", [1, 2], "data: must be a mapping"),
        ("data/coarsen", 0, "data.coarsen: input should be greater than or equal to 1, not 0"),
        ("train", {"weight_decay": float("nan")}, "train.weight_decay: input should be"),
        (
            "train",
            {"teacher_forcing_steps": 21},
            "train.teacher_forcing_steps (21) is above data.sequence_length (20)",
        ),
        ("space", {}, "space: needs at least one entry"),
        ("space/model.hidden_size", {"int": [8, 4]}, "the lower bound 8 is above the upper bound 4"),
        ("space/model.hidden_size", {"int": [0, 4]}, "space.model.hidden_size: must be a whole number from 1 to 4096"),
        ("model/kernel_size", 4, "kernel_size must be odd"),
        ("space/model.channels_out", {"int": [1, 2]}, "is the same for all trials and cannot be searched"),
        ("space/model.hidden_size", {"int": [4, 8], "choice": [4]}, "needs exactly one of choice, int, float"),
        ("space/model.hidden_size", {}, "needs exactly one of choice, int, float"),
        ("space/model.hidden_size", {"choice": []}, "at least 1 item"),
        ("space/model.architecture", {"choice": ["convgru", "gru"]}, "(got 'gru')"),
        ("space/train.learning_rate", {"float": [0, 1], "log": True}, "log needs bounds above 0"),
        ("space/train.teacher_forcing_steps", {"int": [5, 25]}, "is above data.sequence_length"),
        (
            "space/data.store",
            {"choice": ["a", "b"]},
            "data.store is the same for all trials and cannot be searched",
        ),
        ("space/validation.horizon", {"int": [1, 9]}, "cannot be searched"),
        ("space/search.trials", {"int": [1, 9]}, "cannot be searched"),
        ("search/cover", "model.layers", "search.cover: 'model.layers' is no entry of the space"),
        ("search/cover", "model.hidden_size", "search.cover: 'model.hidden_size' is no choice"),
        (
            "search/first",
            [{"model.hidden_sise": 4}],
            "first.0: 'model.hidden_sise' is no entry of the space; did you mean",
        ),
        ("search/first", [{}, {"model.hidden_size": 99}], "search.first.1: model.hidden_size is from "),
        ("search/first", [{"model.hidden_size": 4.5}], "not 4.5"),
        ("search/first", [{"model.architecture": "gru"}], "not 'gru'"),
        ("search/first", {"model.hidden_size": 4}, "search.first: input should be a valid list"),
        ("search/first", [4], "search.first.0: must be a mapping of keys to values"),
        ("search/sampler", "grid", "space.train.learning_rate: a grid needs choice, int without log"),
    ],
)
def test_mistake_is_named_with_its_place(write: Any, path: str, value: Any, message: str) -> None:
    file = write(changed(path, value))
    with pytest.raises(UserError) as error:
        load_search(file)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{file}:")
    assert "\n" not in str(error.value)


def test_mistake_has_its_line(write: Any) -> None:
    file = write("name: x\ndata:\n  store: s\n  coarsn: 2\nmodel: {architecture: convgru}\n")
    with pytest.raises(UserError, match=r"file\.yaml:4: data\.coarsn"):
        load_configuration(file)


def test_all_mistakes_are_named_at_once(write: Any) -> None:
    content = changed("data/coarsen", 0)
    content["train"] = {"epoch": 3}
    content["space"]["model.hidden_size"] = {"int": [8, 4]}
    content["search"]["trials"] = 0
    with pytest.raises(UserError) as error:
        load_search(write(content))
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("just words", "is not a configuration"),
        ("", "is not a configuration"),
        ("- 1\n- 2\n", "is not a configuration"),
        ("name: x\nname: y\n", r"file.yaml:2: 'name' is given twice"),
        ("name: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("a: &x [*x]\nspace: {}\n", "a: unknown key"),
    ],
)
def test_what_is_no_configuration_is_refused(write: Any, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_search(write(content))


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not a YAML file"):
        load_search(str(tmp_path / "file.yaml"))


def test_missing_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is no file 'search_spaces/dmo.yaml'; did you mean 'search_spaces/demo"):
        load_search("search_spaces/dmo.yaml")


def test_file_for_the_other_command_is_refused(write: Any) -> None:
    with pytest.raises(
        UserError, match=r"leaves open: model.hidden_size \(from 4 to 8\); train.*search with python -m mcrnn\.tune"
    ):
        load_configuration(write(MINIMAL))
    with pytest.raises(UserError, match=r"use python -m mcrnn\.train"):
        load_search(write({k: v for k, v in MINIMAL.items() if k not in ("space", "search")}))


def test_every_field_has_a_dotted_path() -> None:
    assert {"model.hidden_size", "data.sequence_length", "train.learning_rate", "name"} <= set(known_fields())


def test_one_training_of_a_space_refuses_a_base_that_does_not_fit(write: Any) -> None:
    content = changed("space/train.teacher_forcing_steps", {"int": [5, 15]})
    content["train"] = {"teacher_forcing_steps": 40}
    file = write(content)
    load_search(file)  # which never takes the base's value
    others = ["model.architecture=convgru", "model.hidden_size=4", "train.learning_rate=1e-3"]
    with pytest.raises(UserError, match=r"teacher_forcing_steps \(40\) is above data\.sequence_length"):
        load_configuration(file, others)


@pytest.mark.parametrize("name", sorted(p.name for p in PROJECT.glob("search_spaces/paper/*.yaml")))
def test_the_papers_files_train_every_architecture_with_every_seed_once(name: str) -> None:
    search = load_search(f"search_spaces/paper/{name}")
    assert search.search.sampler == "grid"
    grid = [(v["model.architecture"], v["train.seed"]) for v in search.space.grid()]
    assert len(grid) == len(set(grid)) == 25
