"""Three hundred damaged files: each is refused with the place of what is wrong, none with a traceback."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcrnn.config.paths import known_fields
from tests.support import shared
from tests.support.commands import ForkedProcess

NS = Path(__file__).parent.parent.parent / "search_spaces/ns.yaml"
SECTIONS = ("data", "model", "train", "validation", "search")
Content = dict[str, Any]


def typo(rng: random.Random, content: Content) -> str:
    section = rng.choice([s for s in ("data", "train", "validation", "search") if content[s]])
    key = rng.choice(list(content[section]))
    wrong = key[:1] + key
    content[section][wrong] = content[section].pop(key)
    return wrong


def wrong_type(rng: random.Random, content: Content) -> str:
    section, key = rng.choice(
        [("train", "epochs"), ("validation", "warm_up"), ("search", "trials"), ("data", "coarsen")]
    )
    content[section][key] = rng.choice(["many", [1, 2], {"a": 1}, 1.5, "1e400", -3, 0, True and "yes"])
    return f"{section}.{key}"


def unknown_entry(rng: random.Random, content: Content) -> str:
    path = rng.choice(
        ["model.hidden", "train.lr", "nonsense", "model", "data.store", "validation.horizon", "search.trials"]
    )
    content["space"][path] = {"int": [1, 2]}
    return path


def bad_entry(rng: random.Random, content: Content) -> str:
    path = rng.choice(list(content["space"]))
    content["space"][path] = rng.choice(
        [
            {},
            [],
            None,
            3,
            "choice",
            {"choice": []},
            {"int": [5, 1]},
            {"int": [1]},
            {"int": [1, 2, 3]},
            {"float": [0, 1], "log": True},
            {"float": [0.1, 1], "log": True, "step": 0.1},
            {"int": [1, 4], "step": 0.5},
            {"choice": [1], "int": [1, 2]},
            {"choice": [1], "log": True},
            {"choice": ["x"], "when": {}},
            {"choice": ["x"], "when": {"model.nothing": 1}},
            {"chioce": [1]},
            {"int": ["a", "b"]},
            {"float": [".nan", 1]},
        ]
    )
    return path


def bad_value(rng: random.Random, content: Content) -> str:
    path, entry = rng.choice(
        [
            ("model.architecture", {"choice": ["convlstm", "transformer"]}),
            ("model.layers", {"int": [0, 3]}),
            ("model.layers", {"int": [1, 1000]}),
            ("train.learning_rate", {"float": [-1, 1]}),
            ("train.batch_size", {"choice": [4, "eight"]}),
            ("train.weight_decay", {"choice": [-0.1]}),
            ("train.gradient_clip", {"choice": [0, 1]}),
            ("model.prediction", {"choice": ["next"]}),
            ("data.sequence_length", {"int": [0, 5]}),
            ("train.teacher_forcing_steps", {"int": [5, 99]}),
        ]
    )
    content["space"][path] = entry
    return path


def circle(rng: random.Random, content: Content) -> str:
    a, b = rng.sample(["model.layers", "train.batch_size", "model.prediction", "train.weight_decay"], 2)
    content["space"][a] = {"choice": content["space"][a].get("choice", [2, 3]), "when": {b: 1}}
    content["space"][b] = {"choice": content["space"][b].get("choice", [2, 3]), "when": {a: 1}}
    return a


def budget_out_of_reach(rng: random.Random, content: Content) -> str:
    content["space"]["model.parameters"] = {"choice": [rng.choice([1, 20, 10**11])]}
    return "model.parameters"


def missing_section(rng: random.Random, content: Content) -> str:
    key = rng.choice(["name", "data"])
    del content[key]
    return key


def section_of_another_kind(rng: random.Random, content: Content) -> str:
    key = rng.choice([*SECTIONS, "space", "name"])
    content[key] = rng.choice([3, [1, 2], 1.5, None if key == "name" else "text"])
    return key


def contradiction(rng: random.Random, content: Content) -> str:
    key, value = rng.choice(
        [
            ("objectives", ["error", "error"]),
            ("objectives", ["parameters"]),
            ("objectives", ["error", "parameters"]),
            ("sampler", "nsga2"),
            ("sampler", "best"),
            ("cover", "model.kernel_size"),
            ("confirm", {"seeds": 0}),
            ("warm_start", "ns"),
            ("asha", {"grace_epochs": 0}),
            ("storage", 3),
        ]
    )
    content["search"][key] = value
    return "search"


def impossible_first(rng: random.Random, content: Content) -> str:
    content["search"]["first"] = rng.choice(
        [
            [{"model.layers": 9}],
            [{}, {"model.depth": 3}],
            [{"model.architecture": "gru"}],
            [{"train.teacher_forcing_steps": 6}],
            [{"train.teacher_forcing_steps": 12, "data.sequence_length": 8}],
            [{"train.learning_rate": "fast"}],
            [["model.layers", 3]],
            {"model.layers": 3},
        ]
    )
    return "search.first"


MUTATIONS: list[Callable[[random.Random, Content], str]] = [
    typo,
    wrong_type,
    unknown_entry,
    bad_entry,
    bad_value,
    circle,
    budget_out_of_reach,
    missing_section,
    section_of_another_kind,
    contradiction,
    impossible_first,
]

TEXTS: list[tuple[str, bytes]] = [
    ("binary", bytes(range(256))),
    ("empty", b""),
    ("list", b"- a\n- b\n"),
    ("number", b"3\n"),
    ("not closed", b"name: [a\n"),
    ("tab", b"name:\n\t- a\n"),
    ("twice", b"name: a\nname: b\n"),
    ("object", b"name: !!python/object/apply:os.system ['true']\n"),
    ("huge", b"name: " + b"a" * 5_000_000 + b"\n"),
    ("deep", b"[" * 5_000 + b"]" * 5_000),
    ("alias", b"a: &a [1]\nname: *b\n"),
    ("zeros", b"\0" * 1000),
]

RUN = """
import json, sys, traceback
from pathlib import Path
from mcrnn.config.loading import load_search
from mcrnn.errors import UserError
from mcrnn.storage.root import Storage
root, cases = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
storage = Storage.open(root)
for case in cases:
    try:
        search = load_search(case["file"])
        from mcrnn.search.search_run import check
        check(search, storage)
        result = ["accepted", ""]
    except UserError as error:
        result = ["refused", str(error)]
    except BaseException:
        result = ["traceback", traceback.format_exc()]
    print(json.dumps([case, *result]))
