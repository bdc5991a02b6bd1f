"""Read the YAML files, with settings of the command line in place of what they say.

A file has the sections `data`, `model`, `train` and `validation`, and for a search also `search` and `space`.
All its mistakes are found at once, each with its line and key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mcrnn.config.document import _Document, _is_nested
from mcrnn.config.paths import Values, given, known_fields, with_values
from mcrnn.config.search import NOT_SEARCHED, SearchConfig
from mcrnn.config.sections import Configuration, Section
from mcrnn.config.space import NOT_FINITE, Entries, Search, Space, SpaceEntry
from mcrnn.errors import UserError, did_you_mean

SectionT = TypeVar("SectionT", bound=Section)


def load_configuration(path: str, settings: Sequence[str] = ()) -> Configuration:
    """Read a file without a space, or one whose space leaves one value for every entry.

    An entry of several values has the one of a setting, else the one that the file's own sections give. The
    configuration's name then ends with those values.

    Args:
        path: of the file.
        settings: `field=value`, in place of what is in the file.

    Raises:
        UserError: the file is missing, no YAML, or has mistakes, all of which are in the message; or entries of
            the space are left open, which it names.
    """
    document = _Document.read(path, settings)
    content = dict(document.content)
    if "space" not in content:
        content.pop("search", None)
        return _checked(document, Configuration, content)
    search = _search(document)
    values: Values = {}
    parts = [search.name]
    left_open = []
    for field in search.space:
        entry = search.space.entry(field, values)
        if entry is None:
            continue
        value = entry.only_value
        if value is None:
            value = given(search.space.base, field)
            if value is None:
                left_open.append(f"{field} ({entry})")
                value = entry.corners[0]
            parts.append(_in_name(field, value))
        values[field] = value
    if left_open:
        raise UserError(
            f"{path} leaves open: {'; '.join(left_open)}. Give each a value, as in --set "
            f"{left_open[0].split(' ')[0]}=..., or search with python -m mcrnn.tune"
        )
    spaced = given(document.file, "space")
    parts[1:1] = [_in_name(field, value) for field, value in document.settings.items() if field in spaced]
    named = {} if "name" in document.settings else {"name": "-".join(parts)}
    return _checked(document, Configuration, with_values(search.space.base, values | named))


def _in_name(field: str, value: Any) -> str:
    text = value if isinstance(value, str) else f"{field.rsplit('.', 1)[-1]}-{value}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def load_search(path: str, settings: Sequence[str] = ()) -> Search:
    """Read a file with a space, and check that every value of every entry makes a valid configuration.

    Args:
        path: of the file.
        settings: `field=value`, in place of what is in the file; a field of the space is then not searched.

    Raises:
        UserError: the file is missing, no YAML, or has mistakes; all of them are in the message.
    """
    document = _Document.read(path, settings)
    if "space" not in document.content:
        raise UserError(f"{path} has no 'space' to search; use python -m mcrnn.train for a single configuration")
    search = _search(document)
    if not search.space.entries:
        raise UserError(f"{path}: the settings leave nothing to search; use python -m mcrnn.train with them")
    return search


def _search(document: _Document) -> Search:
    content = dict(document.content)
    raw_space = content.pop("space")
    raw_search = content.pop("search", {})
    mistakes: list[str] = []
    search = _collect(document, SearchConfig, raw_search, ("search",), mistakes)
    if not isinstance(raw_space, dict) or not (raw_space or given(document.file, "space")):
        mistakes.append(document.mistake(("space",), "needs at least one entry such as model.hidden_size"))
        raw_space = {}
    space = Space(content, _in_order(document, _entries(document, raw_space, mistakes), mistakes))
    if not _is_nested(content):
        _collect(document, Configuration, content, (), mistakes)
    else:
        _check_corners(document, space, mistakes)
    cover = raw_search.get("cover") if isinstance(raw_search, dict) else None
    if cover is not None and cover not in space and cover not in document.settings:
        mistakes.append(document.mistake(("search", "cover"), f"'{cover}' is no entry of the space"))
    for path, entries in space.entries.items():
        if search is not None and search.sampler == "grid" and not all(entry.is_finite for entry in entries):
            mistakes.append(document.mistake(("space", path), NOT_FINITE))
        if path == cover and not all(entry.choice for entry in entries):
            mistakes.append(
                document.mistake(("search", "cover"), f"'{cover}' is no choice, of which each is to be tried")
            )
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))
    assert search is not None
    return Search(space, search)


def _entries(document: _Document, raw_space: dict[Any, Any], mistakes: list[str]) -> Entries:
    """The space as it is written, in the file's order."""
    space: Entries = {}
    fields = known_fields()
    searchable = [field for field in fields if not field.startswith(NOT_SEARCHED)]
    for key, raw in raw_space.items():
        place = ("space", key)
        if str(key).startswith(NOT_SEARCHED):
            mistakes.append(document.mistake(place, f"{key} is the same for all trials and cannot be searched"))
            continue
        if key not in fields:
            near = did_you_mean(str(key), searchable)
            mistakes.append(document.mistake(place, f"no field of the configuration{near}"))
            continue
        if raw == []:
            mistakes.append(document.mistake(place, "needs at least one alternative"))
        entries = [_collect(document, SpaceEntry, one, place, mistakes) for one in _as_list(raw)]
        unknown = {name for entry in entries if entry for name in entry.needs} - set(fields)
        for name in sorted(unknown):
            mistakes.append(document.mistake(place, f"'{name}' is no field{did_you_mean(name, fields)}"))
        if None not in entries and not unknown:
            space[key] = [entry for entry in entries if entry]
    return space


