"""A trained model as files: the model directory with `model.safetensors` and `config.json`, and no pickle.

Training writes it, the registry packages it, evaluation reads it. Imports neither Ray nor MLflow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription, Scaling
from mcrnn.data.forcings import dates_of
from mcrnn.data.time_step import MONTHS, TimeStep
from mcrnn.errors import UserError
from mcrnn.models import Forecaster
from mcrnn.models.forecaster import build_model, with_inputs
from mcrnn.models.precision import running_in
from mcrnn.models.sizing import ModelCost, model_cost
from mcrnn.storage.location import Location

if TYPE_CHECKING:
    from mcrnn.models.ensemble import Ensemble

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class TrainedModel:
    """A forecaster whose inputs and outputs are in the field's units."""

    config: Configuration
    """The configuration that it was trained with."""
    field: FieldDescription
    """The field that it was trained on."""
    network: Forecaster
    """The network, whose units are those of `scaling`."""

    @property
    def architecture(self) -> str:
        """What the model is, in a few words."""
        return self.config.model.architecture

    @property
    def cost(self) -> ModelCost:
        """The parameters, and the work of the forward pass."""
        return model_cost(self.config.model, self.field.frame_shape)

    @property
    def scaling(self) -> Scaling:
        """Conversion between the field's units and the network's."""
        return Scaling.of(self.config.data, *self.field.normalization)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights, which is that of the file `model.safetensors`.

        That of an ensemble is of the weights and the counts of its members.
        """
        return hashlib.sha256(_serialize(self.network.state_dict())).hexdigest()

    @torch.no_grad()
    def run(self, x_BTCHW: torch.Tensor, warm_up: int, steps: int) -> torch.Tensor:
        """Run the network in the precision that it was trained and validated in.

        Args:
            x_BTCHW: the given frames, in the field's units; see `Forecaster.forward` for how many are read.
            warm_up: steps whose input is a given frame.
            steps: number of steps.

        Returns:
            The predictions of all steps, (B, steps, C, H, W), in the field's units.
        """
        with running_in(self.config.train.precision, x_BTCHW.device):
            prediction_BTCHW = self.network(self.scaling.to_model(x_BTCHW), warm_up, steps)
        return self.scaling.to_physical(prediction_BTCHW)

    @torch.no_grad()
    def forecast(
        self, frames_BTCHW: torch.Tensor, steps: int, inputs_BTIHW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Continue a sequence of frames, in the field's units.

        Args:
            frames_BTCHW: the given frames, at least one, on the model's (coarsened) grid. What they hold outside of
                the field's mask is not read.
            steps: number of lead times.
            inputs_BTIHW: the channels that are inputs only (`FieldDescription.inputs`), at lead times 1 .. steps - 1;
                None where there is none.

        Returns:
            The forecasts of lead times 1 .. steps, (B, steps, C, H, W), NaN outside of the mask.
        """
        given = frames_BTCHW.shape[1]
        prediction_BTCHW = self.run(with_inputs(frames_BTCHW, inputs_BTIHW), given, given + steps - 1)
        forecast_BTCHW = prediction_BTCHW[:, given - 1 :]
        mask_CHW = self.field.model_mask
        if mask_CHW is None:
            return forecast_BTCHW
        predicted = torch.tensor(mask_CHW[: forecast_BTCHW.shape[2]], device=forecast_BTCHW.device)
        return torch.where(predicted, forecast_BTCHW, torch.nan)

    def predict(self, frames: Any, steps: int, *, start: Any = None, inputs: Any = None) -> Any:
        """Continue a sequence of frames, in the field's units, and return the kind of array that was given.

        Args:
            frames: a NumPy array or a tensor, (batch, time, channel, height, width); or an xarray.DataArray with a
                dimension `time`, at most one of samples, at most one named `channel`, and the grid's two last.
            steps: number of lead times.
            start: date of the last given frame, such as "2018-03-01T06:00", or one for each forecast: from it follow
                the solar angle and the day of the year, of models that have them as inputs. A DataArray with dates
                has it already.
            inputs: in place of it, all channels that are inputs only, at lead times 1 .. steps - 1: an array
                (batch, steps - 1, input, height, width).

        Returns:
            The forecasts of lead times 1 .. steps. A DataArray has their times as its coordinate, if it was given
            with the times of at least two frames.

        Raises:
            ValueError: the frames are not of the model's shape, or the start is needed and not given.
        """
        if isinstance(frames, torch.Tensor):
            ahead = self.inputs_ahead(frames, steps, start) if inputs is None else torch.as_tensor(inputs)
            return self.forecast(frames.float(), steps, ahead)
        if isinstance(frames, np.ndarray):
            device = next(self.network.parameters()).device
            given_BTCHW = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)).to(device)
            return self.predict(given_BTCHW, steps, start=start, inputs=inputs).cpu().numpy()
        return self._predict_labelled(frames, steps, start, inputs)

    def inputs_ahead(self, frames_BTCHW: torch.Tensor, steps: int, start: Any) -> torch.Tensor | None:
        """Return the channels that are inputs only at lead times 1 .. steps - 1, in the field's units.

        Args:
            frames_BTCHW: the given frames.
            steps: number of lead times.
            start: date of the last given frame, or one for each forecast; see `predict`.

        Returns:
            (B, steps - 1, I, H, W); None where none is needed, or the frames are none of the model's.

        Raises:
            ValueError: the start is needed and not given, or cannot be read.
        """
        field = self.field
        if not field.inputs or steps < 2 or frames_BTCHW.ndim != 5 or frames_BTCHW.shape[2] != len(field.channels):
            return None
        if field.forcings and start is None:
            raise ValueError(
                f"the model has {' and '.join(field.forcings)} as inputs, which change with time: give the date of the "
                "last given frame as `start`"
            )
        starts = dates_of(start, len(frames_BTCHW), field.calendar) if field.forcings else []
        last_BIHW = frames_BTCHW[:, -1, len(field.predicted) :].cpu().numpy()
        if field.latitude and last_BIHW.shape[2:] != field.frame_shape[1:]:
            raise ValueError("on another grid than the model's, the solar angle is not known: give `inputs`")
        return torch.from_numpy(field.inputs_ahead(last_BIHW, starts, steps))

    def _predict_labelled(self, frames: Any, steps: int, start: Any, inputs: Any) -> Any:
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
        has_times = "time" in ordered.coords
        if has_times and start is None and self.field.forcings:
            start = ordered.indexes["time"][-1]
        forecast = self.predict(values, steps, start=start, inputs=inputs)
        channels = forecast.shape[2]
        forecast = forecast if "channel" in order else forecast[:, :, 0]
        forecast = forecast if samples else forecast[0]
        coordinates = {
            name: c for name, c in ordered.coords.items() if "time" not in c.dims and "channel" not in c.dims
        }
        if "channel" in order and "channel" in ordered.coords:
            coordinates["channel"] = ordered["channel"][:channels]
        if has_times and ordered.sizes["time"] > 1:
            coordinates["time"] = self._times_after(ordered.indexes["time"], steps)
        return xr.DataArray(forecast, coordinates, order, frames.name, frames.attrs).transpose(*frames.dims)

    def _times_after(self, times: Any, steps: int) -> list[Any]:
        """Return the times that follow the given ones, as far apart as these; months and years are the calendar's."""
        with contextlib.suppress(ValueError):  # a store of version 0.1.0 may have any text as its time step
            step = TimeStep.parse(self.field.time_step)
            if step.unit in MONTHS and hasattr(times[-1], "month"):
                return [step.after(times[-1], lead) for lead in range(1, steps + 1)]
        return [times[-1] + (times[-1] - times[-2]) * lead for lead in range(1, steps + 1)]


