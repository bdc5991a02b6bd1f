"""A folder, wherever it is: the few operations that a store needs, the same for all."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Protocol

from mcrnn.errors import UserError

if TYPE_CHECKING:
    from zarr.abc.store import Store


class Location(Protocol):
    """A folder: keys below it are relative paths with slashes.

    Every operation raises UserError with what to do where the place itself is the trouble (credentials,
    permissions, a full disk, an endpoint that does not answer), and FileNotFoundError for a missing key.
    """

    @property
    def url(self) -> str:
        """What a user would type to name it from anywhere."""

    def child(self, name: str) -> Location:
        """A folder below this one."""

    def read(self, key: str) -> bytes:
        """Content of an object."""

    def write(self, key: str, data: bytes) -> None:
        """Write an object so that readers, and a crash at any moment, see the old content or the new."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; whether it was written."""

    def delete(self, key: str) -> None:
        """Delete an object; no error where there is none."""

    def sizes(self) -> dict[str, int]:
        """Size of every object below, by key."""

    def clear(self) -> None:
        """Delete everything below."""

    def zarr_store(self) -> Store:
        """For reading with Zarr."""


def check(location: Location) -> None:
    """Write, read, list and delete one small object, so that trouble shows before any work is done.

    Raises:
        UserError: one of them fails; says which and why.
    """
    key, content = f".mcrnn-check-{uuid.uuid4().hex}", b"mcrnn"
    location.write(key, content)
    try:
        if location.read(key) != content:
            raise UserError(f"'{location.url}' does not return what was written to it")
        if key not in location.sizes():
            raise UserError(f"'{location.url}' does not list what was written to it")
    finally:
        location.delete(key)
