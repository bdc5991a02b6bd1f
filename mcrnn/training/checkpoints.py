"""The checkpoints of a training: each one object whose name says how far it is and what its content hashes to.

So one that is damaged is known without any other file, and the one before it serves. Local folders and object
storage alike.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mcrnn.errors import UserError
from mcrnn.storage.location import Location

SUFFIX = ".pt"


def serialize(state: dict[str, Any]) -> bytes:
    """A state of tensors, numbers, strings and containers of such as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def deserialize(content: bytes) -> dict[str, Any]:
    """The state, its tensors in the processor's memory; nothing but data is ever loaded.

    Raises:
        UserError: there is more in it.
    """
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"a checkpoint holds more than data, and was not loaded ({str(error).splitlines()[0]}): it was not written "
            "by this project; delete it"
        ) from None


@dataclass(frozen=True)
class Checkpoints:
    """Those in a folder, of which the newest `keep` stay."""

    folder: Location
    keep: int = 2

    def save(self, content: bytes, *, epoch: int, batch: int) -> None:
        """Write a packed state that stands before a batch of an epoch, and remove what is too many."""
        digest = hashlib.sha256(content).hexdigest()[:16]
        self.folder.write(f"{epoch:06d}-{batch:08d}-{digest}{SUFFIX}", content)
        for key in self._keys()[self.keep :]:
            self.folder.delete(key)

    def load(self, warn: Callable[[str], None]) -> bytes | None:
        """The newest that is whole, None where there is none. Damaged ones are told of and removed."""
        for key in self._keys():
            try:
                content = self.folder.read(key)
            except FileNotFoundError:
                continue  # another process has just removed it
            if hashlib.sha256(content).hexdigest()[:16] == key.removesuffix(SUFFIX).rsplit("-", 1)[-1]:
                return content
            before = next((other for other in self._keys() if other < key), None)
            rest = f"going on from the one before, {before}" if before else "there is none before it: starting anew"
            warn(f"the checkpoint {key} is damaged; {rest}")
            self.folder.delete(key)
        return None

    def _keys(self) -> list[str]:
        """The newest first."""
        return sorted((key for key in self.folder.sizes() if key.endswith(SUFFIX)), reverse=True)
