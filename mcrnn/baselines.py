"""What any forecaster must beat: persistence and climatology.

Both are forecasts of the closed-loop steps of an evaluation, in the field's units.
"""

from __future__ import annotations

import numpy as np
import torch

from mcrnn.config import DataConfig
from mcrnn.fields import FieldStore


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
