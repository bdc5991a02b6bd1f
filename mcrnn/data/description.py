"""What a model has to know of the field that it is trained on, and how values are scaled for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mcrnn.config.sections import DataConfig
from mcrnn.data.field_reader import coarsened
from mcrnn.data.forcings import SOLAR_ANGLE, STATIC, forcing_values
from mcrnn.data.masks import coarse_mask, decode_mask, encode_mask
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.store import FieldStore
from mcrnn.data.store_format import MIN_MAX
from mcrnn.data.time_step import TimeStep
from mcrnn.device import constant
from mcrnn.errors import UserError


@dataclass(frozen=True)
class Scaling:
    """Conversion between the field's units and the units that the model sees, channel by channel.

    Attributes:
        mean: subtracted from each channel: its mean, or its min.
        std: divides each channel afterwards: its standard deviation, or its max less its min.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: DataConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Scaling:
        """Return the scaling that a configuration asks for.

        Args:
            data: scales by the given statistics where `normalize` is set, and leaves values as they are otherwise.
            mean: what is subtracted from each channel, see `FieldDescription.normalization`.
            std: what divides each channel.
        """
        return cls(mean, std) if data.normalize else cls((0.0,) * len(mean), (1.0,) * len(std))

    def to_model(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Convert from the field's units to the model's units."""
        mean_C11, std_C11 = self._statistics_for(x_BTCHW)
        return (x_BTCHW - mean_C11) / std_C11

    def to_physical(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Convert from the model's units to the field's units."""
        mean_C11, std_C11 = self._statistics_for(x_BTCHW)
        return x_BTCHW * std_C11 + mean_C11

    def _statistics_for(self, x_BTCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and std as tensors that broadcast over x, which may have the first channels only."""
        channels = x_BTCHW.shape[-3]  # a model may predict only the first of its channels (`model.channels_out`)
        dtype, device = x_BTCHW.dtype, x_BTCHW.device
        mean_C11 = constant(_by_channel, self.mean[:channels], dtype, device, like=x_BTCHW)
        return mean_C11, constant(_by_channel, self.std[:channels], dtype, device, like=x_BTCHW)


def _by_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return one value for each channel, (C, 1, 1)."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


@dataclass(frozen=True)
class FieldDescription:
    """A field as a configuration uses it. It is saved with every model, see `mcrnn.models.trained_model`.

    Attributes:
        variable: name of the variable, of several joined by commas.
        units: units of the values, "1" where there are none.
        time_step: time between frames, such as "6 h", or a number where time has no units.
        channels: names of the channels that the model sees.
        frame_shape: channels, height and width after coarsening.
        padding: the padding that fits the store's boundary: circular, cylinder or zeros.
        mean: mean of each channel of the training split before coarsening, in the field's units.
        std: standard deviation of each channel of the training split before coarsening, in the field's units.
        store_digest: digest of the store.
        store: URL of the store.
        recipe: how the store was made.
        rows: coordinate of each row after coarsening, empty for a model that was trained before it was kept.
        columns: coordinate of each column after coarsening, likewise.
        coarsened_by_area: whether the means of coarsening are weighted by the area of the cells of each latitude.
        mask: which points of the store's grid have values, as `mcrnn.data.masks` encodes it; empty where all have.
        inputs: the channels that are not predicted, the last ones: `static`, or the forcing of each, by name; see
            `mcrnn.data.forcings`.
        input_units: units of each of them.
        calendar: calendar of the dates, where there are inputs.
        latitude: degrees north of each row before coarsening, where an input is the solar angle.
        longitude: degrees east of each column before coarsening, likewise.
        min_max: min and max of the training split before coarsening, of the channels that are scaled by them, by name.
        logarithms: of the channels that are the logarithm of a variable, what they are, by name.
        channel_units: units of each channel that is predicted; empty for a model that was trained before they were
            kept, or on a store that does not say which channel has which units.
        level_units: units of the levels that channels are at, empty where they are not known.
        grid_units: units of rows and of columns where these are no degrees, each empty where they are not known.
        differences: the channels whose values are differences, such as anomalies of temperature; see
            `mcrnn.data.units`.
    """

    variable: str
    units: str
    time_step: str
    channels: tuple[str, ...]
    frame_shape: tuple[int, int, int]
    padding: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    store_digest: str
    store: str = ""
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    rows: tuple[float, ...] = ()
    columns: tuple[float, ...] = ()
    coarsened_by_area: bool = False
    mask: str = ""
    inputs: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)
    input_units: tuple[str, ...] = ()
    calendar: str = ""
    latitude: tuple[float, ...] = ()
    longitude: tuple[float, ...] = ()
    min_max: dict[str, list[float]] = dataclasses.field(default_factory=dict, hash=False)
    logarithms: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)
    channel_units: tuple[str, ...] = ()
    level_units: str = ""
    grid_units: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: FieldStore, data: DataConfig) -> FieldDescription:
        """Describe the field of a store as a configuration uses it.

        Raises:
            UserError: the store has no such variable, or the coarsening does not divide its grid, or the variables do
                not begin with what is predicted.
        """
        store.channel_indices(data.variables)  # refuses what is no channel
        channels = tuple(data.variables or store.channels)
        inputs = {channel: store.inputs[channel] for channel in channels if channel in store.inputs}
        predicted = channels[: len(channels) - len(inputs)]
        if first := next((channel for channel in predicted if channel in inputs), None):
            raise UserError(
                f"data.variables: {first} of '{store.name}' is an input only: name it after what is predicted"
            )
        if not predicted:
            raise UserError(f"data.variables: all of them are inputs of '{store.name}' only, so nothing is predicted")
        ends = zip(channels, *(store.statistic(name, data.variables) for name in ("min", "max")), strict=True)
        scaling, logarithms = (store.attributes.get(name, {}) for name in ("scaling", "logarithms"))
        has_solar_angle = SOLAR_ANGLE in inputs.values()
        units = store.units_of(predicted)
        return cls(
            variable=store.attributes["variable"],
            units=", ".join(dict.fromkeys(units)),
            time_step=store.attributes["time_step"],
            channels=channels,
            frame_shape=(len(channels), *store.grid(data.coarsen)),
            padding=store.padding,
            mean=tuple(store.statistic("mean", data.variables)),
            std=tuple(store.statistic("std", data.variables)),
            store_digest=store.digest,
            store=store.location.url,
            recipe=store.attributes["recipe"],
            rows=_block_means(store.coordinate("height"), data.coarsen),
            columns=_block_means(store.coordinate("width"), data.coarsen),
            coarsened_by_area=store.row_weights is not None,
            mask=encode_mask(store.mask(variables=data.variables)),
            inputs=inputs,
            input_units=tuple(store.units_of(list(inputs))),
            calendar=store.attributes.get("calendar", "") if inputs else "",
            latitude=tuple(store.coordinate("height").tolist()) if has_solar_angle else (),
            longitude=tuple(store.coordinate("width").tolist()) if has_solar_angle else (),
            min_max={name: [low, high] for name, low, high in ends if scaling.get(name) == MIN_MAX},
            logarithms={name: logarithms[name] for name in channels if name in logarithms},
            channel_units=() if any(", " in each for each in units) else tuple(units),
            level_units=store.attributes.get("level_units", ""),
            grid_units=tuple(store.attributes.get("grid_units", ())),
            differences=tuple(name for name in store.attributes.get("differences", ()) if name in channels),
        )

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What is subtracted from each channel, and what divides it, where `data.normalize` is set."""
        offset = {name: low for name, (low, _) in self.min_max.items()}
        scale = {name: high - low for name, (low, high) in self.min_max.items()}
        return (
            tuple(offset.get(name, mean) for name, mean in zip(self.channels, self.mean, strict=True)),
            tuple(scale.get(name, std) for name, std in zip(self.channels, self.std, strict=True)),
        )

    @property
    def store_mask(self) -> np.ndarray | None:
        """The mask before coarsening, None where all points have values."""
        return decode_mask(self.mask)

    @property
    def model_mask(self) -> np.ndarray | None:
        """The mask of the field as the model sees it, of `frame_shape`; None where all points have values."""
        stored_CHW = self.store_mask
        return None if stored_CHW is None else coarse_mask(stored_CHW, stored_CHW.shape[1] // self.frame_shape[1])

    @property
    def predicted(self) -> tuple[str, ...]:
        """Names of the channels that are no inputs."""
        return self.channels[: len(self.channels) - len(self.inputs)]

    def expected_units(self, channel: str) -> str | None:
        """Return the units of a channel; None where it is not known which of the field's units are this channel's."""
        if channel in self.inputs:
            return dict(zip(self.inputs, self.input_units, strict=True))[channel]
        if self.channel_units:
            return self.channel_units[self.predicted.index(channel)]
        return None if ", " in self.units else self.units

    @property
    def forcings(self) -> list[str]:
        """Names of the forcings among the inputs, which follow from dates."""
        return [name for name in dict.fromkeys(self.inputs.values()) if name != STATIC]

    def inputs_ahead(
        self,
        last_BIHW: np.ndarray,
        starts: Sequence[Any],
        steps: int,
        grid: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return the inputs of a forecast at lead times 1 .. steps - 1: static ones repeated, forcings by their dates.

        Args:
            last_BIHW: the inputs in the last given frame of each forecast.
            starts: date of this frame, one for each forecast; of use where there are forcings.
            steps: number of lead times.
            grid: latitudes and longitudes where they are not those that the model was trained on.

        Returns:
            float32 (B, steps - 1, I, H, W).
        """
        ahead_BTIHW = np.repeat(last_BIHW[:, None].astype(np.float32), steps - 1, axis=1)
        if self.forcings and steps > 1:
            step = TimeStep.parse(self.time_step)
            dates = [step.after(start, lead) for start in starts for lead in range(1, steps)]
            for name, values_NHW in self.forcings_at(dates, grid).items():
                position = list(self.inputs).index(name)
                ahead_BTIHW[:, :, position] = values_NHW.reshape(len(starts), steps - 1, *values_NHW.shape[1:])
        return ahead_BTIHW

    def forcings_at(
        self, dates: Sequence[Any], grid: tuple[np.ndarray, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the channels of forcings at some dates on the model's grid, (T, H, W) or (T, 1, 1), by name.

        Args:
            dates: the dates.
            grid: latitudes and longitudes where they are not those that the model was trained on; they are not
                coarsened.
        """
        latitude, longitude = np.array(self.latitude), np.array(self.longitude)
        found = forcing_values(self.forcings, dates, grid or (latitude, longitude))
        for name, values_THW in found.items():
            if values_THW.shape[1] > 1 and grid is None:
                block = len(latitude) // self.frame_shape[1]
                weights = latitude_weights(latitude) if self.coarsened_by_area else None
                found[name] = coarsened(values_THW, block, weights)
        return {name: values for name, values in found.items() if name in self.inputs}

    def as_dataset(self, store: str) -> dict[str, Any]:
        """Return what the record of a run says of its data; see `mcrnn.tracking.run_folder`.

        Args:
            store: name of the store in the configuration.
        """
        return {
            "name": store,
            "source": self.store or store,
            "digest": self.store_digest,
            "recipe": self.recipe,
            "schema": {"variable": self.variable, "units": self.units, "channels": self.channels},
        }


def _block_means(values: np.ndarray, block: int) -> tuple[float, ...]:
    return tuple(values.reshape(-1, block).mean(1).tolist())
