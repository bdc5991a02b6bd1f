"""A trained model as files: `model.safetensors` and `config.json`, no pickle.

What training writes, the registry packages and evaluation reads. Imports neither Ray nor MLflow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription, Scaling
from mcrnn.errors import UserError
from mcrnn.models import Forecaster
from mcrnn.models.forecaster import build_model
from mcrnn.storage.location import Location

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


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

    def predict(self, frames: Any, steps: int) -> Any:
        """Continue fields in their own units; what goes in as one kind of array comes out as the same.

        Args:
            frames: a NumPy array or a tensor, (batch, time, channel, height, width); or an xarray.DataArray whose
                dimensions are at most one of samples, `time`, at most one named `channel`, and the grid's two last.
            steps: number of lead times.

        Returns:
            The forecasts of lead times 1 .. steps, with the times after the last given one in xarray's.

        Raises:
            ValueError: the frames are not of the model's shape.
        """
        if isinstance(frames, torch.Tensor):
            return self.forecast(frames.float(), steps)
        if isinstance(frames, np.ndarray):
            return self.forecast(torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)), steps).numpy()
        return self._predict_labelled(frames, steps)

    def _predict_labelled(self, frames: Any, steps: int) -> Any:
        import xarray as xr

        if not isinstance(frames, xr.DataArray):
            raise ValueError(f"frames are a NumPy array, a tensor or an xarray.DataArray, not {type(frames).__name__}")
        grid = frames.dims[-2:]
        samples = [name for name in frames.dims[:-2] if name not in ("time", "channel")]
        if "time" not in frames.dims or len(samples) > 1:
            raise ValueError(
                "a DataArray has a dimension 'time', at most one of samples, at most one named 'channel', and the "
                f"grid's two last; this one has {', '.join(map(str, frames.dims))}"
            )
        order = (*samples, "time", *(["channel"] if "channel" in frames.dims else []), *grid)
        ordered = frames.transpose(*order)
        values = ordered.values
        values = values if samples else values[None]
        values = values if "channel" in order else values[:, :, None]
        forecast = self.predict(values, steps)
        channels = forecast.shape[2]
        forecast = forecast if "channel" in order else forecast[:, :, 0]
        forecast = forecast if samples else forecast[0]
        coordinates = {
            name: c for name, c in ordered.coords.items() if "time" not in c.dims and "channel" not in c.dims
        }
        if "channel" in order and "channel" in ordered.coords:
            coordinates["channel"] = ordered["channel"][:channels]
        if "time" in ordered.coords and ordered.sizes["time"] > 1:
            times = ordered.indexes["time"]
            coordinates["time"] = [times[-1] + (times[-1] - times[-2]) * lead for lead in range(1, steps + 1)]
        return xr.DataArray(forecast, coordinates, order, frames.name, frames.attrs).transpose(*frames.dims)


def save(folder: Location, config: Configuration, field: FieldDescription, weights: dict[str, torch.Tensor]) -> None:
    """Write a model directory; the weights first, so that a directory with a config is complete."""
    content = {"configuration": config.model_dump(), "field": vars(field)}
    tensors = {name: value.float().contiguous() for name, value in weights.items()}
    folder.write(WEIGHTS, save_safetensors(tensors))
    folder.write(CONFIG, json.dumps(content, indent=1).encode())


def exists(folder: Location) -> bool:
    """Whether there is a whole one."""
    try:
        folder.read(CONFIG)
    except FileNotFoundError:
        return False
    return True


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
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"'{folder.url}' is not a model directory ({error})") from None
    return TrainedModel(config, field, network.eval())
