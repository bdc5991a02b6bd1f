"""Open and check a field store, and read its splits.

What is refused: a store that is unfinished, damaged, truncated or not one of this project. Metadata and
coordinates are hashed at every open; the objects of the field when they are read as a whole, or by `verify`.
Reads of parts are guarded by the checksum of each chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mcrnn.errors import UserError, did_you_mean
from mcrnn.storage import Location
from mcrnn.store_format import FORMAT, FORMAT_VERSION, MANIFEST, is_data, root_digest, sha256

if TYPE_CHECKING:
    import zarr

PADDING_OF_BOUNDARY = {"periodic": "circular", "cylinder": "cylinder", "zeros": "zeros"}
READS_AT_ONCE = 8
"""objects in flight: hides the latency of object storage, costs their size in memory"""


@dataclass(frozen=True)
class FieldStore:
    """A complete store, checked."""

    location: Location
    attributes: dict[str, Any]
    manifest: dict[str, dict[str, Any]]
    """size and SHA-256 of every object but the root's own, by key"""

    @classmethod
    def open(cls, location: Location) -> FieldStore:
        """Open a store: its metadata and coordinates against the manifest, its objects for presence and size.

        Raises:
            UserError: there is none, it is unfinished, or what is there is not what its manifest says.
        """
        document = read_root(location)
        attributes = document["attributes"]
        if attributes.get("status") != "complete":
            raise UserError(
                f"the store '{location.url}' is unfinished; run the command that builds it again to finish it"
            )
        if attributes.get("sha256") != root_digest(document):
            raise _damaged(location, "its attributes have changed since it was built")
        try:
            content = location.read(MANIFEST)
        except FileNotFoundError:
            content = b""
        if sha256(content) != attributes["manifest_sha256"]:
            raise _damaged(location, f"{MANIFEST} is missing or has changed")
        store = cls(location, attributes, json.loads(content)["objects"])
        sizes = location.sizes()
        for key, expected in store.manifest.items():
            if key not in sizes:
                raise _damaged(location, f"{key} is missing")
            if sizes[key] != expected["size"]:
                raise _damaged(location, f"{key} has another size than when it was built")
        for _ in store._checked(key for key in store.manifest if not is_data(key)):
            pass
        return store

    def verify(self, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Read every byte and compare it with the manifest.

        Args:
            on_bytes: told the size of each object that was right.

        Raises:
            UserError: an object has changed.
        """
        for _, content in self._checked(self.manifest):
            on_bytes(len(content))

    def _checked(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Objects in order, several read ahead, each compared with the manifest."""

        def read(key: str) -> bytes:
            try:
                content = self.location.read(key)
            except FileNotFoundError:
                raise _damaged(self.location, f"{key} is missing") from None
            if sha256(content) != self.manifest[key]["sha256"]:
                raise _damaged(self.location, f"{key} has changed since it was built")
            return content

        keys = list(keys)
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            # not pool.map, which would hold the content of all objects that are read before they are used
            ahead = [pool.submit(read, key) for key in keys[:READS_AT_ONCE]]
            for index, key in enumerate(keys):
                content = ahead.pop(0).result()
                if index + READS_AT_ONCE < len(keys):
                    ahead.append(pool.submit(read, keys[index + READS_AT_ONCE]))
                yield key, content

    @property
    def name(self) -> str:
        """What a user would call it."""
        return self.location.url

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: two stores with the same digest hold the same bytes."""
        return self.attributes["manifest_sha256"]

    @property
    def is_series(self) -> bool:
        """Whether each split is one sample with many times."""
        return self.attributes["layout"] == "series"

    @property
    def channels(self) -> list[str]:
        """Names of the channels."""
        return self.attributes["channels"]

    @property
    def padding(self) -> str:
        """The padding that fits the field's boundary."""
        return PADDING_OF_BOUNDARY[self.attributes["boundary"]]

    def statistic(self, name: str, variables: list[str] | None = None) -> list[float]:
        """mean, std, min or max of the training split in the field's units, of each channel, before coarsening."""
        values = self.attributes["statistics"][name]
        return [values[i] for i in self.indices(variables)]

    def indices(self, variables: list[str] | None) -> list[int]:
        """Places of the channels asked for, or of all.

        Raises:
            UserError: there is no such channel.
        """
        for variable in variables or []:
            if variable not in self.channels:
                raise UserError(f"'{self.name}' has no variable '{variable}'{did_you_mean(variable, self.channels)}")
        return [self.channels.index(v) for v in variables] if variables else list(range(len(self.channels)))

    @cached_property
    def _group(self) -> zarr.Group:
        import zarr

        # the root's consolidated metadata is for readers that ask for it; the nodes' own has just been checked
        return zarr.open_group(self.location.zarr_store(), mode="r", use_consolidated=False)

    def array(self, split: str) -> zarr.Array:
        """The field of a split, (N, T, C, H, W), not loaded.

        Raises:
            UserError: there is no such split.
        """
        if split not in self._group:
            raise UserError(f"the store '{self.name}' has no split '{split}'")
        return cast("zarr.Array", self._group[f"{split}/field"])

    def grid(self, coarsen: int = 1) -> tuple[int, int]:
        """Height and width after coarsening.

        Raises:
            UserError: the blocks do not divide the grid.
        """
        height, width = self.array("train").shape[-2:]
        if height % coarsen or width % coarsen:
            raise UserError(f"data.coarsen {coarsen} does not divide the grid of '{self.name}', {height} x {width}")
        return height // coarsen, width // coarsen

    def shape(self, split: str, coarsen: int = 1, variables: list[str] | None = None) -> tuple[int, ...]:
        """Shape of a split as `load` gives it."""
        return (*self.array(split).shape[:2], len(self.indices(variables)), *self.grid(coarsen))

    def blocks(
        self, split: str, coarsen: int = 1, variables: list[str] | None = None
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """A split object by object, every byte checked: samples, times and values (n, t, C, H, W) of each.

        Raises:
            UserError: no such split or variable, damaged objects, values that are not finite.
        """
        import zarr
        from zarr.core.buffer import cpu
        from zarr.storage import MemoryStore

        array = self.array(split)
        channels = self.indices(variables)
        self.grid(coarsen)
        metadata = cpu.Buffer.from_bytes(self.location.read(f"{split}/field/zarr.json"))
        samples, times = (array.shards or array.chunks)[:2]
        prefix = f"{split}/field/c/"
        keys = sorted(
            (key for key in self.manifest if key.startswith(prefix)),
            key=lambda key: [int(n) for n in key.removeprefix(prefix).split("/")],
        )
        for key, content in self._checked(keys):
            n, t = (int(i) for i in key.removeprefix(prefix).split("/")[:2])
            where = (
                slice(n * samples, min((n + 1) * samples, array.shape[0])),
                slice(t * times, min((t + 1) * times, array.shape[1])),
            )
            one = MemoryStore(
                {"zarr.json": metadata, key.removeprefix(f"{split}/field/"): cpu.Buffer.from_bytes(content)}
            )
            try:
                values = np.asarray(zarr.open_array(one, mode="r")[where])[:, :, channels]
            except (ValueError, RuntimeError, OSError) as error:
                raise _damaged(self.location, f"{key} cannot be decoded ({error})") from None
            if not np.isfinite(values).all():
                raise _damaged(self.location, f"{key} has values that are not finite")
            yield *where, coarsened(values, coarsen)

    def load(
        self,
        split: str,
        coarsen: int = 1,
        variables: list[str] | None = None,
        on_bytes: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """A whole split in memory, in the field's units, coarsened.

        Args:
            split: train, val or test.
            coarsen: side of the blocks that are averaged.
            variables: names of the channels, all by default.
            on_bytes: told the size in memory of each object that was read.

        Returns:
            float32 (N, T, C, H / coarsen, W / coarsen).

        Raises:
            UserError: see `blocks` and `grid`.
        """
        result = np.empty(self.shape(split, coarsen, variables), dtype=np.float32)
        for samples, times, values in self.blocks(split, coarsen, variables):
            result[samples, times] = values
            on_bytes(values.nbytes)
        return result


def read_root(location: Location) -> dict[str, Any]:
    """The root's document of a store in whatever state.

    Raises:
        UserError: there is none, or it is of another kind or version.
    """
    try:
        document = json.loads(location.read("zarr.json"))
        attributes = document["attributes"]
        known = attributes.get("format") == FORMAT
    except FileNotFoundError:
        raise UserError(
            f"there is no store '{location.url}'; make one with python -m data_prep.navier_stokes or data_prep.netcdf"
        ) from None
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


def coarsened(values: np.ndarray, block: int) -> np.ndarray:
    """Means over blocks of block x block grid points of the last two axes."""
    if block == 1:
        return values
    *rest, height, width = values.shape
    blocks = values.reshape(*rest, height // block, block, width // block, block)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)
