"""The table of architectures: the names that `model.architecture` takes, and the class that each stands for.

To add an architecture, write a subclass of `mcrnn.models.cells.Cell` with its `costs` in a module of `mcrnn.models`,
and add one line to `ARCHITECTURES`. Validation of the YAML file, its JSON schema, sizing, training, search and
conversion all read this table. The module must be in this package, because it is what a registered model
is served with.

A class is named by its import path, because the configuration must be readable without PyTorch; `mcrnn.models`
imports it when a network is built or its cost is asked for.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator
from pydantic_core import PydanticKnownError

ARCHITECTURES = {
    "convgru": "mcrnn.models.cells:ConvGRUCell",
    "convlstm": "mcrnn.models.cells:ConvLSTMCell",
    "minconvgru": "mcrnn.models.cells:MinConvGRUCell",
    "minconvlstm": "mcrnn.models.cells:MinConvLSTMCell",
    "minconvexplstm": "mcrnn.models.cells:MinConvExpLSTMCell",
}
"""The cell class of each architecture, as `module:class`."""


def _check_architecture(value: Any) -> str:
    """Return a name of the table.

    Raises:
        PydanticKnownError: the value is not in the table; the message is that of pydantic for a `Literal`, which
            cannot be used here because it would repeat the names.
    """
    if isinstance(value, str) and value in ARCHITECTURES:
        return value
    *others, last = (f"'{name}'" for name in ARCHITECTURES)
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})


def _add_names(schema: dict[str, Any]) -> None:
    """List the names in the JSON schema of the field."""
    schema["enum"] = list(ARCHITECTURES)


Architecture = Annotated[
    str, PlainValidator(_check_architecture, json_schema_input_type=str), Field(json_schema_extra=_add_names)
]
"""The type of a field that takes a name of the table."""
