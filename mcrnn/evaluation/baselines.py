"""Persistence, the simplest of the baselines that any forecaster must beat; `climatology` is the other one."""

from __future__ import annotations

import torch


def persistence(frames_BTCHW: torch.Tensor, steps: int) -> torch.Tensor:
    """Forecast that nothing changes.

    Args:
        frames_BTCHW: the given frames.
        steps: number of lead times.

    Returns:
        The last given frame at each of the lead times 1 .. steps, (B, steps, C, H, W), without copying it.
    """
    return frames_BTCHW[:, -1:].expand(-1, steps, -1, -1, -1)
