"""Open and check a field store, and read its splits.

What is refused: a store that is unfinished, damaged, truncated or not one of this project. Metadata and
coordinates are hashed at every open, the objects of the field by `verify`; every read of them is guarded by the
checksum of each chunk and by the size of the object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mcrnn.data.manifest import _damaged, map_ahead, read_root
from mcrnn.data.store_format import MANIFEST, is_data, root_digest, sha256
from mcrnn.errors import UserError, did_you_mean
from mcrnn.storage.location import Location

if TYPE_CHECKING:
    import cftime
    import zarr
PADDING_OF_BOUNDARY = {"periodic": "circular", "cylinder": "cylinder", "zeros": "zeros"}


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
        for size in self._checked(self.manifest):
            on_bytes(size)

    def _checked(self, keys: Iterable[str]) -> Iterator[int]:
        """Compare objects with the manifest; gives the size of each."""

        def compare(key: str) -> int:
            content = self._read(key)
            if sha256(content) != self.manifest[key]["sha256"]:
                raise _damaged(self.location, f"{key} has changed since it was built")
            return len(content)

        return map_ahead(compare, keys)

    def _read(self, key: str) -> bytes:
        try:
            content = self.location.read(key)
        except FileNotFoundError:
            raise _damaged(self.location, f"{key} is missing") from None
        if len(content) != self.manifest[key]["size"]:
            raise _damaged(self.location, f"{key} has another size than when it was built")
        return content

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
    def is_from_the_north(self) -> bool:
        """Whether the first row is the northernmost, so that pictures have to be turned over."""
        return self.latitude is not None and bool(self.latitude[0] > self.latitude[-1])

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

    def dates(self, split: str) -> list[cftime.datetime] | None:
        """The date of each frame of a series, None where its times are no dates."""
        import cftime

        calendar = self.attributes.get("calendar")
        if not self.is_series or calendar is None:
            return None
        time = self._group[f"{split}/time"]
        return list(cftime.num2date(np.asarray(time), str(time.attrs["units"]), calendar=calendar))

    @property
    def latitude(self) -> np.ndarray | None:
        """Degrees north of the rows, None where they are no latitudes."""
        values = self.attributes.get("latitude")
        return None if values is None else np.asarray(values, dtype=np.float64)

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
        self, split: str, coarsen: int = 1, variables: list[str] | None = None, into: np.ndarray | None = None
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """A split object by object, checked: samples, times and values (n, t, C, H, W) of each.

        Args:
            split: train, val or test.
            coarsen: side of the blocks that are averaged.
            variables: names of the channels, all by default.
            into: array of the whole split, into which the values are put and of which those given out are parts.

        Raises:
            UserError: no such split or variable, damaged objects, values that are not finite.
        """
        from mcrnn.data.sharding import decode

        array = self.array(split)
        channels = self.indices(variables)
        self.grid(coarsen)
        as_stored = coarsen == 1 and channels == list(range(len(self.channels)))
        prefix = f"{split}/field/"
        shard = array.shards
        assert shard is not None, "fields are always written in shards"
        samples, times = shard[:2]

        def place(key: str) -> tuple[int, int]:
            n, t = key.removeprefix(f"{prefix}c/").split("/")[:2]
            return int(n) * samples, int(t) * times

        def load(key: str) -> tuple[slice, slice, np.ndarray]:
            n, t = place(key)
            where = slice(n, min(n + samples, array.shape[0])), slice(t, min(t + times, array.shape[1]))
            part = into[where] if into is not None else None
            shape = (where[0].stop - n, where[1].stop - t, *array.shape[2:])
            # decoded right where it is to be: fresh memory and copies cost as much as decoding
            values = part if part is not None and as_stored else np.empty(shape, np.float32)
            try:
                decode(self._read(key), shard, array.chunks, values)
            except UserError:
                raise
            except (ValueError, RuntimeError) as error:
                raise _damaged(self.location, f"{key} cannot be decoded ({error})") from None
            if not np.isfinite(values).all():
                raise _damaged(self.location, f"{key} has values that are not finite")
            if not as_stored:
                values = coarsened(values[:, :, channels], coarsen)
                if part is not None:
                    part[...] = values
            return *where, values

        keys = sorted((key for key in self.manifest if key.startswith(f"{prefix}c/")), key=place)
        return map_ahead(load, keys)

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
        for _, _, values in self.blocks(split, coarsen, variables, into=result):
            on_bytes(values.nbytes)
        return result


def coarsened(values: np.ndarray, block: int) -> np.ndarray:
    """Means over blocks of block x block grid points of the last two axes."""
    if block == 1:
        return values
    *rest, height, width = values.shape
    blocks = values.reshape(*rest, height // block, block, width // block, block)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)
