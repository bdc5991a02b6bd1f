"""Read a YAML file into a configuration or a search, with settings of the command line in place of its values.

A file has the sections `data`, `model`, `train` and `validation`, and for a search also `search` and `space`. All
errors of a file are reported at once, each with its line and key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mcrnn.config.document import Document, is_nested
from mcrnn.config.paths import Values, known_fields, value_at, with_values
from mcrnn.config.search import NOT_SEARCHED, SearchConfig
from mcrnn.config.sections import Configuration, Section
from mcrnn.config.space import NOT_FINITE, Entries, Search, Space, SpaceEntry, read_number
from mcrnn.errors import UserError, did_you_mean

SectionT = TypeVar("SectionT", bound=Section)


def load_configuration(path: str, settings: Sequence[str] = ()) -> Configuration:
    """Read the configuration of one training.

    The file may have a space if one value is left of each of its entries. An entry of several values takes the one of
    a setting, else the one that the file's own sections give; the name of the configuration then ends with it.

    Args:
        path: Path of the file, see `mcrnn.config.document.find`.
        settings: Settings of the form `field=value`, which take the place of values in the file.

    Raises:
        UserError: The file is missing, no YAML, or has errors, all of which are in the message; or several values are
            left of an entry of the space, which the message names.
    """
    document = Document.read(path, settings)
    content = dict(document.content)
    if "space" not in content:
        content.pop("search", None)
        return _new_configuration(document, content)
    search = _read_search(document)
    values: Values = {}
    parts = [search.name]
    left_open = []
    for field in search.space:
        entry = search.space.active_entry(field, values)
        if entry is None:
            continue
        value = entry.only_value
        if value is None:
            value = value_at(search.space.base, field)
            if value is None:
                left_open.append(f"{field} ({entry})")
                value = entry.corners[0]
            parts.append(in_name(field, value))
        values[field] = value
    if left_open:
        raise UserError(
            f"{path} leaves open: {'; '.join(left_open)}. Give each a value, as in --set "
            f"{left_open[0].split(' ')[0]}=..., or search with python -m mcrnn.tune"
        )
    spaced = value_at(document.file, "space")
    parts[1:1] = [in_name(field, value) for field, value in document.settings.items() if field in spaced]
    named = {} if "name" in document.settings else {"name": "-".join(parts)}
    return _new_configuration(document, with_values(search.space.base, values | named))


def in_name(field: str, value: Any) -> str:
    """Return the part of a configuration's name that tells the value of a field, such as `seed-3`."""
    text = value if isinstance(value, str) else f"{field.rsplit('.', 1)[-1]}-{value}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def load_search(path: str, settings: Sequence[str] = ()) -> Search:
    """Read a search, and check that every value of every entry of its space makes a valid configuration.

    Args:
        path: Path of the file, see `mcrnn.config.document.find`.
        settings: Settings of the form `field=value`, which take the place of values in the file. A field of the space
            that is set is not searched.

    Raises:
        UserError: The file is missing, no YAML, or has errors, all of which are in the message.
    """
    document = Document.read(path, settings)
    if "space" not in document.content:
        raise UserError(f"{path} has no 'space' to search; use python -m mcrnn.train for a single configuration")
    search = _read_search(document)
    if not search.space.entries:
        raise UserError(f"{path}: the settings leave nothing to search; use python -m mcrnn.train with them")
    return search


def _read_search(document: Document) -> Search:
    """Read the search of a file.

    Raises:
        UserError: The file has errors, all of which are in the message.
    """
    content = dict(document.content)
    raw_space = content.pop("space")
    raw_search = content.pop("search", {})
    search = _validate(document, SearchConfig, raw_search, ("search",))
    if not isinstance(raw_space, dict) or not (raw_space or value_at(document.file, "space")):
        document.add_error(("space",), "needs at least one entry such as model.hidden_size")
        raw_space = {}
    space = Space(content, _sort(document, _read_entries(document, raw_space)))
    if not is_nested(content):
        _validate(document, Configuration, content)
    else:
        _check_corners(document, space)
    cover = raw_search.get("cover") if isinstance(raw_search, dict) else None
    if cover is not None and cover not in space and cover not in document.settings:
        document.add_error(("search", "cover"), f"'{cover}' is no entry of the space")
    for path, entries in space.entries.items():
        if search is not None and search.sampler == "grid" and not all(entry.is_finite for entry in entries):
            document.add_error(("space", path), NOT_FINITE)
        if path == cover and not all(entry.choice for entry in entries):
            document.add_error(("search", "cover"), f"'{cover}' is no choice, of which each is to be tried")
    if search is not None:
        first = _possible(document, space, search.first)
        search = search.model_copy(update={"first": list(first.values())})
        for number, values in ({} if document.errors else first).items():
            if (text := _mistake(space, values)) is not None:
                document.add_error(("search", "first", number), text)
    document.raise_errors()
    assert search is not None
    return Search(space, search)


def _mistake(space: Space, values: Values) -> str | None:
    """Say what keeps some values from being part of a point of the space; None if nothing does."""
    for path, value in values.items():
        if path not in space:
            return f"'{path}' is no entry of the space{did_you_mean(path, list(space))}"
        needed = {name for entry in space.entries[path] for name in entry.needs if name in space}
        if missing := sorted(needed - values.keys()):
            return f"a value of {path} needs one of {missing[0]}, too"
        entry = space.active_entry(path, values)
        if entry is None:
            return f"{path} is not searched where the other values hold"
        if not entry.contains(value):
            return f"{path} is {entry}, not {value!r}"
    return None


