"""Two-dimensional incompressible Navier-Stokes in vorticity form on the periodic unit square.

    dw/dt + u . grad w = viscosity * Laplacian w + f,    u = (psi_y, -psi_x),    -Laplacian psi = w

Axis 0 of a field is x ("height"), axis 1 is y ("width"). The right-hand side (`VorticityEquation`) and the
time stepper (`rk3_step`) know nothing of each other.

Space: Fourier pseudo-spectral. The advection is taken in the form of Basdevant (1983, J. Comput. Phys. 50,
209-214), u . grad w = (d_xx - d_yy)(u v) + d_xy (v^2 - u^2), which needs four transforms an evaluation
instead of five; products are dealiased by the two-thirds rule.
Time: the viscous term is solved exactly by an integrating factor, the rest by Heun's third-order
Runge-Kutta method (nodes 0, 1/3, 2/3, weights 1/4, 0, 3/4), whose stages need the factor at thirds of a step
only.

The method is stable while the Courant number dt * 2 pi K * max(|u| + |v|), with K the largest retained
wavenumber, stays below 3.4 (found by experiment; the sufficient bound is sqrt(3)). A run slightly above that
ends in a finite but wrong field, so `simulate` measures the number for every sample at every recorded frame
and repeats the samples that exceed it with half the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

STABILITY_LIMIT = 3.4
MAX_HALVINGS = 6


def kolmogorov_like_forcing(resolution: int, amplitude: float = 0.1) -> torch.Tensor:
    """The paper's forcing, amplitude * (sin 2 pi (x + y) + cos 2 pi (x + y)), float64 (resolution, resolution)."""
    position = torch.arange(resolution, dtype=torch.float64) / resolution
    phase = 2 * math.pi * (position[:, None] + position[None, :])
    return amplitude * (torch.sin(phase) + torch.cos(phase))


