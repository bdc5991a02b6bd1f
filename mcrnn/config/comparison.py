"""Compare what is configured now with what an earlier version has written down.

A field that only one of the two gives is taken as its default in the other, so that a field which a later version adds
does not shut out what was started before it. Its default must therefore mean what was done before there was the field.
"""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mcrnn.config.paths import Values, flatten
from mcrnn.config.search import SearchConfig
from mcrnn.config.sections import Configuration
from mcrnn.config.space import SpaceEntry

MISSING = object()


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Return what differs between two configurations: a text for each field by its dotted path.

    Args:
        before: a configuration, or a whole search, as it was written down.
        now: the same as it is now. Both may have further keys.
    """
    now = json.loads(json.dumps(now))
    given_before, given_now = flatten(before), flatten(now)
    old, new = completed(before), completed(now)

    def shown(key: str, given: Values, all_fields: Values) -> Any:
        value = all_fields.get(key)
        return value if isinstance(value, dict) else given.get(key, "not given")

    return {
        key: f"{key} is {shown(key, given_now, new)}, was {shown(key, given_before, old)}"
        for key in sorted(old | new)
        if old.get(key, MISSING) != new.get(key, MISSING)
    }


def completed(content: dict[str, Any]) -> Values:
    """Return the fields of a configuration or a search by dotted path, with the defaults of those that it leaves out.

    Args:
        content: the content as it was loaded from JSON; keys that are no fields are kept.
    """
    content = dict(content)
    space = content.pop("space", None)
    found: Values = {}
    if "search" in content:
        found |= _fields(SearchConfig, content.pop("search"), "search.")
    if isinstance(space, dict):
        found |= {f"space.{path}": _entries(entries) for path, entries in space.items()}
    return json.loads(json.dumps(found | _fields(Configuration, content)))


def _entries(alternatives: Any) -> Any:
    """Return the alternatives of an entry of the space with the defaults of the fields that they leave out."""
    if not isinstance(alternatives, list):
        return alternatives
    defaults = {name: field.default for name, field in SpaceEntry.model_fields.items() if field.default is not None}
    return [defaults | each if isinstance(each, dict) else each for each in alternatives]


def _fields(model: type[BaseModel], content: dict[str, Any], prefix: str = "") -> Values:
    """Return the fields of a section by dotted path, with defaults; of an optional section only if it is given."""
    found = flatten({key: value for key, value in content.items() if key not in model.model_fields}, prefix)
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        value = content.get(name, {} if sections and len(kinds) == 1 else MISSING)
        if sections and isinstance(value, dict):
            found |= _fields(sections[0], value, f"{prefix}{name}.")
            continue
        if value is MISSING:
            value = field.get_default(call_default_factory=True)
        if value is not PydanticUndefined:
            found[prefix + name] = value
    return found