assert "ray" not in sys.modules
"""


def test_three_hundred_damaged_files_are_refused_by_place(root: Path) -> None:
    whole = yaml.safe_load(NS.read_text())
    whole["data"] |= {"store": "data/tiny.zarr", "coarsen": 1}
    whole["validation"] = {"warm_up": 4, "horizon": 5}
    whole["space"]["data.sequence_length"] = {"int": [5, 13]}
    for values in whole["search"]["first"]:
        values |= {"data.sequence_length": 13, "train.teacher_forcing_steps": 9}
    cases = []

    def add(name: str, content: bytes, place: str) -> None:
        file = root / f"{len(cases):03d}.yaml"
        file.write_bytes(content)
        cases.append({"file": str(file), "name": name, "place": place})

    add("whole", yaml.safe_dump(whole, sort_keys=False).encode(), "")
    for name, text in TEXTS:
        add(name, text, ".yaml")
    number = 0
    while len(cases) <= 300:
        mutation = MUTATIONS[number % len(MUTATIONS)]
        content = copy.deepcopy(whole)
        place = mutation(random.Random(number), content)
        add(mutation.__name__, yaml.safe_dump(content, sort_keys=False).encode(), place)
        number += 1
    (root / "cases.json").write_text(json.dumps(cases))
    command = ["-c", RUN, str(root), str(root / "cases.json")]
    process = ForkedProcess(shared.command_server(), command, root, os.environ)
    out, err = process.communicate(280)
    assert process.returncode == 0, err
    (case, end, message), *rest = [json.loads(line) for line in out.splitlines()]
    assert end == "accepted", message
    assert len(rest) == 300
    for case, end, message in rest:
        assert end == "refused", (case, Path(case["file"]).read_text(errors="replace")[:2000], message)
        assert case["place"] in message, (case, message)


def test_schema_takes_the_shipped_files_and_knows_every_field() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from mcrnn.schema import json_schema

    schema = json_schema()
    for file in NS.parent.rglob("*.yaml"):
        jsonschema.validate(yaml.safe_load(file.read_text()), schema)
    text = json.dumps(schema)
    assert all(f'"{path.rsplit(".", 1)[-1]}"' in text for path in known_fields())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "data": {"store": "s"}, "model": {}, "space": {"model.hiden": {}}}, schema)
