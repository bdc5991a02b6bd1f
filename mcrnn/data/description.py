"""What a model has to know of the field that it was trained on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.store import FieldStore


@dataclass(frozen=True)
class Scaling:
    """Between the field's units and those the model sees, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: DataConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Scaling:
        """Of the training split's statistics, or none, as the configuration says."""
        return cls(mean, std) if data.normalize else cls((0.0,) * len(mean), (1.0,) * len(std))

    def to_model(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Field units to model units."""
        mean, std = self._like(x_BTCHW)
        return (x_BTCHW - mean) / std

    def to_physical(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Model units to field units."""
        mean, std = self._like(x_BTCHW)
        return x_BTCHW * std + mean

    def _like(self, x_BTCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = x_BTCHW.shape[-3]  # all, or the first that are predicted
        mean, std = (
            torch.tensor(v[:channels], dtype=x_BTCHW.dtype, device=x_BTCHW.device) for v in (self.mean, self.std)
        )
        return mean[:, None, None], std[:, None, None]


@dataclass(frozen=True)
class FieldDescription:
    """What a model must know of the field it was trained on."""

    variable: str
    units: str
    time_step: str
    channels: tuple[str, ...]
    frame_shape: tuple[int, int, int]
    """channels, height, width after coarsening"""
    padding: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """of each channel of the training split, before coarsening"""
    store_digest: str
    store: str = ""
    """URL of the store"""
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """how the store was made"""

    @classmethod
    def of(cls, store: FieldStore, data: DataConfig) -> FieldDescription:
        """Describe a store's field as a configuration uses it."""
        channels = tuple(data.variables or store.channels)
        return cls(
            variable=store.attributes["variable"],
            units=store.attributes["units"],
            time_step=store.attributes["time_step"],
            channels=channels,
            frame_shape=(len(channels), *store.grid(data.coarsen)),
            padding=store.padding,
            mean=tuple(store.statistic("mean", data.variables)),
            std=tuple(store.statistic("std", data.variables)),
            store_digest=store.digest,
            store=store.location.url,
            recipe=store.attributes["recipe"],
        )
