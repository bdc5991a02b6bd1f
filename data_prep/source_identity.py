"""Know a source again. Its name and size do not say what is in it, so it is known by a checksum of its content.

Of object storage, the checksums that it keeps are taken (ETags).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.local_copies import filesystem_of
from data_prep.opendap import fingerprint
from data_prep.sources import ZARR_METADATA, is_zarr, request, source_format, stamp_of
from mcrnn.data.groups import groups_above, split_group
from mcrnn.errors import UserError

VERSION_KEYS = ("ETag", "etag", "md5Hash", "Content-MD5", "mtime", "LastModified", "Last-Modified")
"""What file systems of fsspec call the version of an object; the first one that is there is taken."""

HASHED_BYTES = 256 * 2**20
"""Sources up to this size are hashed as a whole. Of larger ones, so much is hashed in pieces that are evenly spread."""

PIECE = 2**20
"""Size of these pieces, in bytes."""

GLANCE_BYTES, GLANCE_PIECE = 2**20, 2**14
"""What `glance` hashes of a source, and the size of the pieces, in bytes."""


@dataclass(frozen=True)
class SourceIdentity:
    """What a source was when the build was planned.

    Attributes:
        url: path or URL.
        arrays: names of the arrays that are read. Of a Zarr store, other arrays do not count.
        size: bytes of what counts.
        checksum: digest of the content, see `identify`.
        stamp: size, time of the last change and inode of a local file; None for other sources.
    """

    url: str
    arrays: tuple[str, ...]
    size: int
    checksum: str
    stamp: tuple[int, int, int] | None

    def check(self) -> None:
        """Refuse a source that has changed since the build was planned; a copy of the same content is the same.

        Raises:
            UserError: it has changed, or cannot be read on this machine.
        """
        if not self.has_same_stamp():
            _check_content(self, stamp_of(self.url))

    def has_same_stamp(self) -> bool:
        """Return whether the source is a file that has the stamp that it had; other sources have none.

        Raises:
            UserError: it cannot be read on this machine.
        """
        stamp = stamp_of(self.url)
        return stamp is not None and stamp == self.stamp


def identify(url: str, arrays: Iterable[str]) -> SourceIdentity:
    """Return what a source is now.

    A file and a local Zarr store are known by the SHA-256 of their content, which of more than `HASHED_BYTES` is taken
    from pieces; a remote source by the ETags of its objects. A Zarr store at an address that lists nothing, such as
    https, is known by its metadata only. What is read by OPeNDAP is known as `data_prep.opendap.fingerprint` says.

    Args:
        url: path or URL.
        arrays: names of the arrays that are read.

    Raises:
        UserError: it cannot be read.
    """
    names = tuple(sorted(set(arrays)))
    stamp = stamp_of(url)
    size, checksum = request(url, lambda: _hash_remote(url, names) if "://" in url else _hash_local(url, names))
    return SourceIdentity(url, names, size, checksum, stamp)


def glance(source: SourceIdentity) -> str:
    """Return a checksum of a source on a disk that is quick and therefore coarse: of 1 MB in pieces, and of all sizes.

    Args:
        source: the source as it was when the build was planned; one at a URL is known by its own checksum already.

    Raises:
        UserError: it cannot be read.
    """
    if "://" in source.url:
        return source.checksum
    read = functools.partial(_hash_local, source.url, source.arrays, GLANCE_BYTES, GLANCE_PIECE)
    size, checksum = request(source.url, read)
    return f"{size} {checksum}"


@functools.lru_cache(maxsize=1024)
def _check_content(identity: SourceIdentity, stamp: object) -> None:
    """Compare the content of a source; the answer holds as long as its stamp."""
    now = identify(identity.url, identity.arrays)
    if (now.size, now.checksum) != (identity.size, identity.checksum):
        raise UserError(
            f"'{identity.url}' has changed since the build was planned, or is another file on this machine; "
            "run the command again"
        )


def _hash_local(url: str, arrays: tuple[str, ...], budget: int = HASHED_BYTES, piece: int = PIECE) -> tuple[int, str]:
    root = Path(url)
    if root.is_file():
        files = [root]
    else:
        inside = (path for path in root.rglob("*") if path.is_file())
        files = sorted(path for path in inside if _counts(path.relative_to(root).as_posix(), arrays))
    sizes = [file.stat().st_size for file in files]
    digest = hashlib.sha256()
    for file, size in zip(files, sizes, strict=True):
        if len(files) > 1:
            digest.update(f"{file.relative_to(root).as_posix()} {size}\n".encode())
        with file.open("rb") as stream:
            for offset, length in _pieces(size, budget // len(files) if sum(sizes) > budget else size, piece):
                stream.seek(offset)
                digest.update(stream.read(length))
    return sum(sizes), digest.hexdigest()


def _pieces(size: int, budget: int, piece: int) -> list[tuple[int, int]]:
    """Return offset and length of the pieces of a file that are hashed, together about `budget` bytes."""
    if size <= budget:
        return [(start, min(piece, size - start)) for start in range(0, size, piece)]
    piece = min(piece, max(1024, budget // 2), size)
    count = max(2, budget // piece)
    return [(round(i * (size - piece) / (count - 1)), piece) for i in range(count)]


def _hash_remote(url: str, arrays: tuple[str, ...]) -> tuple[int, str]:
    if source_format(url) == "OPeNDAP":
        return fingerprint(url, arrays)
    files, path = filesystem_of(url)
    digest = hashlib.sha256()
    if not is_zarr(url):
        entries = {"": files.info(path)}
    elif url.startswith(("http://", "https://")):
        objects = {name: files.cat_file(f"{path}/{name}") for name in ZARR_METADATA if files.exists(f"{path}/{name}")}
        for name, content in objects.items():
            digest.update(name.encode() + content)
        return sum(map(len, objects.values())), digest.hexdigest()
    else:
        entries = {}
        for group in _groups_of(arrays):
            for entry in files.ls(f"{path}/{group}".rstrip("/"), detail=True):
                name = "/".join(filter(None, (group, entry["name"].rstrip("/").rsplit("/", 1)[-1])))
                if entry["type"] != "directory":
                    entries[name] = entry
                elif name in arrays:
                    entries |= files.find(entry["name"], detail=True)
    for name in sorted(entries):
        entry = entries[name]
        version = next((entry[key] for key in VERSION_KEYS if entry.get(key)), "")
        digest.update(f"{name} {entry.get('size')} {version}\n".encode())
    return sum(entry.get("size") or 0 for entry in entries.values()), digest.hexdigest()


def _counts(key: str, arrays: tuple[str, ...]) -> bool:
    """Return whether an object of a Zarr store is one of an array that is read, or of a group that it is in."""
    return key.rpartition("/")[0] in _groups_of(arrays) or any(key.startswith(f"{name}/") for name in arrays)


def _groups_of(arrays: tuple[str, ...]) -> list[str]:
    """Return the groups that arrays are in, and those above them; the root is the first, by an empty name."""
    return sorted({group for name in arrays for group in groups_above(split_group(name)[0])} | {""})
