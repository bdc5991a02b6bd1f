"""A growing local file that is kept on object storage in parts, because an object cannot be appended to.

Each part holds the bytes between two offsets, compressed, and is named by them. New bytes become a new part. Parts of
similar size are merged, as the levels of a log-structured merge tree are (O'Neil et al. 1996), so that there are few of
them, and each byte is sent once for each of a handful of levels instead of with every change.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mcrnn.errors import UserError
from mcrnn.storage.location import Location

PARTS_OF_A_SIZE = 8
"""Number of parts of one order of magnitude that become one; also the base of the orders of magnitude."""
LARGEST_MERGED = 4 * 2**20
"""Bytes, before compression, from which on a part is merged no more, so that no merge needs much memory or time."""
READS_AT_ONCE = 8
TRIES = 5
"""Number of times that the parts are listed while another process merges them."""
NAME = re.compile(r"(\d{15})-(\d{15})\.gz")

Part = tuple[int, int]
"""Offsets of the first byte of a part and of the first one behind it."""


def part_name(part: Part) -> str:
    """Return the key of a part."""
    return f"{part[0]:015d}-{part[1]:015d}.gz"


class UploadedParts:
    """The parts of one file.

    A process that is killed between two requests leaves parts that are superseded, which are ignored and deleted
    later; no moment is without a complete copy of what was sent. Only one process may upload at a time.

    Args:
        file: The local file. It only grows, and what is in it does not change.
        folder: The folder of the parts, which holds nothing else.
    """

    def __init__(self, file: Path, folder: Location) -> None:
        self.file, self.folder = file, folder
        self.parts: list[Part] = []
        """The parts that make up the file, in order."""
        self._superseded: list[Part] = []
        self._local_from = 0
        """Offset from which on the local file holds the bytes; what is before it may be a hole."""

    @property
    def end(self) -> int:
        """Number of bytes of the file that are in the parts."""
        return self.parts[-1][1] if self.parts else 0

    def find(self) -> int:
        """List the parts, and return the number of bytes that they hold together.

        Raises:
            UserError: A part is missing between others.
        """
        names = [NAME.fullmatch(key) for key in self.folder.sizes()]
        found = [(int(name[1]), int(name[2])) for name in names if name]
        self.parts = _longest_chain(found)
        self._superseded = [part for part in found if part not in self.parts]
        if any(start > self.end for start, _ in found):
            raise UserError(f"'{self.folder.url}' is damaged: the part that starts at byte {self.end} is missing")
        return self.end

    def download(self, start: int = 0) -> None:
        """Write the bytes from an offset on into the local file; what is before it may stay a hole.

        Args:
            start: Offset of the first byte that is needed.

        Raises:
            UserError: A part is damaged, or cannot be read.
        """
        for _ in range(TRIES):
            needed = [part for part in self.parts if part[1] > start]
            try:
                with self.file.open("wb") as file, ThreadPoolExecutor(READS_AT_ONCE) as threads:
                    file.truncate(self.end)
                    for part, content in zip(needed, threads.map(self._read, needed), strict=True):
                        file.seek(part[0])
                        file.write(content)
            except FileNotFoundError:  # another process has merged the part with others
                self.find()
            else:
                self._local_from = needed[0][0] if needed else self.end
                return
        raise UserError(f"'{self.folder.url}' changes too fast to be read, or a part is missing")

    def _read(self, part: Part) -> bytes:
        content = self.folder.read(part_name(part))
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"'{self.folder.url}/{part_name(part)}' is damaged: {error}") from None
        if len(content) != part[1] - part[0]:
            raise UserError(f"'{self.folder.url}/{part_name(part)}' does not hold the bytes that its name says")
        return content

    def upload(self, end: int) -> None:
        """Send the bytes of the local file that are not in the parts yet.

        Args:
            end: Offset up to which to send.

        Raises:
            UserError: The folder cannot be used; a later call sends everything.
        """
        if end > self.end:
            start = self.end
            kept = list(self.parts)
            while merged := _to_merge(kept, end - start):
                kept, start = kept[:-merged], kept[-merged][0]
            self.folder.write(part_name((start, end)), gzip.compress(self._bytes(start, end), mtime=0))
            self._superseded += self.parts[len(kept) :]
            self.parts = [*kept, (start, end)]
        while self._superseded:
            self.folder.delete(part_name(self._superseded[-1]))
            self._superseded.pop()

    def _bytes(self, start: int, end: int) -> bytes:
        """Return bytes of the file, from the parts where the local file does not hold them."""
        missing = [part for part in self.parts if start <= part[0] < self._local_from]
        content = b"".join(map(self._read, missing))
        with self.file.open("rb") as file:
            file.seek(start + len(content))
            return content + file.read(end - start - len(content))

    def clear(self) -> None:
        """Delete all parts, so that the next upload sends the whole file."""
        self.folder.clear()
        self.parts, self._superseded = [], []


def _longest_chain(parts: list[Part]) -> list[Part]:
    """Return the parts that follow on each other from offset 0 and reach furthest, by as few parts as possible."""
    chains: dict[int, list[Part]] = {0: []}
    for part in sorted(parts, key=lambda part: (part[0], -part[1])):
        start, end = part
        if start in chains and (end not in chains or len(chains[end]) > len(chains[start]) + 1):
            chains[end] = [*chains[start], part]
    return chains[max(chains)]


def _to_merge(parts: list[Part], size: int) -> int:
    """Return how many of the last parts are to be merged with new bytes; 0 for none.

    Args:
        parts: The parts that are there.
        size: Number of new bytes.
    """
    count = 0
    for start, end in reversed(parts):
        if end - start >= LARGEST_MERGED or _magnitude(end - start) > _magnitude(size):
            break
        count += 1
    return count if count >= PARTS_OF_A_SIZE - 1 else 0


def _magnitude(size: int) -> int:
    """Return the order of magnitude of a number of bytes."""
    return int(math.log(size, PARTS_OF_A_SIZE))
