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
from dataclasses import dataclass, field

import torch

STABILITY_LIMIT = 3.4
MAX_HALVINGS = 6
TAIL_LIMIT = 1e-5
"""largest share of the enstrophy in the outer quarter of the retained wavenumbers on a reduced grid"""


def paper_forcing(resolution: int) -> torch.Tensor:
    """The shape of the paper's forcing, sin 2 pi (x + y) + cos 2 pi (x + y), float64 (resolution, resolution)."""
    position = torch.arange(resolution, dtype=torch.float64) / resolution
    phase = 2 * math.pi * (position[:, None] + position[None, :])
    return torch.sin(phase) + torch.cos(phase)


@dataclass(frozen=True)
class VorticityEquation:
    """The equation in spectral space: an explicit term and a linear decay.

    A spectrum holds the wavenumbers that dealiasing retains, K = resolution // 3: shape (..., K + 1,
    resolution), k_y before k_x, zero where |k_x| > K. Without the other k_y there is a third less to transform.
    """

    resolution: int
    decay: torch.Tensor
    """viscosity * 4 pi^2 k^2, real"""
    to_velocity: torch.Tensor
    """complex (2, 1, K + 1, resolution): spectrum of w -> spectra of u and v, over resolution^2"""
    from_products: torch.Tensor
    """real (2, K + 1, resolution, 2): spectra of u v and v^2 - u^2 -> that of -u . grad w"""
    forcing: torch.Tensor
    """spectrum of f"""
    outer: torch.Tensor
    """1 for the outer quarter of the retained wavenumbers, 0 elsewhere, real"""
    _workspaces: dict[torch.Size, torch.Tensor] = field(default_factory=dict, repr=False)
    """zero-padded spectra, reused from call to call: one thread at a time"""

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
            forcing: f on a square grid, which may be another than the equation's.
            dtype: float32 or float64, of the fields.
            device: where the fields are.
        """
        n, largest = resolution, resolution // 3
        k_x = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[None, :]
        k_y = torch.arange(largest + 1, dtype=torch.float64)[:, None]
        k_squared = k_x**2 + k_y**2
        retained = (k_x.abs() <= largest).double()
        inverse = retained / k_squared.clamp(min=1) / (2 * math.pi * n**2)
        inverse[0, 0] = 0.0  # the mean vorticity moves nothing
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
        """u and v on the grid, (2, batch, resolution, resolution), of the spectrum (batch, ...)."""
        return _transform_back(self.to_velocity * w_hat, self.resolution, self._workspaces)

    def explicit(self, w_hat: torch.Tensor) -> torch.Tensor:
        """-u . grad w + f, as a spectrum."""
        u, v = self.velocity(w_hat)
        products = torch.empty((2, *u.shape), dtype=u.dtype, device=u.device)
        torch.mul(u, v, out=products[0])
        torch.mul(v, v, out=products[1]).addcmul_(u, u, value=-1)
        # multiplying real and imaginary parts by a real number, without making it complex first
        spectra = torch.view_as_real(_transform(products, self.resolution // 3))
        result = torch.addcmul(torch.view_as_real(self.forcing), spectra[0], self.from_products[0])
        return torch.view_as_complex(result.addcmul_(spectra[1], self.from_products[1]))

    def courant(self, w_hat: torch.Tensor, dt: float) -> torch.Tensor:
        """dt * 2 pi K * max(|u| + |v|) of each sample, to be compared with `STABILITY_LIMIT`."""
        speed = self.velocity(w_hat).abs().sum(0).amax((-2, -1))
        return dt * 2 * math.pi * (self.resolution // 3) * speed

    def tail(self, w_hat: torch.Tensor) -> torch.Tensor:
        """Share of the enstrophy of each sample in the outer quarter of the retained wavenumbers."""
        power = w_hat.abs().square_()
        return (power * self.outer).sum((-2, -1)) / power.sum((-2, -1))


def _transform(w: torch.Tensor, largest: int) -> torch.Tensor:
    """Unnormalised transform of fields (..., n, n), k_y up to `largest` before all n k_x."""
    along_y = torch.fft.rfft(w)[..., : largest + 1]
    return torch.fft.fft(along_y.transpose(-1, -2).contiguous())


def _transform_back(
    w_hat: torch.Tensor, resolution: int, workspaces: dict[torch.Size, torch.Tensor] | None = None
) -> torch.Tensor:
    """The inverse of `_transform`, unnormalised too, on a grid of the spectrum's number of k_x."""
    retained = w_hat.shape[-2]
    shape = torch.Size((*w_hat.shape[:-2], resolution, resolution // 2 + 1))
    padded = workspaces.get(shape) if workspaces is not None else None
    if padded is None:
        padded = w_hat.new_zeros(shape)
        if workspaces is not None:
            workspaces[shape] = padded
    # only the retained k_y are ever written, the others stay zero
    padded[..., :retained] = torch.fft.ifft(w_hat, norm="forward").transpose(-1, -2)
    return torch.fft.irfft(padded, n=resolution, norm="forward")


def to_spectrum(w: torch.Tensor, resolution: int) -> torch.Tensor:
    """The spectrum on a grid of `resolution` of fields (..., n, n) on the same or another grid."""
    n, largest = w.shape[-1], resolution // 3
    kept = min(largest, (n - 1) // 2)
    whole = _transform(w, kept)
    w_hat = whole.new_zeros((*w.shape[:-2], largest + 1, resolution))
    w_hat[..., : kept + 1, : kept + 1] = whole[..., : kept + 1]
    w_hat[..., : kept + 1, -kept:] = whole[..., -kept:]
    return w_hat * (resolution / n) ** 2


def to_grid(w_hat: torch.Tensor, target: int) -> torch.Tensor:
    """Fields (..., target, target) of spectra on a grid of any resolution up to three halves of the target."""
    n, largest = w_hat.shape[-1], w_hat.shape[-2] - 1
    if n != target:
        padded = w_hat.new_zeros((*w_hat.shape[:-1], target))
        padded[..., : largest + 1] = w_hat[..., : largest + 1]
        padded[..., -largest:] = w_hat[..., -largest:]
        w_hat = padded
    return _transform_back(w_hat / n**2, target)


def _for_both_parts(multiplier: torch.Tensor) -> torch.Tensor:
    """A real multiplier repeated for `view_as_real` of a spectrum: twice as fast as making it complex."""
    return multiplier[..., None].repeat_interleave(2, dim=-1).contiguous()


def rk3_step(equation: VorticityEquation, dt: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """One step of length dt of integrating-factor Heun RK3, as a function of the spectrum.

    With E_s = exp(-decay s dt): w_2 = E_1/3 (w + dt/3 k_1), w_3 = E_2/3 w + 2 dt/3 E_1/3 k_2,
    w' = E_1 (w + dt/4 k_1) + 3 dt/4 E_1/3 k_3, where k_i is the explicit term at stage i.
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
    """What an integration recorded of each sample."""

    frames: torch.Tensor
    """(batch, frames, n, n) on the recording grid"""
    courant: torch.Tensor
    """(batch,) largest Courant number at a recorded frame"""
    tail: torch.Tensor
    """(batch,) largest share of the enstrophy in the outermost retained wavenumbers at a recorded frame"""


def _integrate(equation: VorticityEquation, w0: torch.Tensor, frames: int, interval: float, steps: int) -> _Run:
    """Integrate on the equation's grid, recording on that of `w0`."""
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
    """1/16 on 64 x 64, the same Courant number on other grids, at most 1/10."""
    return min(1 / 10, 21 / 16 / (resolution // 3))


def batch_size(resolution: int) -> int:
    """Samples that one core integrates together: what fills its cache, measured; 16 at 64 x 64, 32 at 48 x 48."""
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

    A sample whose Courant number passes `STABILITY_LIMIT` at a recorded frame, or whose field is not finite,
    is integrated again from the start with half the step; the others keep theirs. With a `fallback`, so is,
    on its grid, a sample for which the equation's grid turns out too coarse: more than `TAIL_LIMIT` of its
    enstrophy in the outermost wavenumbers. A sample therefore does not depend on the batch it is in.

    Args:
        equation: of the dtype and device of `w0`; its resolution may be lower.
        w0: initial vorticity, (batch, resolution, resolution).
        frames: number of frames recorded; the initial field is none of them.
        interval: time between frames.
        dt: the longest step, `default_time_step` by default; shortened so that a whole number of steps makes an
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
