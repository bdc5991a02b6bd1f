"""The reference of the YAML files: every field with its type, bounds, default and meaning, from the pydantic models."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mcrnn.config.search import NOT_SEARCHED, SearchConfig
from mcrnn.config.sections import Configuration
from mcrnn.config.space import SpaceEntry

NAMES = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", type(None): "`null`", Any: "any"}

INTRODUCTION = """
# Configuration files

A YAML file has the sections `data`, `model`, `train` and `validation`, which make one configuration, and a `name`. A
file for a search has also the sections `search` and `space`. This page is generated from the models in `mcrnn.config`
that check the files. Unknown keys are errors, and all mistakes of a file are reported at once with their lines.

A field that a command sets with `--set` is named by its dotted path, for example `train.learning_rate`; so is a field
in `space`. The column *searched* says which fields may stand in `space`: the others would change how trials are
evaluated, or the search itself, from one trial to the next. `python -m mcrnn.schema` prints the same as a JSON schema,
with which an editor completes and checks the files.
"""

SPACE = """
## `space`

A mapping from the dotted paths of fields to entries. A list of entries gives alternatives, of which the first whose
conditions hold is used. The fields of an entry are:
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## The whole file", _table(Configuration, "", sections=True)]
    for name, field in Configuration.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            parts.append(_part(section, name))
    parts.append(_part(SearchConfig, "search"))
    for name, field in SearchConfig.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            parts.append(_part(section, f"search.{name}"))
    parts.append(SPACE)
    parts.append(_table(SpaceEntry, None))
    return "\n\n".join(parts) + "\n"


def _part(section: type[BaseModel], path: str) -> str:
    documentation = (section.__doc__ or "").strip()
    lines = "\n".join(line.strip() for line in documentation.splitlines())
    return f"## `{path}`\n\n{lines}\n\n{_table(section, f'{path}.')}"


def _table(model: type[BaseModel], prefix: str | None, *, sections: bool = False) -> str:
    """A row for each field.

    Args:
        model: the section.
        prefix: of the fields' dotted paths; None where they are not fields of a configuration.
        sections: whether to list the sections themselves.

    Raises:
        ValueError: there is no field, or one has no description.
    """
    searchable = prefix and not prefix.startswith(NOT_SEARCHED)
    headers = ["field", "type", "default", *(["searched"] if searchable else []), "meaning"]
    properties = model.model_json_schema(by_alias=False)["properties"]
    rows = []
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section:
            kind = f"[section](#{(prefix or '').replace('.', '')}{name})"
        elif field.annotation is str and "enum" in properties[name]:  # names that a table of the code gives
            kind = ", ".join(f"`{value}`" for value in properties[name]["enum"])
        else:
            kind = _type(field.annotation, field)
        meaning = field.description or (_first_line(section) if section else "")
        if not meaning:
            raise ValueError(f"{model.__name__}.{name} has no description")
        row = [f"`{field.alias or name}`", kind, _default(field, section)]
        if searchable:
            row.append("no" if f"{prefix}{name}".startswith(NOT_SEARCHED) else "yes")
        rows.append([*row, meaning])
    if not rows:
        raise ValueError(f"{model.__name__} has no fields")
    if sections:
        rows.append(["`search`", "[section](#search)", "", _first_line(SearchConfig)])
        rows.append(["`space`", "[section](#space)", "", "The fields that are searched, with their values."])
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, None where it is a plain value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    """A type in words, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    bounds = _bounds(field.metadata) if field is not None else ""
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        return " or ".join(dict.fromkeys(_type(kind) for kind in kinds)) + bounds + (
            ", or `null`" if len(kinds) < len(arguments) else ""
        )  # fmt: skip
    if origin is Annotated:
        return _type(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_plural(_type(arguments[0]))}{bounds}"
    if origin is tuple:
        return f"list of {len(arguments)}: {_type(arguments[0])}{bounds}"
    if origin is dict:
        return "mapping"
    return NAMES.get(annotation, str(annotation)) + bounds


def _plural(text: str) -> str:
    return {"text": "texts", "whole number": "whole numbers", "number": "numbers"}.get(text, text)


def _bounds(metadata: Any) -> str:
    """The bounds of a value, or of the length of a list, in words."""
    words = []
    for bound in metadata:
        match bound:
            case Ge():
                words.append(f"≥&nbsp;{bound.ge}")
            case Gt():
                words.append(f">&nbsp;{bound.gt}")
            case Le():
                words.append(f"≤&nbsp;{bound.le}")
            case Lt():
                words.append(f"<&nbsp;{bound.lt}")
            case MinLen():
                words.append("not empty" if bound.min_length == 1 else f"at least {bound.min_length} long")
            case MaxLen():
                words.append(f"at most {bound.max_length} long")
            case _:
                if pattern := getattr(bound, "pattern", None):
                    words.append(f"of the form `{pattern}`")
    return "".join(f", {each}" for each in words)


def _default(field: FieldInfo, section: type[BaseModel] | None) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if section is not None:
        return "`null`" if value is None else "all defaults"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"
