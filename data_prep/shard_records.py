"""What an unfinished build keeps of the shards that are done, so that the same command continues with the others.

A record is a few numbers. One object for each would make a build that goes on read as many objects as it has shards,
one request each, so a thousand records share an object, which the process that leads the build writes anew every two
seconds. A build that is killed repeats the shards of these seconds.
"""

from __future__ import annotations

import json
import time
from typing import Any

from mcrnn.data.manifest import map_ahead
from mcrnn.data.store_format import BUILD_FOLDER, canonical_json
from mcrnn.storage.location import Location

Record = dict[str, Any]
"""What is kept of a shard that is done: `objects` (size and SHA-256 by key), `split` and `statistics`."""

LEASE = f"{BUILD_FOLDER}/lock.json"
"""Key of the lease that keeps two builds from writing one store."""
PREFIX = f"{BUILD_FOLDER}/shards-"
RECORDS_OF_AN_OBJECT = 1000
SECONDS_BETWEEN_WRITES = 2.0


class ShardRecords:
    """The records of a build, by the names of the shards.

    Args:
        location: folder of the store.
        keys: size of each object that is in the folder, by key.
    """

    def __init__(self, location: Location, keys: dict[str, int]) -> None:
        self.location = location
        self._keys = record_keys(keys)
        contents = read_records(location, self._keys)
        self.records = {name: record for name, record in contents.items() if _is_there(record, keys)}
        """The record of each shard whose objects have the size that they had."""
        self._unwritten: dict[str, Record] = {}
        self._current: dict[str, Record] = {}
        self._written_at = float("-inf")

    def add(self, name: str, record: Record) -> None:
        """Keep the record of a shard that is done, and write it unless something was written just now."""
        self.records[name] = self._unwritten[name] = record
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Write the records that are not written yet."""
        if not self._unwritten:
            return
        if not self._current or len(self._current) >= RECORDS_OF_AN_OBJECT:
            self._current = {}
            self._keys.append(self._free_key())
        self._current |= self._unwritten
        self.location.write(self._keys[-1], canonical_json(self._current))
        self._unwritten = {}
        self._written_at = time.monotonic()

    def delete(self) -> None:
        """Delete all records, which a complete store does not need."""
        for _ in map_ahead(self.location.delete, self._keys):
            pass

    def _free_key(self) -> str:
        number = len(self._keys)
        while (key := f"{PREFIX}{number:06d}.json") in self._keys:
            number += 1
        return key


def record_keys(keys: dict[str, int]) -> list[str]:
    """Return the keys of the objects that hold records."""
    names = [key for key in keys if key.startswith(f"{BUILD_FOLDER}/") and key.endswith(".json")]
    return sorted(key for key in names if key != LEASE)


def read_records(location: Location, keys: list[str]) -> dict[str, Record]:
    """Read the records in some objects, by the names of the shards.

    An object that is damaged counts as empty, so that its shards are built again. In version 0.1.0 each shard had an
    object of its own, named by it.
    """
    records: dict[str, Record] = {}
    for key, content in zip(keys, map_ahead(location.read, keys), strict=True):
        try:
            document = json.loads(content)
        except ValueError:
            continue
        if not key.startswith(PREFIX):
            document = {key.rsplit("/", 1)[-1].removesuffix(".json"): document}
        if isinstance(document, dict):
            records |= document
    return records


def _is_there(record: Record, keys: dict[str, int]) -> bool:
    try:
        return all(keys.get(key) == entry["size"] for key, entry in record["objects"].items())
    except (KeyError, TypeError, AttributeError):
        return False
