"""Open and check a field store; its splits in memory; windows of them.

A window of `sequence_length` S takes S + 1 consecutive frames f_0 .. f_S: inputs f_0 .. f_{S-1}, targets
f_1 .. f_S. An epoch has one random window of each training sample. Validation and test windows start at each
sample's first frame.

Axes: N sample, B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from mcrnn.config import DataConfig
from mcrnn.errors import UserError
from mcrnn.store_format import FORMAT, FORMAT_VERSION, MANIFEST, attributes_digest, sha256

if TYPE_CHECKING:
    import zarr

PADDING_OF_BOUNDARY = {"periodic": "circular", "cylinder": "cylinder", "zeros": "zeros"}


@dataclass(frozen=True)
class FieldStore:
    """A complete store, checked: metadata and coordinates against the manifest, objects for presence and size."""

    path: Path
    attributes: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> FieldStore:
        """Open a store.

        Raises:
            UserError: there is none, it is unfinished, or what is there is not what its manifest says.
        """
        if not path.exists():
            raise UserError(f"there is no store '{path}'; make it with python -m data_prep.navier_stokes")
        try:
            attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
            known = attributes.get("format") == FORMAT
        except (OSError, ValueError, KeyError, AttributeError):
            known = False
        if not known:
            raise UserError(f"'{path}' is not a field store")
        if attributes["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"'{path}' has format version {attributes['format_version']}, this version of mcrnn "
                f"reads {FORMAT_VERSION}"
            )
        if attributes.get("status") != "complete":
            raise UserError(f"the store '{path}' is unfinished; run the command that builds it again to finish it")
        if attributes.get("attributes_sha256") != attributes_digest(attributes):
            raise UserError(f"the store '{path}' is damaged: its attributes have changed since it was built")
        store = cls(path, attributes)
        store._check_objects()
        return store

    def _check_objects(self) -> None:
        manifest = self.path / MANIFEST
        if not manifest.is_file() or sha256(manifest.read_bytes()) != self.digest:
            raise UserError(f"the store '{self.path}' is damaged: {MANIFEST} is missing or has changed")
        for key, expected in json.loads(manifest.read_bytes())["objects"].items():
            file = self.path / key
            if not file.is_file():
                raise UserError(f"the store '{self.path}' is damaged: {key} is missing")
            if file.stat().st_size != expected["size"]:
                raise UserError(
                    f"the store '{self.path}' is damaged: {key} has another size than when it was built"
                )
            is_field = "/field/c/" in f"/{key}"
            if not is_field and sha256(file.read_bytes()) != expected["sha256"]:
                raise UserError(f"the store '{self.path}' is damaged: {key} has changed since it was built")

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: two stores with the same digest hold the same bytes."""
        return self.attributes["manifest_sha256"]

    @property
    def mean(self) -> float:
        """Mean of the training split, in the field's units, before coarsening."""
        return self.attributes["statistics"]["mean"]

    @property
    def std(self) -> float:
        """Standard deviation of the training split, in the field's units, before coarsening."""
        return self.attributes["statistics"]["std"]

    @property
    def channels(self) -> list[str]:
        """Names of the channels."""
        return self.attributes["channels"]

    @property
    def padding(self) -> str:
        """The padding that fits the field's boundary."""
        return PADDING_OF_BOUNDARY[self.attributes["boundary"]]

    @cached_property
    def _group(self) -> zarr.Group:
        import zarr

        # the root's consolidated metadata is for readers that ask for it; the nodes' own has just been checked
        return zarr.open_group(self.path, mode="r", use_consolidated=False)

    def array(self, split: str) -> zarr.Array:
        """The field of a split, (N, T, C, H, W), not loaded.

        Raises:
            UserError: there is no such split.
        """
        if split not in self._group:
            raise UserError(f"the store '{self.path}' has no split '{split}'")
        return cast("zarr.Array", self._group[f"{split}/field"])

    def grid(self, coarsen: int = 1) -> tuple[int, int]:
        """Height and width after coarsening.

        Raises:
            UserError: the blocks do not divide the grid.
        """
        height, width = self.array("train").shape[-2:]
        if height % coarsen or width % coarsen:
            raise UserError(
                f"data.coarsen {coarsen} does not divide the grid of '{self.path}', {height} x {width}"
            )
        return height // coarsen, width // coarsen

    def load(self, split: str, coarsen: int = 1) -> np.ndarray:
        """A whole split in memory, in the field's units, coarsened.

        Returns:
            float32 (N, T, C, H / coarsen, W / coarsen).

        Raises:
            UserError: no such split, damaged objects, values that are not finite, blocks that do not divide
                the grid.
        """
        height, width = self.grid(coarsen)
        array = self.array(split)
        samples_a_shard = (array.shards or array.chunks)[0]
        result = np.empty((*array.shape[:3], height, width), dtype=np.float32)
        for start in range(0, array.shape[0], samples_a_shard):
            block = slice(start, start + samples_a_shard)
            try:
                values = np.asarray(array[block])
            except (ValueError, RuntimeError, OSError) as error:
                raise UserError(
                    f"the store '{self.path}' is damaged: {split}/field cannot be read ({error})"
                ) from None
            if not np.isfinite(values).all():
                raise UserError(
                    f"the store '{self.path}' is damaged: {split}/field has values that are not finite"
                )
            if coarsen > 1:
                blocks = values.reshape(*values.shape[:3], height, coarsen, width, coarsen)
                values = blocks.mean(axis=(4, 6), dtype=np.float32)
            result[block] = values
        return result


