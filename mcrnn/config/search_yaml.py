"""A search that was written down as JSON, as the YAML file that starts the same search, and as a search."""

from __future__ import annotations

import json
from typing import Any

import yaml

from mcrnn.config.search import SearchConfig
from mcrnn.config.space import Search, Space, SpaceEntry

NAMES = {"int_range": "int", "float_range": "float"}
"""Names in a file of an entry's fields whose names in the code differ."""


def as_yaml(configuration: dict[str, Any]) -> str:
    """Return a YAML file that starts the same search; settings of its command line are values of the file.

    Args:
        configuration: content of a search's `configuration.json`.
    """
    content, settings, space = _parts(configuration)
    defaults = json.loads(SearchConfig().model_dump_json())
    entries = {path: [_entry(each) for each in alternatives] for path, alternatives in space.items()}
    sections = content | {
        "search": {key: value for key, value in settings.items() if value != defaults.get(key)},
        "space": {path: each[0] if len(each) == 1 else each for path, each in entries.items()},
    }
    return "\n".join(_section(name, value) for name, value in sections.items() if value != {})


def _section(name: str, value: Any) -> str:
    """Return a section with a line for each of its fields, or a line for a single value."""
    if not isinstance(value, dict):
        return f"{name}: {_in_line(value)}\n"
    return "".join([f"{name}:\n", *(f"  {key}: {_in_line(each)}\n" for key, each in value.items())])


def _in_line(value: Any) -> str:
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return dumped.removesuffix("...\n").strip()


def search_of(configuration: dict[str, Any]) -> Search:
    """Return the search that was written down.

    Args:
        configuration: content of a search's `configuration.json`.
    """
    content, settings, space = _parts(configuration)
    entries = {path: [SpaceEntry.model_validate(_entry(each)) for each in group] for path, group in space.items()}
    return Search(Space(content, entries), SearchConfig.model_validate(settings))


def _parts(configuration: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the sections for all trials, the section `search` and the space."""
    content = {key: value for key, value in configuration.items() if key not in ("search", "space", "store_digest")}
    return content, configuration.get("search", {}), configuration.get("space", {})


def _entry(written: dict[str, Any]) -> dict[str, Any]:
    """Return an alternative of an entry as a file has it."""
    return {NAMES.get(key, key): value for key, value in written.items() if (key, value) != ("log", False)}
