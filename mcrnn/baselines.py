"""What any forecaster must beat: persistence and climatology.

Both are forecasts of the closed-loop steps of an evaluation, in the field's units.
"""

from __future__ import annotations

import torch


def persistence(frames_BTCHW: torch.Tensor, steps: int) -> torch.Tensor:
    """The last given frame, held: lead times 1 .. steps, (B, steps, C, H, W)."""
    return frames_BTCHW[:, -1:].expand(-1, steps, -1, -1, -1)


def climatology(train_NTCHW: torch.Tensor, batch: int, steps: int) -> torch.Tensor:
    """The training split's mean at each grid point, at every lead time, (batch, steps, C, H, W)."""
    mean_CHW = train_NTCHW.mean((0, 1), dtype=torch.float64).to(train_NTCHW.dtype)
    return mean_CHW.expand(batch, steps, -1, -1, -1)
