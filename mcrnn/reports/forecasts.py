"""Forecasts of some windows, kept as a Zarr group that xarray opens."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcrnn.evaluation.evaluation_set import BATCH_SIZE
from mcrnn.evaluation.result import EvaluationResult


@dataclass(frozen=True)
class Forecasts:
    """What was written."""

    group: Any
    names: list[str]

    def first_window(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Truth and a model's forecast of the first window's first channel, (lead time, height, width)."""
        return self.group["truth"][0, :, 0], self.group["forecast"][self.names.index(name), 0, :, 0]


@torch.no_grad()
def write_forecasts(path: Path, judged: dict[str, EvaluationResult], count: int | None) -> Forecasts:
    """Write inputs, truths and forecasts of the first windows; batch by batch, whatever their number.

    Args:
        path: of the group; what is there is replaced.
        judged: the models by name, all in the same evaluation_set.
        count: windows; all where it is None.
    """
    import zarr

    names = list(judged)
    first = judged[names[0]]
    evaluation_set, field = first.evaluation_set, first.model.field
    windows = len(evaluation_set) if count is None else min(max(count, 1), len(evaluation_set))
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
    }
    group = zarr.create_group(str(path), attributes=attributes)

    def array(name: str, shape: tuple[int, ...], dimensions: tuple[str, ...]) -> Any:
        most = {"model": 1, "window": BATCH_SIZE}  # as they are written: few files, which are uploaded one by one
        chunks = tuple(min(n, most.get(dimension, n)) for dimension, n in zip(dimensions, shape, strict=True))
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
    for batch in evaluation_set.batches(min(BATCH_SIZE, windows)):
        rows = slice(batch.first, min(batch.first + len(batch.frames_BTCHW), windows))
        kept = rows.stop - rows.start
        if kept <= 0:
            break
        frames_BTCHW = batch.frames_BTCHW[:kept]
        given[rows] = frames_BTCHW[:, : evaluation_set.warm_up].numpy()
        truth[rows] = frames_BTCHW[:, evaluation_set.warm_up :, :predicted].numpy()
        for index, name in enumerate(names):
            model = judged[name].model
            device = next(model.network.parameters()).device
            made_BTCHW = model.forecast(frames_BTCHW[:, : evaluation_set.warm_up].to(device), leads)
            forecast[index, rows] = made_BTCHW.float().cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata is xarray's habit, not yet in the specification
        zarr.consolidate_metadata(str(path))
    return Forecasts(group, names)
