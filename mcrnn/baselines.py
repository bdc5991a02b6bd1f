"""What any forecaster must beat: persistence and climatology.

Both are forecasts of the closed-loop steps of an evaluation, in the field's units.
"""

from __future__ import annotations

import numpy as np
import torch

from mcrnn.config import DataConfig
from mcrnn.fields import FieldStore
from mcrnn.metrics import SquaredError
from mcrnn.windows import Split, Starts


def persistence(frames_BTCHW: torch.Tensor, steps: int) -> torch.Tensor:
    """The last given frame, held: lead times 1 .. steps, (B, steps, C, H, W)."""
    return frames_BTCHW[:, -1:].expand(-1, steps, -1, -1, -1)


def climatology(store: FieldStore, data: DataConfig) -> torch.Tensor:
    """The training split's mean at each grid point, (C, H, W); read object by object, summed in float64."""
    total_CHW, count = 0.0, 0
    for _, _, values_NTCHW in store.blocks("train", data.coarsen, data.variables):
        total_CHW = total_CHW + values_NTCHW.sum((0, 1), dtype=np.float64)
        count += values_NTCHW.shape[0] * values_NTCHW.shape[1]
    return torch.from_numpy(np.asarray(total_CHW / count, dtype=np.float32))


def errors(
    store: FieldStore,
    data: DataConfig,
    split: Split,
    windows: Starts,
    *,
    warm_up: int,
    horizon: int,
    channels: int,
    batch_size: int = 32,
) -> dict[str, SquaredError]:
    """Errors of both on the windows of an exam, at lead times 1 .. horizon + 1, by name.

    Args:
        store: whose training split gives the climatology.
        data: which channels, and how coarse.
        split: whose windows are judged.
        windows: sample and first frame of each.
        warm_up: frames given.
        horizon: closed-loop steps of the exam; lead time 1 is still a teacher-forced step of it.
        channels: that are predicted, the first ones.
        batch_size: windows at a time.
    """
    found = {name: SquaredError(horizon + 1, channels) for name in ("persistence", "climatology")}
    mean_CHW = climatology(store, data)[:channels]
    for sample_B, start_B in zip(*(part.split(batch_size) for part in windows), strict=True):
        frames_BTCHW = split.windows(sample_B, start_B, warm_up + horizon + 1)[:, :, :channels]
        truth_BTCHW = frames_BTCHW[:, warm_up:]
        found["persistence"].update(persistence(frames_BTCHW[:, :warm_up], horizon + 1), truth_BTCHW)
        found["climatology"].update(mean_CHW.expand_as(truth_BTCHW), truth_BTCHW)
    return found