@dataclass(frozen=True)
class VorticityEquation:
    """The equation in spectral space: an explicit term and a linear decay.

    Spectra are `torch.fft.rfft2` of fields of shape (..., resolution, resolution).
    """

    resolution: int
    decay: torch.Tensor
    """viscosity * 4 pi^2 k^2, real, (resolution, resolution // 2 + 1)"""
    to_velocity: torch.Tensor
    """complex (2, 1, resolution, resolution // 2 + 1): spectrum of w -> spectra of u and v"""
    from_products: torch.Tensor
    """real (2, 1, resolution, resolution // 2 + 1): spectra of u v and v^2 - u^2 -> that of -u . grad w"""
    forcing: torch.Tensor
    """spectrum of f"""

    @classmethod
    def create(
        cls,
        resolution: int,
        viscosity: float,
        forcing: torch.Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> VorticityEquation:
        """Precompute the multipliers in float64 and round them to `dtype`.

        Args:
            resolution: grid points a side, even.
            viscosity: 1 / Reynolds number, in units of the domain's side and the time unit.
            forcing: f on the grid, (resolution, resolution).
            dtype: float32 or float64, of the fields.
            device: where the fields are.
        """
        n = resolution
        k_x = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None]
        k_y = torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)[None, :]
        k_squared = k_x**2 + k_y**2
        inverse = torch.where(k_squared > 0, 1 / k_squared.clamp(min=1), 0.0) / (2 * math.pi)
        # an odd derivative of the Nyquist mode is not representable: it is zero on the grid
        u = 1j * k_y * (k_y < n / 2) * inverse
        v = -1j * k_x * (k_x.abs() < n / 2) * inverse
        retained = (k_x.abs() <= n // 3) & (k_y <= n // 3)
        products = torch.stack([k_x**2 - k_y**2, k_x * k_y]) * (4 * math.pi**2) * retained
        complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        return cls(
            resolution=n,
            decay=(viscosity * 4 * math.pi**2 * k_squared).to(device, dtype),
            to_velocity=torch.stack([u, v])[:, None].to(device, complex_dtype),
            from_products=products[:, None].to(device, dtype),
            forcing=torch.fft.rfft2(forcing.double()).to(device, complex_dtype),
        )

    def velocity(self, w_hat: torch.Tensor) -> torch.Tensor:
        """u and v on the grid, (2, batch, resolution, resolution), of the spectrum (batch, ...)."""
        return torch.fft.irfft2(self.to_velocity * w_hat, s=(self.resolution, self.resolution))

    def explicit(self, w_hat: torch.Tensor) -> torch.Tensor:
        """-u . grad w + f, as a spectrum."""
        u, v = self.velocity(w_hat)
        products = torch.fft.rfft2(torch.stack([u * v, (v - u) * (v + u)]))
        products *= self.from_products
        return products[0].add_(products[1]).add_(self.forcing)

    def courant(self, w_hat: torch.Tensor, dt: float) -> torch.Tensor:
        """dt * 2 pi K * max(|u| + |v|) of each sample, to be compared with `STABILITY_LIMIT`."""
        speed = self.velocity(w_hat).abs().sum(0).amax((-2, -1))
        return dt * 2 * math.pi * (self.resolution // 3) * speed


def rk3_step(equation: VorticityEquation, dt: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """One step of length dt of integrating-factor Heun RK3, as a function of the spectrum.

    With E_s = exp(-decay s dt): w_2 = E_1/3 (w + dt/3 k_1), w_3 = E_2/3 w + 2 dt/3 E_1/3 k_2,
    w' = E_1 (w + dt/4 k_1) + 3 dt/4 E_1/3 k_3, where k_i is the explicit term at stage i.
    """
    third, two_thirds, whole = (torch.exp(-equation.decay * (dt * s)) for s in (1 / 3, 2 / 3, 1.0))

    def step(w_hat: torch.Tensor) -> torch.Tensor:
        k_1 = equation.explicit(w_hat)
        k_2 = equation.explicit(third * (w_hat + (dt / 3) * k_1))
        k_3 = equation.explicit(two_thirds * w_hat + (2 * dt / 3) * third * k_2)
        return whole * (w_hat + (dt / 4) * k_1) + (3 * dt / 4) * third * k_3

    return step


def _integrate(
    equation: VorticityEquation, w0: torch.Tensor, frames: int, interval: float, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (batch, frames, n, n) and the largest Courant number of each sample."""
    dt = interval / steps
    step = rk3_step(equation, dt)
    n = equation.resolution
    w_hat = torch.fft.rfft2(w0)
    courant = equation.courant(w_hat, dt)
    recorded = torch.empty((len(w0), frames, n, n), dtype=w0.dtype, device=w0.device)
    for frame in range(frames):
        for _ in range(steps):
            w_hat = step(w_hat)
        recorded[:, frame] = torch.fft.irfft2(w_hat, s=(n, n))
        courant = torch.maximum(courant, equation.courant(w_hat, dt))
    return recorded, courant


def simulate(
    equation: VorticityEquation,
    w0: torch.Tensor,
    *,
    frames: int,
    interval: float = 1.0,
    dt: float = 1 / 16,
) -> torch.Tensor:
    """Integrate a batch of initial fields and record `frames` frames at t = interval, 2 interval, ...

    A sample whose Courant number passes `STABILITY_LIMIT` at a recorded frame, or whose field is not finite,
    is integrated again from the start with half the step; the others keep theirs. A sample therefore does
    not depend on the batch it is in.

    Args:
        equation: the equation, of the resolution, dtype and device of `w0`.
        w0: initial vorticity, (batch, resolution, resolution).
        frames: number of frames recorded; the initial field is none of them.
        interval: time between frames.
        dt: the longest step; shortened so that a whole number of steps makes an interval.

    Returns:
        Vorticity of shape (batch, frames, resolution, resolution).

    Raises:
        ValueError: a sample stays unstable after `MAX_HALVINGS` halvings of the step.
    """
    steps = max(1, math.ceil(interval / dt - 1e-9))
    recorded, courant = _integrate(equation, w0, frames, interval, steps)
    for _ in range(MAX_HALVINGS):
        redo = ~((courant <= STABILITY_LIMIT) & recorded.isfinite().all(-1).all(-1).all(-1))
        if not redo.any():
            return recorded
        steps *= 2
        recorded[redo], courant[redo] = _integrate(equation, w0[redo], frames, interval, steps)
    raise ValueError(
        f"the solver is unstable for these parameters even at a time step of {interval / steps:g}: "
        "raise the viscosity or lower the forcing"
    )
