"""The frames that forecasts start from, on the grid and in the units of a model, with their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mcrnn.data.description import FieldDescription
from mcrnn.data.field_reader import coarsened
from mcrnn.data.logarithms import is_negative, take_logarithm
from mcrnn.data.masks import coarse_mask
from mcrnn.data.missing_values import without_invalid
from mcrnn.data.time_step import Time, TimeStep, show
from mcrnn.errors import UserError
from mcrnn.forecasting.channels import GivenChannel, Logarithm, describe_conversions


@dataclass(frozen=True)
class GivenFrames:
    """Frames with their labels, on the grid and in the units of a model. `mcrnn.forecasting.given.fit` makes one.

    Attributes:
        name: where they come from, for messages.
        field: the field of the model.
        channels: the model's channels in order but for its forcings, each with the dimensions sample (if there are
            any), time, row and column in any order. Static ones may be without time and sample.
        sample: name of the dimension of samples, None where there is one sequence of frames only.
        time: name of the dimension of times.
        grid: names of the dimensions of rows and of columns.
        times: the times of the frames.
        step: the interval of the model.
        coarsen: side of the blocks of grid points that are averaged.
        row_weights: weight of each row in these means, None if all have the same.
        attributes: attributes of the whole data set.
        mask: points of the grid of the frames at which the model takes values of these channels, None for all.
        place: latitudes and longitudes of the model's solar angle where they are not those of its training.
    """

    name: str
    field: FieldDescription
    channels: tuple[GivenChannel, ...]
    sample: str | None
    time: str
    grid: tuple[str, str]
    times: list[Time]
    step: TimeStep
    coarsen: int
    row_weights: np.ndarray | None
    attributes: dict[str, Any]
    mask: np.ndarray | None = None
    place: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return 1 if self.sample is None else self.channels[0].array.sizes[self.sample]

    @property
    def is_from_the_north(self) -> bool:
        """Whether the first row is the northernmost, so that pictures show it at the top."""
        rows = self.channels[0].array.coords.get(self.grid[0])
        if rows is None or not str(rows.attrs.get("units", "")).startswith("degrees_n"):
            return False
        return bool(rows[0] > rows[-1])

    @property
    def conversions(self) -> str:
        """Which variables are converted, in one line; empty where none is."""
        return describe_conversions(self.channels)

    def loaded(self) -> GivenFrames:
        """Return the same frames with all values in memory, so that the source can be closed."""
        return replace(self, channels=tuple(replace(each, array=each.array.load()) for each in self.channels))

    def read(self, samples: Sequence[int], last_frames: Sequence[int], warm_up: int) -> np.ndarray:
        """Read windows of consecutive frames.

        Args:
            samples: the sample of each window.
            last_frames: the last frame of each window.
            warm_up: frames of a window.

        Returns:
            float32 (B, warm_up, C, H, W), on the model's grid, NaN outside of its mask.

        Raises:
            UserError: a value is missing, or negative where the model takes its logarithm.
        """
        frames_BT = np.asarray(last_frames)[:, None] + np.arange(1 - warm_up, 1)
        frames, position_BT = np.unique(frames_BT, return_inverse=True)
        consecutive = len(frames) == frames[-1] - frames[0] + 1
        selected = slice(int(frames[0]), int(frames[-1]) + 1) if consecutive else frames
        place_BT = np.asarray(samples)[:, None], position_BT.reshape(frames_BT.shape)
        channels = [self._values(c, selected, len(frames))[place_BT] for c in range(len(self.channels))]
        windows_BTCHW = np.stack(channels, axis=2)
        if self.mask is not None:
            windows_BTCHW = np.where(self.mask, windows_BTCHW, np.float32(0))
        if not np.isfinite(windows_BTCHW).all():
            b, t, c = (int(i[0]) for i in np.nonzero(~np.isfinite(windows_BTCHW))[:3])
            at = f"{self.channels[c].array.name} at {show(self.times[frames_BT[b, t]])}"
            raise UserError(
                f"'{self.name}' has missing values in {at}; a model needs a value at each point of its "
                f"{'grid' if self.mask is None else 'mask'}: fill them first"
            )
        given_BTCHW = coarsened(windows_BTCHW, self.coarsen, self.row_weights, self.mask)
        if self.mask is not None:
            given_BTCHW = np.where(coarse_mask(self.mask, self.coarsen), given_BTCHW, np.float32(np.nan))
        return self._with_forcings(given_BTCHW, frames_BT)

    def _values(self, index: int, selected: slice | np.ndarray, count: int) -> np.ndarray:
        """Return some frames of all samples of a channel, as the model takes them, float32 (N, T, H, W)."""
        channel = self.channels[index]
        order = [name for name in (self.sample, self.time, *self.grid) if name in channel.array.dims]
        piece = channel.array.isel({self.time: selected}, missing_dims="ignore").transpose(*order).variable
        dtype = np.float32 if channel.conversion is None else np.float64
        values = without_invalid(piece, np.asarray(piece.values), is_netcdf="source" in piece.encoding, dtype=dtype)
        if channel.conversion is not None:
            with np.errstate(over="ignore"):  # what is beyond the range of float32 is refused as missing
                values = channel.conversion.apply(values).astype(np.float32)
        if channel.logarithm is not None:
            values = self._logarithm(channel, channel.logarithm, values, index)
        if self.time not in order:
            values = np.expand_dims(values, -3)
        values_NTHW = values if self.sample in order else values[None]
        return np.broadcast_to(values_NTHW, (self.samples, count, *values.shape[-2:]))

    def _logarithm(self, channel: GivenChannel, logarithm: Logarithm, values: np.ndarray, index: int) -> np.ndarray:
        """Return the logarithm of values (..., H, W), of which those outside of the mask do not count."""
        counted = values if self.mask is None else np.where(self.mask[index], values, np.float32(0))
        if (negative := is_negative(counted, logarithm.scale)).any():
            raise UserError(
                f"{channel.array.name} in '{self.name}' has negative values, the first of which is "
                f"{counted[negative][0]:g}, and the model takes {logarithm.formula} of it: correct them first, for "
                "example with cdo setrtoc"
            )
        return take_logarithm(counted, logarithm.scale)

    def _with_forcings(self, windows_BTCHW: np.ndarray, frames_BT: np.ndarray) -> np.ndarray:
        """Return windows with the model's forcings, in the order of its channels."""
        if not self.field.forcings:
            return windows_BTCHW
        dates = [self.times[frame] for frame in frames_BT.reshape(-1)]
        found = self.field.forcings_at(dates, self.place)
        others = iter(np.moveaxis(windows_BTCHW, 2, 0))
        shape = (*windows_BTCHW.shape[:2], *windows_BTCHW.shape[3:])
        channels = [
            np.broadcast_to(found[name].reshape(*frames_BT.shape, *found[name].shape[1:]), shape)
            if name in found
            else next(others)
            for name in self.field.channels
        ]
        return np.stack(channels, axis=2)

    def inputs_ahead(self, windows_BTCHW: np.ndarray, last_frames: Sequence[int], steps: int) -> np.ndarray | None:
        """Return the inputs of forecasts at lead times 1 .. steps - 1; None where the model has none.

        Args:
            windows_BTCHW: what `read` returns for these last frames.
            last_frames: the last given frame of each forecast.
            steps: number of lead times.

        Returns:
            float32 (B, steps - 1, I, H, W).
        """
        if not self.field.inputs:
            return None
        starts = [self.times[frame] for frame in last_frames]
        return self.field.inputs_ahead(windows_BTCHW[:, -1, len(self.field.predicted) :], starts, steps, self.place)
