"""Print the JSON schema of the YAML files, for editors that check and complete them.

    python -m mcrnn.schema > mcrnn.schema.json

An editor with a YAML language server takes it from a first line such as `# yaml-language-server:
$schema=mcrnn.schema.json`.
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
    """The schema of a file, with or without a search."""
    where = "#/$defs/{model}"
    whole = Configuration.model_json_schema(ref_template=where)
    definitions = whole.pop("$defs")
    for model in (SearchConfig, SpaceEntry):
        schema = model.model_json_schema(ref_template=where)
        definitions |= schema.pop("$defs", {})
        definitions[model.__name__] = schema
    entry = {"$ref": "#/$defs/SpaceEntry"}
    searched = [field for field in known_fields() if not field.startswith(NOT_SEARCHED)]
    alternatives = {"anyOf": [entry, {"type": "array", "items": entry, "minItems": 1}]}
    whole["properties"] |= {
        "search": {"$ref": "#/$defs/SearchConfig"},
        "space": {
            "type": "object",
            "description": "what is searched, by dotted paths of fields; a list gives alternatives",
            "properties": dict.fromkeys(searched, alternatives),
            "additionalProperties": False,
        },
    }
    # what a section needs may come from the space
    whole["required"].remove("model")
    definitions["ModelConfig"].pop("required")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": definitions}


def schema() -> None:
    """Print the JSON schema of the YAML files."""
    print(json.dumps(json_schema(), indent=2))


if __name__ == "__main__":
    main(schema)
