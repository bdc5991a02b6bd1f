"""The root document of a store, `zarr.json`, whose attributes say what the store holds and whether it is complete."""

from __future__ import annotations

import json
from typing import Any

from mcrnn.data.store_format import FORMAT, FORMAT_VERSIONS
from mcrnn.errors import UserError
from mcrnn.storage.location import Location


def read_root(location: Location) -> dict[str, Any]:
    """Read the root document, `zarr.json`, of a store that may still be unfinished.

    Raises:
        UserError: there is no store, or it is of another kind or version.
    """
    try:
        content = location.read("zarr.json")
    except FileNotFoundError:
        raise UserError(
            f"there is no store '{location.url}'; make one with python -m data_prep.navier_stokes or data_prep.convert"
        ) from None
    try:
        document = json.loads(content)
        attributes = document["attributes"]
        known = attributes.get("format") == FORMAT
    except (ValueError, KeyError, AttributeError, TypeError):
        known = False
    if not known:
        raise UserError(f"'{location.url}' is not a field store, or its zarr.json is damaged")
    if attributes.get("format_version") not in FORMAT_VERSIONS:
        raise UserError(
            f"'{location.url}' has format version {attributes.get('format_version')}, this version of mcrnn "
            f"reads {' and '.join(map(str, FORMAT_VERSIONS))}"
        )
    return document
