"""`forecasts.zarr`: given frames, truth and forecasts of some windows, as a Zarr group that xarray opens."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcrnn.evaluation.evaluation_set import BATCH_SIZE
from mcrnn.evaluation.result import EvaluationResult


@dataclass(frozen=True)
class Forecasts:
    """The forecasts that were written.

    Attributes:
        group: the Zarr group.
        names: names of the models, in the order of the dimension `model`.
    """

    group: Any
    names: list[str]

    def first_window(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return truth and a model's forecast of the first window's first channel, (lead time, height, width) each."""
        return self.group["truth"][0, :, 0], self.group["forecast"][self.names.index(name), 0, :, 0]


def write_forecasts(path: Path, results: dict[str, EvaluationResult], num_windows: int | None) -> Forecasts:
    """Write given frames, truth and forecasts of the first windows, batch by batch so that they need not fit in memory.

    Outside of the mask of the field they are NaN.

    Args:
        path: path of the Zarr group; what is there is replaced.
        results: evaluated models by name, all on the same evaluation set.
        num_windows: number of windows; None for all.
    """
    import zarr

    names = list(results)
    first = results[names[0]]
    evaluation_set, field = first.evaluation_set, first.model.field
    windows = len(evaluation_set) if num_windows is None else min(max(num_windows, 1), len(evaluation_set))
    leads = evaluation_set.horizon + 1
    channels, height, width = evaluation_set.split.shape[-3:]
    predicted = first.model.network.channels_out
    shutil.rmtree(path, ignore_errors=True)
    attributes = {
        "variable": field.variable,
        "units": field.units,
        "time_step": field.time_step,
        "store": first.store.name,
        "store_digest": first.store.digest,
        "description": "lead time 1 is the frame after the last given one",
        **({"logarithms": field.logarithms} if field.logarithms else {}),
    }
    group = zarr.create_group(str(path), attributes=attributes)

    def array(name: str, shape: tuple[int, ...], dimensions: tuple[str, ...]) -> Any:
        # a chunk is what is written at a time: as few files as possible, since each is uploaded by itself
        largest = {"model": 1, "window": BATCH_SIZE}
        chunks = tuple(min(n, largest.get(dimension, n)) for dimension, n in zip(dimensions, shape, strict=True))
        created = group.create_array(name, shape=shape, chunks=chunks, dtype="float32", dimension_names=dimensions)
        created.attrs["units"] = field.units
        return created

    def coordinate(name: str, values: Any) -> None:
        values = np.asarray(values)
        created = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=(name,))
        created[:] = values

    grid = ("height", "width")
    given = array(
        "given",
        (windows, evaluation_set.warm_up, channels, height, width),
        ("window", "given_frame", "input_channel", *grid),
    )
    truth = array("truth", (windows, leads, predicted, height, width), ("window", "lead_time", "channel", *grid))
    forecast = array(
        "forecast",
        (len(names), windows, leads, predicted, height, width),
        ("model", "window", "lead_time", "channel", *grid),
    )
    coordinate("lead_time", np.arange(1, leads + 1))
    for name, values in (("model", names), ("channel", field.channels[:predicted]), ("input_channel", field.channels)):
        coordinate(name, np.array(list(values), dtype=np.dtypes.StringDType()))
    coordinate("window", np.arange(windows))
    batch_size, mask_CHW = evaluation_set.batch_size(), evaluation_set.measures.mask_CHW
    for batch in evaluation_set.batches(min(batch_size, windows)):
        rows = slice(batch.first, min(batch.first + len(batch.frames_BTCHW), windows))
        kept = rows.stop - rows.start
        if kept <= 0:
            break
        frames_BTCHW = batch.frames_BTCHW[:kept]
        given_BTCHW = frames_BTCHW[:, : evaluation_set.warm_up].numpy()
        truth_BTCHW = frames_BTCHW[:, evaluation_set.warm_up :, :predicted].numpy()
        known_BTIHW = frames_BTCHW[:, evaluation_set.warm_up : -1, channels - len(field.inputs) :].numpy()
        given[rows], truth[rows] = _within(mask_CHW, given_BTCHW), _within(mask_CHW, truth_BTCHW)
        for index, name in enumerate(names):
            forecast[index, rows] = results[name].model.predict(given_BTCHW, leads, inputs=known_BTIHW)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zarr warns that consolidated metadata, which xarray reads, are not specified
        zarr.consolidate_metadata(str(path))
    return Forecasts(group, names)


def _within(mask_CHW: np.ndarray | None, x_BTCHW: np.ndarray) -> np.ndarray:
    """Return a field with NaN outside of a mask."""
    return x_BTCHW if mask_CHW is None else np.where(mask_CHW[: x_BTCHW.shape[2]], x_BTCHW, np.float32(np.nan))
