"""What a replica gets of a request. Apart from the replicas, because these need Ray Serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """A request as a replica gets it.

    Attributes:
        digest: digest of the model.
        reference: the model in the object store, in a list so that Ray does not replace it by the model itself.
        frames_BTCHW: the given frames, float32, in the field's units.
        steps: number of lead times.
        inputs_BTIHW: the channels that are inputs only, at lead times 1 .. steps - 1; None where there is none.
    """

    digest: str
    reference: list[Any]
    frames_BTCHW: np.ndarray
    steps: int
    inputs_BTIHW: np.ndarray | None = None


def joined_inputs(requests: list[Work], steps: int) -> np.ndarray | None:
    """Return the inputs of requests that are computed together, (B, steps - 1, I, H, W); None where there is none.

    Requests for fewer steps get further inputs, which change nothing of the steps that they ask for.
    """
    number = next((work.inputs_BTIHW.shape[2] for work in requests if work.inputs_BTIHW is not None), 0)
    if not number:
        return None
    found = []
    for work in requests:
        last_BTIHW = work.frames_BTCHW[:, -1:, -number:]  # of a request for one step, which needs no inputs
        inputs_BTIHW = last_BTIHW[:, :0] if work.inputs_BTIHW is None else work.inputs_BTIHW
        missing = steps - 1 - inputs_BTIHW.shape[1]
        found.append(np.concatenate([inputs_BTIHW, np.repeat(last_BTIHW, missing, axis=1)], axis=1))
    return np.concatenate(found)
