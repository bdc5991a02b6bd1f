"""A field store that is open for reading: its description, its arrays and its values.

Stores that are unfinished, damaged, truncated or of another kind are refused. Opening compares the presence and size of
every object, and the SHA-256 of metadata and coordinates. Reading compares the size of each object and the checksum of
each chunk, and checks that all values are finite. `FieldStore.verify` compares the SHA-256 of every object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mcrnn.data.field_reader import Block, FieldReader
from mcrnn.data.manifest import Manifest, damaged_error
from mcrnn.data.masks import coarse_mask
from mcrnn.data.root_document import read_root
from mcrnn.data.segments import WHOLE, Segments, within
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.store_format import APPENDING, BY_AREA, MASK, SPLITS, is_beyond, root_digest
from mcrnn.errors import UserError, did_you_mean
from mcrnn.storage.location import Location

if TYPE_CHECKING:
    import cftime
    import zarr

PADDING_OF_BOUNDARY = {"periodic": "circular", "cylinder": "cylinder", "zeros": "zeros"}
"""The padding of a model (`model.padding`) that continues a field beyond its edges as its `boundary` says.

The two vocabularies differ in one word: a field is periodic, and the padding that fits it is called circular, as in
PyTorch (`padding_mode`)."""


@dataclass(frozen=True)
class FieldStore:
    """A complete store whose metadata has been checked. `FieldStore.open` makes one.

    Attributes:
        location: folder of the store.
        attributes: the root attributes, see `mcrnn.data.store_format`.
        manifest: the objects that the store consists of.
        lengths: number of frames of each split of a series, of samples otherwise. Others may be appended while the
            store is open.
    """

    location: Location
    attributes: dict[str, Any]
    manifest: Manifest
    lengths: dict[str, int]

    @classmethod
    def open(cls, location: Location) -> FieldStore:
        """Open a store and check its metadata, its coordinates, and the presence and size of every object.

        Raises:
            UserError: there is no store, it is unfinished, or it differs from its manifest.
        """
        document = read_root(location)
        attributes = document["attributes"]
        if attributes.get("status") == APPENDING:
            raise UserError(
                f"data are being appended to the store '{location.url}', or that was interrupted: run the command "
                "that appends them again to finish it"
            )
        if attributes.get("status") != "complete":
            raise UserError(
                f"the store '{location.url}' is unfinished; run the command that builds it again to finish it"
            )
        if attributes.get("sha256") != root_digest(document):
            raise damaged_error(location, "its attributes have changed since it was built")
        manifest = Manifest.load(location, attributes["manifest_sha256"])
        manifest.check_sizes()
        metadata = manifest.check_metadata()
        shapes = {split: json.loads(metadata[f"{split}/field/zarr.json"])["shape"] for split in SPLITS}
        axis = 1 if attributes["layout"] == "series" else 0
        return cls(location, attributes, manifest, {split: shape[axis] for split, shape in shapes.items()})

    @property
    def history(self) -> list[dict[str, Any]]:
        """The states of a store to which data were appended, the oldest first; see `mcrnn.data.store_format`."""
        return self.attributes.get("history", [])

    @property
    def digests(self) -> set[str]:
        """Digests that the store has, and had before data were appended."""
        return {self.digest, *(state["digest"] for state in self.history)}

    def as_of(self, digest: str | None) -> FieldStore:
        """Return the store as it was when it had a digest: the frames or samples and the statistics of that time.

        It is the store itself where it has the digest now, or never had it.
        """
        digests = [state["digest"] for state in self.history]
        if digest == self.digest or digest not in digests:
            return self
        states = self.history[: digests.index(digest) + 1]
        axis, lengths = self.growing_axis, states[-1]["frames" if self.is_series else "samples"]
        shards = {split: (self.array(split).shards or (1, 1))[axis] for split in lengths}
        kept = {key: entry for key, entry in self.manifest.objects.items() if not is_beyond(key, axis, lengths, shards)}
        attributes = {
            **self.attributes,
            "manifest_sha256": digest,
            "statistics": states[-1]["statistics"],
            "history": states,
        }
        if "segments" in attributes:  # some may have been appended
            attributes["segments"] = {name: within(self.segments(name), 0, count) for name, count in lengths.items()}
        return FieldStore(self.location, attributes, Manifest(self.location, kept), lengths)

    def verify(self, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Read every byte and compare it with the manifest, see `Manifest.verify`."""
        self.manifest.verify(on_bytes)

    @property
    def name(self) -> str:
        """URL of the store, by which messages name it."""
        return self.location.url

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest. Two stores with the same digest hold the same bytes."""
        return self.attributes["manifest_sha256"]

    @property
    def is_series(self) -> bool:
        """Whether each split is one sample with many times."""
        return self.attributes["layout"] == "series"

    @property
    def growing_axis(self) -> int:
        """The axis of the field along which data are appended: 1, the frames of a series, or 0, samples."""
        return 1 if self.is_series else 0

    @property
    def channels(self) -> list[str]:
        """Names of the channels, in order."""
        return self.attributes["channels"]

    @property
    def inputs(self) -> dict[str, str]:
        """Channels that models are given and do not predict, the last ones: `static`, or the forcing of each.

        See `mcrnn.data.forcings`.
        """
        return self.attributes.get("inputs", {})

    @property
    def is_from_the_north(self) -> bool:
        """Whether the first row is the northernmost. Pictures then show it at the top, and otherwise at the bottom."""
        return self.latitude is not None and bool(self.latitude[0] > self.latitude[-1])

    @property
    def padding(self) -> str:
        """The padding of a model that fits the field's boundary: circular, cylinder or zeros."""
        return PADDING_OF_BOUNDARY[self.attributes["boundary"]]

    def statistic(self, name: str, variables: list[str] | None = None) -> list[float]:
        """Return a statistic of each channel of the training split, before coarsening, in the field's units.

        Args:
            name: mean, std, min or max.
            variables: names of the channels, all by default.
        """
        values = self.attributes["statistics"][name]
        return [values[i] for i in self.channel_indices(variables)]

    def units_of(self, channels: Sequence[str]) -> list[str]:
        """Return the units of channels.

        A store that was made before stores had units by channel has them joined by commas, each once. Where it cannot
        be told which channel they belong to, all channels get the joined ones.
        """
        joined = self.attributes["units"]
        known = self.attributes.get("channel_units") or joined.split(", ")
        if len(known) != len(self.channels):
            return [joined] * len(channels)
        return [known[self.channels.index(channel)] for channel in channels]

    def channel_indices(self, variables: list[str] | None) -> list[int]:
        """Return the positions of channels in the store, of all channels by default.

        Raises:
            UserError: a variable is no channel of the store.
        """
        for variable in variables or []:
            if variable not in self.channels:
                raise UserError(f"'{self.name}' has no variable '{variable}'{did_you_mean(variable, self.channels)}")
        return [self.channels.index(v) for v in variables] if variables else list(range(len(self.channels)))

    @cached_property
    def _group(self) -> zarr.Group:
        import zarr

        # The metadata of each node has just been checked, unlike the copies of it that are consolidated in the root.
        return zarr.open_group(self.location.zarr_store(), mode="r", use_consolidated=False)

    def array(self, split: str) -> zarr.Array:
        """Return the field of a split as an array (N, T, C, H, W) that is not loaded.

        Raises:
            UserError: there is no such split.
        """
        if split not in self._group:
            raise UserError(f"the store '{self.name}' has no split '{split}'")
        array = cast("zarr.Array", self._group[f"{split}/field"])
        length, axis = self.lengths[split], self.growing_axis
        if length == array.shape[axis]:
            return array
        import zarr

        shape = (*array.shape[:axis], length, *array.shape[axis + 1 :])
        return zarr.Array(zarr.AsyncArray(array.metadata.update_shape(shape), array.store_path))

    def segments(self, split: str) -> Segments:
        """Return the segments of a split, between which a series has gaps in time."""
        return tuple(self.attributes.get("segments", {}).get(split, WHOLE))

    def dates(self, split: str, frames: Sequence[int] | None = None) -> list[cftime.datetime] | None:
        """Return the dates of some frames of a series, or None for samples, whose times are no dates.

        Args:
            split: train, val or test.
            frames: positions of the frames, all by default.
        """
        import cftime

        calendar = self.attributes.get("calendar")
        if not self.is_series or calendar is None:
            return None
        values = self.times(split)
        values = values if frames is None else values[list(frames)]
        units = str(self._group[f"{split}/time"].attrs["units"])
        return list(cftime.num2date(values, units, calendar=calendar))

    def times(self, split: str) -> np.ndarray:
        """Return the times of a split as numbers, in the units that the coordinate has."""
        times = np.asarray(self._group[f"{split}/time"])
        return times[: self.lengths[split]] if self.is_series else times

    def sample_numbers(self, split: str) -> np.ndarray:
        """Return the number of each sample of a split."""
        numbers = np.asarray(self._group[f"{split}/sample"])
        return numbers if self.is_series else numbers[: self.lengths[split]]

    def coordinate(self, dimension: str) -> np.ndarray:
        """Return the values along a dimension of the grid, height or width, as float64."""
        return np.asarray(self._group[f"train/{dimension}"], dtype=np.float64)

    @property
    def latitude(self) -> np.ndarray | None:
        """Latitude of each row in degrees north, None where the rows are not latitudes."""
        values = self.attributes.get("latitude")
        return None if values is None else np.asarray(values, dtype=np.float64)

    @property
    def longitude(self) -> np.ndarray | None:
        """Longitude of each column in degrees east, None where the columns are not longitudes."""
        is_longitude = self._group["train/width"].attrs.get("standard_name") == "longitude"
        return self.coordinate("width") if is_longitude else None

    @cached_property
    def row_weights(self) -> np.ndarray | None:
        """Weight of each row in the means of coarsening: the area of its cells, None where all rows have the same.

        Stores that were made before there was the attribute `coarsening` are coarsened by the plain mean, as ever.
        """
        if self.latitude is None or self.attributes.get("coarsening") != BY_AREA:
            return None
        return latitude_weights(self.latitude)

    @cached_property
    def _mask(self) -> np.ndarray | None:
        return np.asarray(self._group[MASK], dtype=bool) if f"{MASK}/zarr.json" in self.manifest.objects else None

    def mask(self, coarsen: int = 1, variables: list[str] | None = None) -> np.ndarray | None:
        """Return the mask of some channels, (C, H / coarsen, W / coarsen), None where all points have values.

        Args:
            coarsen: side of the blocks of grid points that are averaged.
            variables: names of the channels, all by default.
        """
        if self._mask is None or (mask := self._mask[self.channel_indices(variables)]).all():
            return None
        self.grid(coarsen)  # refuses blocks that do not divide the grid
        return coarse_mask(mask, coarsen)

    def grid(self, coarsen: int = 1) -> tuple[int, int]:
        """Return height and width after coarsening.

        Raises:
            UserError: the blocks do not divide the grid.
        """
        height, width = self.array("train").shape[-2:]
        if height % coarsen or width % coarsen:
            raise UserError(f"data.coarsen {coarsen} does not divide the grid of '{self.name}', {height} x {width}")
        return height // coarsen, width // coarsen

    def shape(self, split: str, coarsen: int = 1, variables: list[str] | None = None) -> tuple[int, ...]:
        """Return the shape of the array that `load` returns for the same arguments."""
        return (*self.array(split).shape[:2], len(self.channel_indices(variables)), *self.grid(coarsen))

    def blocks(
        self, split: str, coarsen: int = 1, variables: list[str] | None = None, into: np.ndarray | None = None
    ) -> Iterator[Block]:
        """Read a split object by object, so that it need not fit in memory.

        Args:
            split: train, val or test.
            coarsen: side of the blocks of grid points that are averaged.
            variables: names of the channels, all by default.
            into: array of the whole split, which receives the values.

        Returns:
            An iterator over the samples, the times and the values (n, t, C, H, W) of each object. The values are a view
            of `into` where that is given.

        Raises:
            UserError: there is no such split or variable, an object is damaged, or a value is not finite.
        """
        self.grid(coarsen)  # refuses blocks that do not divide the grid
        channels = self.channel_indices(variables)
        mask = self.mask(variables=variables)
        reader = FieldReader(self.manifest, split, self.array(split), channels, coarsen, self.row_weights, mask)
        return reader.blocks(into)

    def load(self, split: str, coarsen: int = 1, variables: list[str] | None = None) -> np.ndarray:
        """Load a whole split into memory, in the field's units.

        Args:
            split: train, val or test.
            coarsen: side of the blocks of grid points that are averaged.
            variables: names of the channels, all by default.

        Returns:
            float32 (N, T, C, H / coarsen, W / coarsen).

        Raises:
            UserError: see `blocks` and `grid`.
        """
        result = np.empty(self.shape(split, coarsen, variables), dtype=np.float32)
        for _ in self.blocks(split, coarsen, variables, into=result):
            pass
        return result
