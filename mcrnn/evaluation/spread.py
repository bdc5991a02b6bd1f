"""The spread of an ensemble, which tells how large its error is likely to be where it is as large on average.

The spread at a lead time is the standard deviation of the members about their mean; unequal weights count as the number
of equal ones with the same sum of squares. It is scaled so that it is as large as the error of the mean where truth and
members are drawn alike (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.models.ensemble import Ensemble, EnsembleNetwork


@torch.no_grad()
def spread_by_step(ensemble: Ensemble, evaluation_set: EvaluationSet, scales: np.ndarray) -> np.ndarray:
    """Return the spread at steps 1 .. warm_up + horizon: the root of the mean over windows, channels and grid; (T,).

    It is 0 where there is one member only.

    Args:
        ensemble: the ensemble.
        evaluation_set: the windows.
        scales: what the spread of each predicted channel is divided by, as normalised errors are.
    """
    network: Any = ensemble.network
    assert isinstance(network, EnsembleNetwork)
    like = next(network.parameters())
    weights_E = network.weights().double()
    effective = float(1 / weights_E.square().sum())
    if effective < 1 + 1e-9:
        return np.zeros(evaluation_set.steps)
    factor = (effective + 1) / (effective - 1)
    scale_C = torch.as_tensor(scales, dtype=torch.float64, device=like.device)
    total_T = np.zeros(evaluation_set.steps)
    for batch in evaluation_set.batches(evaluation_set.batch_size(network, copies=2 * len(ensemble.members))):
        read = network.frames_read(evaluation_set.warm_up, evaluation_set.steps)
        given_BTCHW = ensemble.scaling.to_model(batch.frames_BTCHW[:, :read].to(like))
        found = network.members(given_BTCHW, evaluation_set.warm_up, evaluation_set.steps)
        members_EBTCHW = ensemble.scaling.to_physical(torch.stack(found)).double()
        weights = weights_E.view(-1, 1, 1, 1, 1, 1)
        mean_BTCHW = (weights * members_EBTCHW).sum(0)
        variance_BTCHW = (weights * (members_EBTCHW - mean_BTCHW).square()).sum(0)
        normalized_BTC = evaluation_set.measures.mean(variance_BTCHW) / scale_C.square()
        total_T += factor * normalized_BTC.mean(2).sum(0).cpu().numpy()
    return np.sqrt(total_T / len(evaluation_set))


def spread_metrics(ensemble: Ensemble, spread_T: np.ndarray, warm_up: int) -> dict[str, Any]:
    """Return further metrics of an ensemble: its members, and its spread at lead times 1 .. horizon + 1."""
    members = [{"name": name, "count": n} for name, n in zip(ensemble.names, ensemble.counts, strict=True)]
    return {"members": members, "spread_by_lead_time_normalized": spread_T[warm_up - 1 :].tolist()}
