"""The recurrence of the minimal cells, h_t = a_t h_{t-1} + (1 - a_t) g(v_t), for all t at once.

Horuz et al. (2025, arXiv 2508.03614) evaluate it as a cumulative sum in log space, as Feng et al. (2024,
arXiv 2410.01201, appendix B) do. But each h_t is a convex combination of h_{t-1} and g(v_t) and cannot
overflow, so it needs no logarithms: `scan` runs the plain loop over time, with a hand-written backward pass
that keeps only what it needs. `log_space_scan` is the paper's formulation, the reference in tests.

Shapes: B batch, T time, and any further axes; time is axis 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def g(v: torch.Tensor) -> torch.Tensor:
    """The positive candidate activation, v + 0.5 where v >= 0 and sigmoid(v) elsewhere; g(0) = 0.5."""
    return torch.relu(v) + torch.sigmoid(v.clamp(max=0))


class _Scan(torch.autograd.Function):
    """The recurrence and its gradient.

    With G_t = dL/dh_t, the gradient that reaches h_t from all later outputs,

        G_t = dL/dy_t + a_{t+1} G_{t+1},   dL/da_t = G_t (h_{t-1} - u_t),   dL/du_t = (1 - a_t) G_t,
        dL/dh_0 = a_1 G_1,                 u_t = g(v_t).
    """

    @staticmethod
    def forward(ctx: Any, a_BT: torch.Tensor, v_BT: torch.Tensor, h0_B: torch.Tensor) -> torch.Tensor:
        half_BT = torch.sigmoid(v_BT.clamp(max=0))
        u_BT = half_BT + torch.relu(v_BT)
        h_BT = torch.empty_like(u_BT)
        previous_B = h0_B
        for t in range(u_BT.shape[1]):
            torch.lerp(u_BT[:, t], previous_B, a_BT[:, t], out=h_BT[:, t])
            previous_B = h_BT[:, t]
        ctx.save_for_backward(a_BT, v_BT, half_BT, h_BT, h0_B)
        return h_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a_BT, v_BT, half_BT, h_BT, h0_B = ctx.saved_tensors
        total_BT = torch.empty_like(h_BT)
        last = h_BT.shape[1] - 1
        total_BT[:, last] = grad_BT[:, last]
        for t in range(last - 1, -1, -1):
            torch.addcmul(grad_BT[:, t], a_BT[:, t + 1], total_BT[:, t + 1], out=total_BT[:, t])
        u_BT = half_BT + torch.relu(v_BT)
        grad_a_BT = torch.cat([h0_B[:, None], h_BT[:, :-1]], dim=1).sub_(u_BT).mul_(total_BT)
        grad_u_BT = total_BT - a_BT * total_BT
        # g'(v) is 1 where v >= 0, where half is 0.5, and half (1 - half) elsewhere
        slope_BT = torch.addcmul(half_BT, half_BT, half_BT, value=-1).add_((v_BT >= 0).to(v_BT.dtype), alpha=0.75)
        return grad_a_BT, grad_u_BT.mul_(slope_BT), a_BT[:, 0] * total_BT[:, 0]


def scan(a_BT: torch.Tensor, v_BT: torch.Tensor, h0_B: torch.Tensor) -> torch.Tensor:
    """All h_t of h_t = a_t h_{t-1} + (1 - a_t) g(v_t), t = 1 .. T.

    Args:
        a_BT: weights of the past in [0, 1], (batch, time, ...), time at least 1.
        v_BT: candidates before their activation g, of the same shape.
        h0_B: the state before the first step, (batch, ...).

    Returns:
        h of the shape of `v_BT`.
    """
    return _Scan.apply(a_BT, v_BT, h0_B)


def log_space_scan(
    log_a_BT: torch.Tensor, log_1ma_BT: torch.Tensor, v_BT: torch.Tensor, h0_B: torch.Tensor
) -> torch.Tensor:
    """The same in the log space of the paper (section 3.1): slow, and in float32 wrong for large inputs.

    Args:
        log_a_BT: log a_t, (batch, time, ...).
        log_1ma_BT: log(1 - a_t), of the same shape.
        v_BT: candidates before their activation g, of the same shape.
        h0_B: the state before the first step, positive, (batch, ...).
    """
    log_u_BT = torch.where(v_BT >= 0, (F.relu(v_BT) + 0.5).log(), F.logsigmoid(v_BT))
    summed_BT = log_a_BT.cumsum(1)
    start_B1 = h0_B.log()[:, None]
    terms = torch.cat([start_B1, log_1ma_BT + log_u_BT - summed_BT], dim=1)
    return torch.exp(summed_BT + torch.logcumsumexp(terms, dim=1)[:, 1:])
