"""Print the JSON schema of the YAML files, for editors that check and complete them.

    python -m mcrnn.schema > mcrnn.schema.json

An editor with a YAML language server uses it if the file begins with a line such as

    # yaml-language-server: $schema=mcrnn.schema.json
"""

from __future__ import annotations

import json
from typing import Any

from mcrnn.cli import main
from mcrnn.config.paths import known_fields
from mcrnn.config.search import NOT_SEARCHED, SearchConfig
from mcrnn.config.sections import Configuration
from mcrnn.config.space import SpaceEntry


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a YAML file, with or without the sections of a search."""
    reference = "#/$defs/{model}"
    whole = Configuration.model_json_schema(ref_template=reference)
    definitions = whole.pop("$defs")
    for model in (SearchConfig, SpaceEntry):
        schema = model.model_json_schema(ref_template=reference)
        definitions |= schema.pop("$defs", {})
        definitions[model.__name__] = schema
    entry = {"$ref": "#/$defs/SpaceEntry"}
    searchable = [field for field in known_fields() if not field.startswith(NOT_SEARCHED)]
    alternatives = {"anyOf": [entry, {"type": "array", "items": entry, "minItems": 1}]}
    whole["properties"] |= {
        "search": {"$ref": "#/$defs/SearchConfig"},
        "space": {
            "type": "object",
            "description": "Searched fields by dotted path, each with an entry or a list of alternative entries.",
            "properties": dict.fromkeys(searchable, alternatives),
            "additionalProperties": False,
        },
    }
    # a field that a section requires may be given by the space instead
    whole["required"].remove("model")
    definitions["ModelConfig"].pop("required")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": definitions}


def schema() -> None:
    """Print the JSON schema of the YAML files."""
    print(json.dumps(json_schema(), indent=2))


if __name__ == "__main__":
    main(schema)
