"""The checkpoints of a training, in a local folder or in object storage.

A checkpoint is one object. Its name says how far the training was, and the hash of its content, so a damaged one is
recognised without any other file, and the one before it is loaded.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mcrnn.errors import UserError, first_line
from mcrnn.storage.location import Location

SUFFIX = ".pt"


def serialize(state: dict[str, Any]) -> bytes:
    """Return a state as bytes. It may hold tensors, numbers, strings, and containers of these."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def deserialize(content: bytes) -> dict[str, Any]:
    """Return the state, with its tensors on the host. Only data is loaded, never code.

    Raises:
        UserError: the content holds more than data.
    """
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"a checkpoint holds more than data, and was not loaded ({first_line(error)}): it was not written "
            "by this project; delete it"
        ) from None


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder."""

    folder: Location
    """The folder."""
    keep: int = 2
    """Number of checkpoints that are kept, the newest ones."""

    def save(self, content: bytes, *, epoch: int, batch: int) -> None:
        """Write a checkpoint, and delete the oldest ones beyond `keep`.

        Args:
            content: a serialized state.
            epoch: number of the epoch, from 1.
            batch: steps of it that have been taken.
        """
        digest = hashlib.sha256(content).hexdigest()[:16]
        self.folder.write(f"{epoch:06d}-{batch:08d}-{digest}{SUFFIX}", content)
        for key in self._keys()[self.keep :]:
            self.folder.delete(key)

    def load(self, warn: Callable[[str], None]) -> bytes | None:
        """Return the newest undamaged checkpoint, None if there is none.

        Args:
            warn: called with a line for each damaged checkpoint, which is then deleted.
        """
        for key in self._keys():
            try:
                content = self.folder.read(key)
            except FileNotFoundError:
                continue  # another process has just removed it
            if hashlib.sha256(content).hexdigest()[:16] == key.removesuffix(SUFFIX).rsplit("-", 1)[-1]:
                return content
            before = next((other for other in self._keys() if other < key), None)
            action = f"going on from the one before, {before}" if before else "there is none before it: starting anew"
            warn(f"the checkpoint {key} is damaged; {action}")
            self.folder.delete(key)
        return None

    def _keys(self) -> list[str]:
        """Return the names of the checkpoints, the newest first."""
        return sorted((key for key in self.folder.sizes() if key.endswith(SUFFIX)), reverse=True)