def _possible(document: Document, space: Space, first: list[Values]) -> dict[int, Values]:
    """Return the configurations that are tried first, as far as the settings leave them possible, by their numbers.

    A field that is set is not searched: configurations with another value are left out, and it is left out of the
    others.
    """
    settings = document.settings
    fitting = {
        number: values
        for number, values in enumerate(first)
        if all(values[path] == settings[path] for path in values if path in settings)
    }

    def read(path: str, value: Any) -> Any:
        return read_number(value) if any(entry.bounds for entry in space.entries.get(path, [])) else value

    return {
        number: {path: read(path, value) for path, value in values.items() if path not in settings}
        for number, values in fitting.items()
    }


def _read_entries(document: Document, raw_space: dict[Any, Any]) -> Entries:
    """Read the entries of the space, in the order of the file, without those that have errors."""
    space: Entries = {}
    fields = known_fields()
    searchable = [field for field in fields if not field.startswith(NOT_SEARCHED)]
    for key, raw in raw_space.items():
        location = ("space", key)
        if str(key).startswith(NOT_SEARCHED):
            document.add_error(location, f"{key} is the same for all trials and cannot be searched")
            continue
        if key not in fields:
            near = did_you_mean(str(key), searchable)
            document.add_error(location, f"no field of the configuration{near}")
            continue
        if raw == []:
            document.add_error(location, "needs at least one alternative")
        entries = [_validate(document, SpaceEntry, one, location) for one in _as_list(raw)]
        unknown = {name for entry in entries if entry for name in entry.needs} - set(fields)
        for name in sorted(unknown):
            document.add_error(location, f"'{name}' is no field{did_you_mean(name, fields)}")
        if None not in entries and not unknown:
            space[key] = [entry for entry in entries if entry]
    return space


def _as_list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else [raw]


def _sort(document: Document, space: Entries) -> Entries:
    """Sort the entries so that each follows those that its conditions and bounds name."""
    needed = {
        path: {other for entry in alternatives for other in entry.needs if other in space}
        for path, alternatives in space.items()
    }
    ordered: Entries = {}
    while len(ordered) < len(space):
        ready = [path for path in space if path not in ordered and needed[path] <= ordered.keys()]
        if not ready:
            remaining = [path for path in space if path not in ordered]
            text = f"what {', '.join(remaining)} depend on goes round in a circle"
            document.add_error(("space", remaining[0]), text)
            return ordered
        ordered |= {path: space[path] for path in ready}
    return ordered


def _check_corners(document: Document, space: Space) -> None:
    """Check that every value of every entry makes a valid configuration; it suffices to check the corners."""
    # entries with errors are missing from the space, so that its corners would be reported for what they lack
    try:
        for values in [space.completed({})] if document.errors else space.corners():
            _validate(document, Configuration, with_values(space.base, values), sampled=values)
    except ValidationError as error:
        for path, entries in space.entries.items():
            names = {name for entry in entries for name in entry.needs - entry.conditions.keys()}
            if names:
                text = _explain(SpaceEntry, error.errors()[0])
                document.add_error(("space", path), f"{text}, with the bound {', '.join(sorted(names))}")


def _new_configuration(document: Document, content: Any) -> Configuration:
    """Return a configuration.

    Raises:
        UserError: It is not valid.
    """
    configuration = _validate(document, Configuration, content)
    document.raise_errors()
    assert configuration is not None
    return configuration


def _validate(
    document: Document,
    model: type[SectionT],
    raw: Any,
    prefix: tuple[str, ...] = (),
    sampled: Values | None = None,
) -> SectionT | None:
    """Return a section, or None if it is not valid; each error is added to those of the document.

    Args:
        document: The file.
        model: The class of the section.
        raw: The content of the section.
        prefix: Keys that lead to the section, from the root.
        sampled: Values in the content that come from the space; an error in one of them is reported at its entry.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors():
            location = detail["loc"]
            path = ".".join(map(str, location))
            text = _explain(model, detail)
            if sampled and path in sampled:
                document.add_error(("space", path), f"{text} (got {sampled[path]!r})")
                continue
            if sampled and not location:
                values = ", ".join(f"{k} = {v!r}" for k, v in sampled.items())
                text = f"{text} where the space gives {values}" if len(sampled) == 1 else text
            document.add_error((*prefix, *location), text)
        return None


def _explain(model: type[BaseModel], detail: Any) -> str:
    """Word one of pydantic's errors for a user: unknown keys with the nearest known one, values with what was given."""
    location, kind = detail["loc"], detail["type"]
    if kind == "extra_forbidden":
        section: Any = model
        for part in location[:-1]:
            annotation = section.model_fields[part].annotation
            section = next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)
        known = list(section.model_fields)
        if section is Configuration:
            known += ["search", "space"]
        return f"unknown key{did_you_mean(str(location[-1]), known)}"
    if kind == "missing":
        return "is missing"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a mapping of keys to values"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    if location and kind != "value_error" and isinstance(given, str | int | float | bool):
        return f"{message[0].lower()}{message[1:]}, not {given!r}"
    return message[0].lower() + message[1:] if location else message
