"""The manifest of a store: what objects it has, and whether they are what they were."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from mcrnn.data.store_format import FORMAT, FORMAT_VERSION
from mcrnn.errors import UserError
from mcrnn.storage.location import Location

if TYPE_CHECKING:
    pass


Result = TypeVar("Result")
READS_AT_ONCE = 4
"""objects in flight: hides the latency of object storage, costs their size in memory"""


def read_root(location: Location) -> dict[str, Any]:
    """The root's document of a store in whatever state.

    Raises:
        UserError: there is none, or it is of another kind or version.
    """
    try:
        content = location.read("zarr.json")
    except FileNotFoundError:
        raise UserError(
            f"there is no store '{location.url}'; make one with python -m data_prep.navier_stokes or data_prep.netcdf"
        ) from None
    try:
        document = json.loads(content)
        attributes = document["attributes"]
        known = attributes.get("format") == FORMAT
    except (ValueError, KeyError, AttributeError, TypeError):
        known = False
    if not known:
        raise UserError(f"'{location.url}' is not a field store, or its zarr.json is damaged")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"'{location.url}' has format version {attributes.get('format_version')}, this version of mcrnn "
            f"reads {FORMAT_VERSION}"
        )
    return document


def _damaged(location: Location, what: str) -> UserError:
    return UserError(
        f"the store '{location.url}' is damaged: {what}. Restore it from a copy, or build it again with --overwrite"
    )


def map_ahead(work: Callable[[str], Result], keys: Iterable[str]) -> Iterator[Result]:
    """Results of some work on each key, in order, several worked on at a time and no more held than that."""
    rest = iter(list(keys))
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        running = collections.deque(pool.submit(work, key) for key in itertools.islice(rest, READS_AT_ONCE))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(work, key) for key in itertools.islice(rest, 1))
