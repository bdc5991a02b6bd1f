"""The solver of the paper's data generator, with which `benchmarks.solver` compares ours.

This is a port to current PyTorch of the scheme of Li et al. (2021, arXiv 2010.08895) as the paper uses it: explicit
Euler for the advection, Crank-Nicolson for the viscosity, five transforms in each step, and full (two-sided) spectra
kept as pairs of real numbers. Its arithmetic and its order of operations are kept, also where they are wasteful.
"""

from __future__ import annotations

import math

import torch


def _forward(x: torch.Tensor) -> torch.Tensor:
    """Return the two-sided transform of a real field, with real and imaginary parts along the last axis."""
    return torch.view_as_real(torch.fft.fft2(x)).contiguous()


def _inverse(x_hat: torch.Tensor) -> torch.Tensor:
    """Invert `_forward`."""
    n = x_hat.shape[-2]
    half = torch.view_as_complex(x_hat)[..., : n // 2 + 1]
    return torch.fft.irfft2(half, s=(n, n))


def _times_i(x_hat: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return i * factor * x, where i is the imaginary unit."""
    return torch.stack([-factor * x_hat[..., 1], factor * x_hat[..., 0]], dim=-1)


def solve(
    w0: torch.Tensor, forcing: torch.Tensor, *, viscosity: float, frames: int, delta_t: float = 1e-2
) -> torch.Tensor:
    """Integrate the vorticity.

    Args:
        w0: initial vorticity, (batch, n, n).
        forcing: forcing, (n, n).
        viscosity: 1 / Reynolds number.
        frames: number of frames recorded, at t = 1, 2, .., frames.
        delta_t: time step.

    Returns:
        (batch, frames, n, n).
    """
    n = w0.shape[-1]
    k_max = n // 2
    steps_per_frame = math.floor(math.ceil(frames / delta_t) / frames)
    w_hat = _forward(w0)
    f_hat = _forward(forcing)[None]
    k_y = torch.cat([torch.arange(0, k_max), torch.arange(-k_max, 0)]).repeat(n, 1).to(w0.dtype)
    k_x = k_y.transpose(0, 1)
    laplacian = 4 * math.pi**2 * (k_x**2 + k_y**2)
    laplacian[0, 0] = 1.0
    limit = 2.0 / 3.0 * k_max
    dealias = ((k_y.abs() <= limit) & (k_x.abs() <= limit)).to(w0.dtype)[None]
    recorded = torch.zeros(len(w0), frames, n, n, dtype=w0.dtype)
    two_pi = 2 * math.pi
    for step in range(steps_per_frame * frames):
        psi_hat = w_hat / laplacian[..., None]
        u = _inverse(_times_i(psi_hat, two_pi * k_y))
        v = _inverse(_times_i(psi_hat, -two_pi * k_x))
        w_x = _inverse(_times_i(w_hat, two_pi * k_x))
        w_y = _inverse(_times_i(w_hat, two_pi * k_y))
        advection = _forward(u * w_x + v * w_y) * dealias[..., None]
        factor = 0.5 * delta_t * viscosity * laplacian[..., None]
        w_hat = (-delta_t * advection + delta_t * f_hat + (1.0 - factor) * w_hat) / (1.0 + factor)
        if (step + 1) % steps_per_frame == 0:
            recorded[:, (step + 1) // steps_per_frame - 1] = _inverse(w_hat)
    return recorded
