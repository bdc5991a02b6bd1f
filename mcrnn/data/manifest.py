"""The manifest of a store: which objects it consists of, and checks that they are as they were built."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from mcrnn.data.store_format import MANIFEST, is_data, sha256
from mcrnn.errors import UserError
from mcrnn.storage.location import Location

Result = TypeVar("Result")

READS_AT_ONCE = 4
"""Objects that are read at a time. More hide the latency of object storage better, but each is held in memory."""


@dataclass(frozen=True)
class Manifest:
    """The objects of a complete store, with the size and SHA-256 of each.

    Attributes:
        location: folder of the store.
        objects: for each key the entries `size` (bytes) and `sha256` (hexadecimal).
    """

    location: Location
    objects: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, location: Location, digest: str) -> Manifest:
        """Read the manifest of a store.

        Args:
            location: folder of the store.
            digest: SHA-256 that the manifest must have.

        Raises:
            UserError: the manifest is missing or has changed.
        """
        try:
            content = location.read(MANIFEST)
        except FileNotFoundError:
            content = b""
        if sha256(content) != digest:
            raise damaged_error(location, f"{MANIFEST} is missing or has changed")
        return cls(location, json.loads(content)["objects"])

    @property
    def total_bytes(self) -> int:
        """Size of all objects together."""
        return sum(entry["size"] for entry in self.objects.values())

    def read(self, key: str) -> bytes:
        """Return the content of an object.

        Raises:
            UserError: the object is missing or has another size than when it was built.
        """
        try:
            content = self.location.read(key)
        except FileNotFoundError:
            raise damaged_error(self.location, f"{key} is missing") from None
        self._check_size(key, len(content))
        return content

    def check_sizes(self) -> None:
        """Check that every object is there and has the size that it was built with, without reading any.

        Raises:
            UserError: an object is missing or has another size.
        """
        sizes = self.location.sizes_of(self.objects)
        for key in self.objects:
            if key not in sizes:
                raise damaged_error(self.location, f"{key} is missing")
            self._check_size(key, sizes[key])

    def check_metadata(self) -> dict[str, bytes]:
        """Compare the SHA-256 of all metadata and coordinates, which are small, but not that of field values.

        Returns:
            The content of each of these objects, by key.

        Raises:
            UserError: an object is missing or has changed.
        """
        keys = [key for key in self.objects if not is_data(key)]
        return dict(zip(keys, map_ahead(self._read_unchanged, keys), strict=True))

    def verify(self, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Read every byte of the store and compare the SHA-256 of every object.

        Args:
            on_bytes: called with the size of each object that is as it was built.

        Raises:
            UserError: an object is missing or has changed.
        """
        for size in map_ahead(lambda key: len(self._read_unchanged(key)), self.objects):
            on_bytes(size)

    def _read_unchanged(self, key: str) -> bytes:
        """Return the content of an object, whose SHA-256 is compared."""
        content = self.read(key)
        if sha256(content) != self.objects[key]["sha256"]:
            raise damaged_error(self.location, f"{key} has changed since it was built")
        return content

    def _check_size(self, key: str, size: int) -> None:
        if size != self.objects[key]["size"]:
            raise damaged_error(self.location, f"{key} has another size than when it was built")


def damaged_error(location: Location, damage: str) -> UserError:
    """Return the error that says how a store is damaged, and what to do."""
    return UserError(
        f"the store '{location.url}' is damaged: {damage}. Restore it from a copy, or build it again with --overwrite"
    )


def map_ahead(work: Callable[[str], Result], keys: Iterable[str]) -> Iterator[Result]:
    """Call a function with each key in threads and yield the results in the order of the keys.

    At most `READS_AT_ONCE` calls run ahead of the result that is used, so no more results than that are in memory.
    """
    remaining = iter(list(keys))
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        running = collections.deque(pool.submit(work, key) for key in itertools.islice(remaining, READS_AT_ONCE))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(work, key) for key in itertools.islice(remaining, 1))
