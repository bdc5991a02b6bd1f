"""Two-dimensional incompressible Navier-Stokes in vorticity form on the periodic unit square.

    dw/dt + u . grad w = viscosity * Laplacian w + f,    u = (psi_y, -psi_x),    -Laplacian psi = w

Axis 0 of a field is x ("height"), axis 1 is y ("width"). The right-hand side (`VorticityEquation`) and the time stepper
(`rk3_step`) are independent of each other.

Space: Fourier pseudo-spectral. The advection is taken in the form of Basdevant (1983, J. Comput. Phys. 50,
209-214), u . grad w = (d_xx - d_yy)(u v) + d_xy (v^2 - u^2), which needs four transforms an evaluation
instead of five; products are dealiased by the two-thirds rule.
Time: the viscous term is solved exactly by an integrating factor, the rest by Heun's third-order
Runge-Kutta method (nodes 0, 1/3, 2/3, weights 1/4, 0, 3/4), whose stages need the factor at thirds of a step
only.

The method is stable while the Courant number dt * 2 pi K * max(|u| + |v|), with K the largest retained wavenumber,
stays below 3.4. This bound was found by experiment; sqrt(3) is a sufficient one. A run slightly above it ends in a
finite but wrong field, so `simulate` measures the number for every sample at every recorded frame and repeats the
samples that exceed it with half the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

STABILITY_LIMIT = 3.4
"""Largest Courant number at which the method is stable."""

MAX_HALVINGS = 6
"""Number of halvings of the time step after which a sample that is still unstable ends the simulation."""

TAIL_LIMIT = 1e-5
"""Largest share of the enstrophy in the outer quarter of the retained wavenumbers at which a coarse grid suffices."""


def paper_forcing(resolution: int) -> torch.Tensor:
    """Return the paper's forcing for an amplitude of 1: sin 2 pi (x + y) + cos 2 pi (x + y).

    Returns:
        float64 (resolution, resolution).
    """
    position = torch.arange(resolution, dtype=torch.float64) / resolution
    phase = 2 * math.pi * (position[:, None] + position[None, :])
    return torch.sin(phase) + torch.cos(phase)


@dataclass(frozen=True)
class VorticityEquation:
    """The equation in spectral space: an explicit term and a linear decay. `VorticityEquation.create` makes one.

    A spectrum holds the wavenumbers that dealiasing retains, up to K = resolution // 3. Its shape is (..., K + 1,
    resolution), k_y before k_x, and it is zero where |k_x| > K. Leaving out the other k_y makes a third less to
    transform.

    Not for use by several threads at once, because workspaces are reused from call to call.

    Attributes:
        resolution: grid points along each side.
        decay: viscosity * 4 pi^2 k^2, real (K + 1, resolution).
        to_velocity: complex (2, 1, K + 1, resolution). Multiplies the spectrum of w and gives those of u and v, divided
            by resolution^2.
        from_products: real (2, K + 1, resolution, 2). Multiplies the spectra of u v and of v^2 - u^2, whose products
            add up to the spectrum of -u . grad w.
        forcing: spectrum of f.
        outer: 1 for the outer quarter of the retained wavenumbers, 0 for the others, real (K + 1, resolution).
    """

    resolution: int
    decay: torch.Tensor
    to_velocity: torch.Tensor
    from_products: torch.Tensor
    forcing: torch.Tensor
    outer: torch.Tensor
    _workspaces: dict[torch.Size, torch.Tensor] = field(default_factory=dict, repr=False)

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
            resolution: grid points along each side, even.
            viscosity: 1 / Reynolds number, in units of the domain's side and the time unit.
            forcing: f on a square grid, which may be another than the equation's.
            dtype: type of the fields, float32 or float64.
            device: device of the fields.
        """
        n, largest = resolution, resolution // 3
        k_x = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[None, :]
        k_y = torch.arange(largest + 1, dtype=torch.float64)[:, None]
        k_squared = k_x**2 + k_y**2
        retained = (k_x.abs() <= largest).double()
        inverse = retained / k_squared.clamp(min=1) / (2 * math.pi * n**2)
        inverse[0, 0] = 0.0  # the mean vorticity causes no velocity
        products = torch.stack([k_x**2 - k_y**2, k_x * k_y]) * (4 * math.pi**2) * retained
        complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        outer = torch.maximum(k_x.abs(), k_y.expand_as(k_squared)) > 0.75 * largest
        return cls(
            resolution=n,
            decay=(viscosity * 4 * math.pi**2 * k_squared).to(device, dtype),
            to_velocity=torch.stack([1j * k_y * inverse, -1j * k_x * inverse])[:, None].to(device, complex_dtype),
            from_products=_for_both_parts(products).to(device, dtype),
            forcing=to_spectrum(forcing.double(), n).to(device, complex_dtype),
            outer=outer.to(device, dtype),
        )

    def velocity(self, w_hat: torch.Tensor) -> torch.Tensor:
        """Return u and v on the grid, (2, batch, resolution, resolution), for a spectrum (batch, ...) of w."""
        return _transform_back(self.to_velocity * w_hat, self.resolution, self._workspaces)

    def explicit(self, w_hat: torch.Tensor) -> torch.Tensor:
        """Return the spectrum of -u . grad w + f."""
        u, v = self.velocity(w_hat)
        products = torch.empty((2, *u.shape), dtype=u.dtype, device=u.device)
        torch.mul(u, v, out=products[0])
        torch.mul(v, v, out=products[1]).addcmul_(u, u, value=-1)
        # Real and imaginary parts are multiplied by a real number, which is faster than a complex multiplication.
        spectra = torch.view_as_real(_transform(products, self.resolution // 3))
        result = torch.addcmul(torch.view_as_real(self.forcing), spectra[0], self.from_products[0])
        return torch.view_as_complex(result.addcmul_(spectra[1], self.from_products[1]))

    def courant(self, w_hat: torch.Tensor, dt: float) -> torch.Tensor:
        """Return the Courant number dt * 2 pi K * max(|u| + |v|) of each sample, see `STABILITY_LIMIT`."""
        speed = self.velocity(w_hat).abs().sum(0).amax((-2, -1))
        return dt * 2 * math.pi * (self.resolution // 3) * speed

    def tail(self, w_hat: torch.Tensor) -> torch.Tensor:
        """Return the share of each sample's enstrophy in the outer quarter of the wavenumbers, see `TAIL_LIMIT`."""
        power = w_hat.abs().square_()
        return (power * self.outer).sum((-2, -1)) / power.sum((-2, -1))


def _transform(w: torch.Tensor, largest: int) -> torch.Tensor:
    """Transform fields (..., n, n), without normalisation, to spectra (..., largest + 1, n): k_y before k_x."""
    along_y = torch.fft.rfft(w)[..., : largest + 1]
    return torch.fft.fft(along_y.transpose(-1, -2).contiguous())


def _transform_back(
    w_hat: torch.Tensor, resolution: int, workspaces: dict[torch.Size, torch.Tensor] | None = None
) -> torch.Tensor:
    """Invert `_transform`, without normalisation as well.

    Args:
        w_hat: spectra (..., K + 1, resolution).
        resolution: grid points along each side.
        workspaces: zero-padded spectra by shape, which are reused; None allocates a new one.
    """
    retained = w_hat.shape[-2]
    shape = torch.Size((*w_hat.shape[:-2], resolution, resolution // 2 + 1))
    padded = workspaces.get(shape) if workspaces is not None else None
    if padded is None:
        padded = w_hat.new_zeros(shape)
        if workspaces is not None:
            workspaces[shape] = padded
    # Only the retained k_y are ever written, so the others stay zero.
    padded[..., :retained] = torch.fft.ifft(w_hat, norm="forward").transpose(-1, -2)
    return torch.fft.irfft(padded, n=resolution, norm="forward")


def to_spectrum(w: torch.Tensor, resolution: int) -> torch.Tensor:
    """Return the spectra, on a grid of `resolution`, of fields (..., n, n) on the same or another grid."""
    n, largest = w.shape[-1], resolution // 3
    kept = min(largest, (n - 1) // 2)
    whole = _transform(w, kept)
    w_hat = whole.new_zeros((*w.shape[:-2], largest + 1, resolution))
    w_hat[..., : kept + 1, : kept + 1] = whole[..., : kept + 1]
    w_hat[..., : kept + 1, -kept:] = whole[..., -kept:]
    return w_hat * (resolution / n) ** 2


def to_grid(w_hat: torch.Tensor, target: int) -> torch.Tensor:
    """Return the fields (..., target, target) of spectra.

    Args:
        w_hat: spectra on a grid of any resolution up to three halves of the target.
        target: grid points along each side of the fields.
    """
    n, largest = w_hat.shape[-1], w_hat.shape[-2] - 1
    if n != target:
        padded = w_hat.new_zeros((*w_hat.shape[:-1], target))
        padded[..., : largest + 1] = w_hat[..., : largest + 1]
        padded[..., -largest:] = w_hat[..., -largest:]
        w_hat = padded
    return _transform_back(w_hat / n**2, target)


def _for_both_parts(multiplier: torch.Tensor) -> torch.Tensor:
    """Repeat a real multiplier for the real and imaginary parts of a spectrum, as `torch.view_as_real` shows them.

    Multiplying these is twice as fast as multiplying complex numbers.
    """
    return multiplier[..., None].repeat_interleave(2, dim=-1).contiguous()


def rk3_step(equation: VorticityEquation, dt: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that advances a spectrum by one step of integrating-factor Heun RK3.

    With E_s = exp(-decay s dt): w_2 = E_1/3 (w + dt/3 k_1), w_3 = E_2/3 w + 2 dt/3 E_1/3 k_2,
    w' = E_1 (w + dt/4 k_1) + 3 dt/4 E_1/3 k_3, where k_i is the explicit term at stage i.

    Args:
        equation: the equation.
        dt: length of the step.
    """
    third, two_thirds, whole = (_for_both_parts(torch.exp(-equation.decay * (dt * s))) for s in (1 / 3, 2 / 3, 1.0))
    stage_3, stage_4 = (2 * dt / 3) * third, (3 * dt / 4) * third

    def explicit(parts: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(equation.explicit(torch.view_as_complex(parts)))

    def step(w_hat: torch.Tensor) -> torch.Tensor:
        w = torch.view_as_real(w_hat)
        k_1 = explicit(w)
        k_2 = explicit(torch.add(w, k_1, alpha=dt / 3).mul_(third))
        k_3 = explicit(torch.mul(w, two_thirds).addcmul_(k_2, stage_3))
        return torch.view_as_complex(torch.add(w, k_1, alpha=dt / 4).mul_(whole).addcmul_(k_3, stage_4))

    return step


@dataclass(frozen=True)
class _Run:
    """What an integration recorded of each sample.

    Attributes:
        frames: (batch, frames, n, n) on the grid of the initial fields.
        courant: (batch,) largest Courant number at any recorded frame.
        tail: (batch,) largest value of `VorticityEquation.tail` at any recorded frame.
    """

    frames: torch.Tensor
    courant: torch.Tensor
    tail: torch.Tensor


def _integrate(equation: VorticityEquation, w0: torch.Tensor, frames: int, interval: float, steps: int) -> _Run:
    """Integrate on the grid of the equation and record on the grid of `w0`, `steps` steps for each frame."""
    dt = interval / steps
    step = rk3_step(equation, dt)
    n = w0.shape[-1]
    w_hat = to_spectrum(w0, equation.resolution)
    courant = equation.courant(w_hat, dt)
    tail = torch.zeros_like(courant)
    recorded = torch.empty((len(w0), frames, n, n), dtype=w0.dtype, device=w0.device)
    for frame in range(frames):
        for _ in range(steps):
            w_hat = step(w_hat)
        recorded[:, frame] = to_grid(w_hat, n)
        courant = torch.maximum(courant, equation.courant(w_hat, dt))
        tail = torch.maximum(tail, equation.tail(w_hat))
    return _Run(recorded, courant, tail)


def default_time_step(resolution: int) -> float:
    """Return 1/16 for 64 x 64 grid points, for other grids the step with the same Courant number, at most 1/10."""
    return min(1 / 10, 21 / 16 / (resolution // 3))


def batch_size(resolution: int) -> int:
    """Return how many samples a core integrates together: 16 at 64 x 64, 32 at 48 x 48.

    Measured to be the fastest, because so many samples just fit the cache.
    """
    return max(1, 16 * round((64 / resolution) ** 2))


def simulate(
    equation: VorticityEquation,
    w0: torch.Tensor,
    *,
    frames: int,
    interval: float = 1.0,
    dt: float | None = None,
    fallback: VorticityEquation | None = None,
) -> torch.Tensor:
    """Integrate a batch of initial fields and record `frames` frames at t = interval, 2 interval, ...

    Two checks are made for each sample at each recorded frame:

    - A sample whose Courant number exceeds `STABILITY_LIMIT`, or whose field is not finite, is integrated again from
      the start with half the step.
    - With a `fallback`, a sample for which the equation's grid is too coarse, because more than `TAIL_LIMIT` of its
      enstrophy is in the outer wavenumbers, is integrated again on the grid of the fallback.

    The other samples of the batch keep their steps and grid, so a sample does not depend on the batch it is in.

    Args:
        equation: the equation, with the dtype and device of `w0`; its resolution may be lower.
        w0: initial vorticity, (batch, resolution, resolution).
        frames: number of frames recorded; the initial field is none of them.
        interval: time between frames.
        dt: longest time step, by default `default_time_step`. It is shortened so that a whole number of steps makes an
            interval.
        fallback: the equation on a finer grid.

    Returns:
        Vorticity on the grid of `w0`, (batch, frames, resolution, resolution).

    Raises:
        ValueError: a sample stays unstable after `MAX_HALVINGS` halvings of the step.
    """
    longest = default_time_step(equation.resolution) if dt is None else dt
    steps = max(1, math.ceil(interval / longest - 1e-9))
    run = _integrate(equation, w0, frames, interval, steps)
    recorded, courant = run.frames, run.courant
    coarse = run.tail > TAIL_LIMIT if fallback is not None else torch.zeros_like(run.tail, dtype=torch.bool)
    for attempt in range(MAX_HALVINGS + 1):
        unstable = ~((courant <= STABILITY_LIMIT) & recorded.isfinite().all(-1).all(-1).all(-1)) & ~coarse
        if not unstable.any():
            break
        if attempt == MAX_HALVINGS:
            raise ValueError(
                f"the solver is unstable for these parameters even at a time step of {interval / steps:g}: "
                "raise the viscosity or lower the forcing"
            )
        steps *= 2
        again = _integrate(equation, w0[unstable], frames, interval, steps)
        recorded[unstable], courant[unstable] = again.frames, again.courant
        if fallback is not None:
            coarse = coarse.index_put((unstable.nonzero()[:, 0],), again.tail > TAIL_LIMIT)
    if fallback is not None and coarse.any():
        recorded[coarse] = simulate(fallback, w0[coarse], frames=frames, interval=interval, dt=dt)
    return recorded