def _as_list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else [raw]


def _in_order(document: _Document, space: Entries, mistakes: list[str]) -> Entries:
    """The same with each entry after those that it names."""
    needed = {
        path: {other for entry in alternatives for other in entry.needs if other in space}
        for path, alternatives in space.items()
    }
    ordered: Entries = {}
    while len(ordered) < len(space):
        ready = [path for path in space if path not in ordered and needed[path] <= ordered.keys()]
        if not ready:
            rest = [path for path in space if path not in ordered]
            text = f"what {', '.join(rest)} depend on goes round in a circle"
            mistakes.append(document.mistake(("space", rest[0]), text))
            return ordered
        ordered |= {path: space[path] for path in ready}
    return ordered


def _check_corners(document: _Document, space: Space, mistakes: list[str]) -> None:
    """That the configuration takes every value of every entry."""
    try:
        for values in [space.completed({})] if mistakes else space.corners():
            _collect(document, Configuration, with_values(space.base, values), (), mistakes, values)
    except ValidationError as error:
        for path, entries in space.entries.items():
            names = {name for entry in entries for name in entry.needs - entry.conditions.keys()}
            if names:
                text = _explain(SpaceEntry, error.errors()[0])
                mistakes.append(document.mistake(("space", path), f"{text}, with the bound {', '.join(sorted(names))}"))


def _checked(document: _Document, model: type[Configuration], raw: Any) -> Configuration:
    mistakes: list[str] = []
    result = _collect(document, model, raw, (), mistakes)
    if result is None:
        raise UserError("\n".join(mistakes))
    return result


def _collect(
    document: _Document,
    model: type[SectionT],
    raw: Any,
    prefix: tuple[str, ...],
    mistakes: list[str],
    sampled: dict[str, Any] | None = None,
) -> SectionT | None:
    """Validate, or add a line for each mistake. `sampled` are values that came from the space."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors():
            location = detail["loc"]
            path = ".".join(map(str, location))
            text = _explain(model, detail)
            if sampled and path in sampled:
                mistakes.append(document.mistake(("space", path), f"{text} (got {sampled[path]!r})"))
                continue
            if sampled and not location:
                values = ", ".join(f"{k} = {v!r}" for k, v in sampled.items())
                text = f"{text} where the space gives {values}" if len(sampled) == 1 else text
            mistakes.append(document.mistake((*prefix, *location), text))
        return None


def _explain(model: type[BaseModel], detail: Any) -> str:
    """pydantic's message in our words."""
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
