"""Fields of a configuration by their dotted paths, such as `train.learning_rate`."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from mcrnn.config.sections import Configuration

Values = dict[str, Any]
"""Values of fields by dotted path."""
ARCHITECTURE = "model.architecture"


def value_at(config: dict[str, Any], path: str, default: Any = None) -> Any:
    """Return the value at a dotted path of nested dictionaries, or the default if the path leads nowhere."""
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def default_of(path: str) -> Any:
    """Return the default value of a field of the configuration."""
    model: Any = Configuration
    *parents, leaf = path.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation
    return model.model_fields[leaf].get_default()


def with_values(config: dict[str, Any], values: Values) -> dict[str, Any]:
    """Return a copy of a nested dictionary with values set at dotted paths; missing sections are created."""
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return result


def known_fields(model: type[BaseModel] = Configuration, prefix: str = "") -> list[str]:
    """Return the dotted paths of all fields of a section and the sections in it.

    A section that may also be left out (null) counts as a field itself, so that it can be set to null.

    Args:
        model: The section.
        prefix: What the paths begin with, such as `search.`.
    """
    paths = []
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for section in sections:
            paths += known_fields(section, f"{prefix}{name}.")
        if not sections or len(kinds) > 1:
            paths.append(prefix + name)
    return paths


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by dotted path.

    Args:
        nested: Dictionaries in dictionaries.
        prefix: What the paths begin with.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
