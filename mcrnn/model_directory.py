"""A trained model as files: `model.safetensors` and `config.json`, no pickle.

What training writes, the registry packages and evaluation reads. Imports neither Ray nor MLflow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from mcrnn.config import Configuration, DataConfig
from mcrnn.errors import UserError
from mcrnn.fields import FieldStore
from mcrnn.models import Forecaster
from mcrnn.storage import Location
from mcrnn.training import build_model
from mcrnn.windows import Scaling

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


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
        )


@dataclass(frozen=True)
class TrainedModel:
    """A forecaster that speaks the field's units."""

    config: Configuration
    field: FieldDescription
    network: Forecaster

    @property
    def scaling(self) -> Scaling:
        """Between the field's units and the network's."""
        return Scaling.of(self.config.data, self.field.mean, self.field.std)

    @torch.no_grad()
    def forecast(self, frames_BTCHW: torch.Tensor, steps: int) -> torch.Tensor:
        """Forecasts of lead times 1 .. steps after the given frames, in the field's units.

        Args:
            frames_BTCHW: at least one frame, on the model's (coarsened) grid.
            steps: number of lead times.

        Returns:
            (B, steps, C, H, W).
        """
        return self.scaling.to_physical(self.network.forecast(self.scaling.to_model(frames_BTCHW), steps))


def save(folder: Location, config: Configuration, field: FieldDescription, weights: dict[str, torch.Tensor]) -> None:
    """Write a model directory; the weights first, so that a directory with a config is complete."""
    content = {"configuration": config.model_dump(), "field": vars(field)}
    tensors = {name: value.float().contiguous() for name, value in weights.items()}
    folder.write(WEIGHTS, save_safetensors(tensors))
    folder.write(CONFIG, json.dumps(content, indent=1).encode())


def load(folder: Location) -> TrainedModel:
    """Read a model directory.

    Raises:
        UserError: it is not one.
    """
    try:
        content: dict[str, Any] = json.loads(folder.read(CONFIG))
        config = Configuration.model_validate(content["configuration"])
        described: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["field"].items()}
        field = FieldDescription(**described)
        network = build_model(config.model, field.frame_shape, field.padding)
        network.load_state_dict(load_safetensors(folder.read(WEIGHTS)))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"'{folder.url}' is not a model directory ({error})") from None
    return TrainedModel(config, field, network.eval())
