"""The interface of a folder, wherever it is: the few operations that stores, searches and runs need."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from mcrnn.errors import UserError

if TYPE_CHECKING:
    from zarr.abc.store import Store

CHECK_PREFIX = ".mcrnn-check-"
"""Start of the key of the object that `check` writes and deletes. One is left behind if the process is killed."""


class NoConditionalWritesError(Exception):
    """A storage cannot write under a condition: a service that refuses the conditions, a file system without locks.

    It never reaches a user: a lease then does without; see `mcrnn.storage.lease`.
    """


class Location(Protocol):
    """A folder, local or on object storage, that holds objects.

    An object is named by its key, a path relative to the folder with slashes. Every operation raises UserError, with
    what to do, if the folder itself cannot be used: wrong credentials, missing permissions, a full disk, a service that
    does not answer.
    """

    @property
    def url(self) -> str:
        """The absolute path or URL, by which a user can name the folder from anywhere."""

    def child(self, name: str) -> Location:
        """Return a folder below this one."""

    def read(self, key: str) -> bytes:
        """Return the content of an object.

        Raises:
            FileNotFoundError: There is no such object.
        """

    def read_with_age(self, key: str) -> tuple[bytes, float]:
        """Return the content of an object and the seconds since it was written, at least 0.

        The clock of the process that has written the object has no influence. On object storage both times are of the
        clock of the service. In a folder, the file system says when the object was written, and this machine what time
        it is: on a network file system, whose server has a clock of its own, the age is wrong by their difference.

        Raises:
            FileNotFoundError: There is no such object.
        """

    def write(self, key: str, data: bytes) -> None:
        """Write an object. Readers see the old content or the new, never a part, also after a crash at any moment."""

    def read_version(self, key: str) -> tuple[bytes, str]:
        """Return the content of an object, and its version, which differs for any other content.

        Raises:
            FileNotFoundError: There is no such object.
        """

    def create(self, key: str, data: bytes) -> str | None:
        """Write an object unless there is one of this key.

        Of several processes that do this at the same time, one succeeds. Where an answer of object storage is lost, the
        request is repeated, so that None may also be returned although this call has written the object.

        Returns:
            The version of the object; None if it was not written.

        Raises:
            NoConditionalWritesError: The storage cannot do this; see `has_conditional_writes`.
        """

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        """Write an object if there is one of this key in a certain version; else as `create`.

        Args:
            key: The key.
            data: The new content.
            version: The version that is replaced.

        Returns:
            The new version; None if it was not written.

        Raises:
            NoConditionalWritesError: The storage cannot do this; see `has_conditional_writes`.
        """

    def delete(self, key: str) -> None:
        """Delete an object. It is no error if there is none."""

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every object in the folder and below it, by key."""

    def sizes_of(self, keys: Collection[str]) -> dict[str, int]:
        """Return the size in bytes of those of some objects that are there, by key, the quickest way."""

    def folders(self) -> list[str]:
        """Return the names of the folders directly below this one that hold objects, in alphabetical order.

        Costs the same however many objects are in them.
        """

    def clear(self) -> None:
        """Delete every object in the folder and below it."""

    def zarr_store(self) -> Store:
        """Return the folder as a store from which Zarr can read."""


def check(location: Location) -> None:
    """Write, read, list and delete one small object, so that errors show before any work is done.

    Raises:
        UserError: One of the operations fails; the message says which and why.
    """
    key, content = f"{CHECK_PREFIX}{uuid.uuid4().hex}", b"mcrnn"
    location.write(key, content)
    try:
        if location.read(key) != content:
            raise UserError(f"'{location.url}' does not return what was written to it")
        if key not in location.sizes():
            raise UserError(f"'{location.url}' does not list what was written to it")
    finally:
        location.delete(key)


def has_conditional_writes(location: Location) -> bool:
    """Return whether `create` and `replace` do what they promise, by trying them on a small object.

    Some services that speak the protocol of S3 refuse the conditions, or write without regard to them. Some file
    systems of networks have no locks. An object that is there although `create` has not written it was written by a
    first try whose answer was lost.
    """
    key = f"{CHECK_PREFIX}{uuid.uuid4().hex}"
    try:
        return (
            (location.create(key, b"first") is not None or _holds(location, key, b"first"))
            and location.create(key, b"second") is None
            and location.replace(key, b"third", "no version") is None
        )
    except NoConditionalWritesError:
        return False
    finally:
        location.delete(key)


def _holds(location: Location, key: str, content: bytes) -> bool:
    try:
        return location.read(key) == content
    except FileNotFoundError:
        return False