@dataclass(frozen=True)
class FieldData:
    """Training and validation splits in memory, in the field's units, with what a training must know of them.

    Plain arrays, so that one copy can be shared by all trials of a node.
    """

    train_NTCHW: np.ndarray
    val_NTCHW: np.ndarray
    mean: float
    std: float
    padding: str
    digest: str

    @classmethod
    def load(cls, store: FieldStore, coarsen: int = 1) -> FieldData:
        """Load what a training needs."""
        return cls(
            train_NTCHW=store.load("train", coarsen),
            val_NTCHW=store.load("val", coarsen),
            mean=store.mean,
            std=store.std,
            padding=store.padding,
            digest=store.digest,
        )

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train_NTCHW.shape[2:]
        return channels, height, width


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor that shares the array's memory; it must not be written to where the array is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


@dataclass(frozen=True)
class Scaling:
    """Between the field's units and those the model sees."""

    mean: float
    std: float

    @classmethod
    def of(cls, data: DataConfig, mean: float, std: float) -> Scaling:
        """Of the training split's statistics, or none, as the configuration says."""
        return cls(mean, std) if data.normalize else cls(0.0, 1.0)

    def to_model(self, x: torch.Tensor) -> torch.Tensor:
        """Field units to model units."""
        return (x - self.mean) / self.std

    def to_physical(self, x: torch.Tensor) -> torch.Tensor:
        """Model units to field units."""
        return x * self.std + self.mean


def check_length(frames: int, needed: int, what: str) -> None:
    """Refuse windows that are longer than the samples.

    Raises:
        UserError: `needed` is above `frames`.
    """
    if needed > frames:
        raise UserError(f"{what} needs samples of {needed} frames, the store has {frames}")


@dataclass(frozen=True)
class TrainingWindows:
    """One random window of each sample, in random order, anew each epoch; the same for the same seed."""

    field_NTCHW: torch.Tensor
    sequence_length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        length = self.field_NTCHW.shape[1]
        check_length(length, self.sequence_length + 1, f"data.sequence_length {self.sequence_length}")

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return math.ceil(len(self.field_NTCHW) / self.batch_size)

    def epoch(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[torch.Tensor, float]]:
        """The batches of an epoch, or one worker's part of each.

        Yields:
            windows (B, S + 1, C, H, W) in the field's units, and their weight: the share of this part in the
            global batch times the number of workers, by which the mean loss of the part is multiplied so
            that the workers' mean is the global batch's mean.
        """
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        samples, frames = self.field_NTCHW.shape[:2]
        order_N = torch.randperm(samples, generator=generator)
        starts_N = torch.randint(frames - self.sequence_length, (samples,), generator=generator)
        steps_T = torch.arange(self.sequence_length + 1)
        for batch_N in order_N.split(self.batch_size):
            part_B = batch_N[rank::world_size]
            weight = len(part_B) * world_size / len(batch_N)
            if len(part_B) == 0:
                part_B = batch_N[:1]  # every worker takes part in every step; this one's weight is zero
            yield self.field_NTCHW[part_B[:, None], starts_N[part_B][:, None] + steps_T], weight