def save(folder: Location, config: Configuration, field: FieldDescription, weights: dict[str, torch.Tensor]) -> None:
    """Write a model directory.

    The weights are written first, so that a directory with a configuration is complete.

    Args:
        folder: the directory.
        config: the configuration that the model was trained with.
        field: the field that it was trained on.
        weights: state of the network; saved in float32.
    """
    _write(folder, {"configuration": config.model_dump(), "field": vars(field)}, weights)


def save_ensemble(folder: Location, ensemble: Ensemble) -> None:
    """Write an ensemble as a model directory: its members in the same two files.

    Args:
        folder: the directory.
        ensemble: the ensemble.
    """
    members = [
        {"name": name, "count": count, "configuration": each.config.model_dump(), "field": vars(each.field)}
        for each, name, count in zip(ensemble.members, ensemble.names, ensemble.counts, strict=True)
    ]
    weights = {
        f"{index}.{name}": value
        for index, each in enumerate(ensemble.members)
        for name, value in each.network.state_dict().items()
    }
    _write(folder, {"members": members}, weights)


def _write(folder: Location, content: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    folder.write(WEIGHTS, _serialize(weights))
    folder.write(CONFIG, json.dumps(content, indent=1).encode())


def _serialize(weights: dict[str, torch.Tensor]) -> bytes:
    return save_safetensors({name: value.float().contiguous() for name, value in weights.items()})


def exists(folder: Location) -> bool:
    """Return whether the folder is a complete model directory."""
    try:
        folder.read(CONFIG)
    except FileNotFoundError:
        return False
    return True


def load(folder: Location) -> TrainedModel:
    """Read a model directory.

    Returns:
        The model on the host, ready for forecasts.

    Raises:
        UserError: the folder is not a model directory.
    """
    try:
        content: dict[str, Any] = json.loads(folder.read(CONFIG))
        weights = load_safetensors(folder.read(WEIGHTS))
        if "members" not in content:
            return _built(content, weights)
        members = [
            _built(each, {name.removeprefix(f"{i}."): w for name, w in weights.items() if name.startswith(f"{i}.")})
            for i, each in enumerate(content["members"])
        ]
        counts, names = ([each[key] for each in content["members"]] for key in ("count", "name"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"'{folder.url}' is not a model directory ({error})") from None
    from mcrnn.models.ensemble import Ensemble

    return Ensemble.of(members, counts, names)


def _built(content: dict[str, Any], weights: dict[str, torch.Tensor]) -> TrainedModel:
    """Build a model of its configuration, its field and its weights."""
    config = Configuration.model_validate(content["configuration"])
    described: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["field"].items()}
    field = FieldDescription(**described)
    network = network_of(config, field)
    network.load_state_dict(weights)
    return TrainedModel(config, field, network.eval())


def network_of(config: Configuration, field: FieldDescription) -> Forecaster:
    """Build the network of a configuration for a field, with random weights."""
    network = build_model(config.model, field.frame_shape, field.padding, len(field.inputs))
    if (mask_CHW := field.model_mask) is not None:
        scaling = Scaling.of(config.data, *field.normalization)
        outside = [(a - b) / c for a, b, c in zip(field.mean, scaling.mean, scaling.std, strict=True)]
        network.set_mask(mask_CHW, outside)
    return network
