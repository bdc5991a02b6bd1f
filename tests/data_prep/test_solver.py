"""The solver against exact solutions, and against itself on a finer grid with a shorter step."""

from __future__ import annotations

import math

import pytest
import torch

from data_prep.random_fields import gaussian_random_field
from data_prep.solver import VorticityEquation, paper_forcing, simulate, to_grid, to_spectrum

VISCOSITY = 1e-3


def positions(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.arange(n, dtype=torch.float64) / n
    return x[:, None].expand(n, n), x[None, :].expand(n, n)


def unforced(n: int, viscosity: float = VISCOSITY) -> VorticityEquation:
    return VorticityEquation.create(n, viscosity, torch.zeros(n, n), dtype=torch.float64)


def relative_error(field: torch.Tensor, truth: torch.Tensor) -> float:
    return float((field - truth).norm() / truth.norm())


def initial_fields(count: int, n: int = 64) -> torch.Tensor:
    return torch.stack([torch.from_numpy(gaussian_random_field(0, 0, i, resolution=n)) for i in range(count)])


@pytest.mark.parametrize(("k_x", "k_y"), [(1, 0), (0, 3), (2, 5)])
def test_single_mode_decays_exactly(k_x: int, k_y: int) -> None:
    # a single mode is parallel flow, which does not advect itself: w = w0 exp(-4 pi^2 k^2 viscosity t)
    x, y = positions(32)
    w0 = torch.cos(2 * math.pi * (k_x * x + k_y * y))
    w = simulate(unforced(32), w0[None], frames=5)[0, -1]
    assert relative_error(w, w0 * math.exp(-4 * math.pi**2 * (k_x**2 + k_y**2) * VISCOSITY * 5)) < 1e-13


def test_taylor_green_vortex_decays_exactly() -> None:
    # w = sin 2 pi x sin 2 pi y has psi = w / (8 pi^2), a function of w alone, so that u . grad w = 0
    x, y = positions(32)
    w0 = torch.sin(2 * math.pi * x) * torch.sin(2 * math.pi * y)
    w = simulate(unforced(32), w0[None], frames=5)[0, -1]
    assert relative_error(w, w0 * math.exp(-8 * math.pi**2 * VISCOSITY * 5)) < 1e-13


def test_forced_flow_from_rest_follows_the_exact_solution() -> None:
    # f depends on x + y alone and so does w: no advection, w = f / (8 pi^2 nu) (1 - exp(-8 pi^2 nu t))
    n, frames = 32, 20
    forcing = 0.1 * paper_forcing(n)
    equation = VorticityEquation.create(n, VISCOSITY, forcing, dtype=torch.float64)
    w = simulate(equation, torch.zeros(1, n, n, dtype=torch.float64), frames=frames, dt=1 / 16)[0]
    rate = 8 * math.pi**2 * VISCOSITY
    for frame in range(frames):
        truth = forcing / rate * (1 - math.exp(-rate * (frame + 1)))
        assert relative_error(w[frame], truth) < 1e-9


def test_advection_agrees_with_exact_derivatives() -> None:
    # the advection term itself, against its definition evaluated by exact derivatives of two modes:
    # w = cos 2 pi x + cos 4 pi y has psi = cos 2 pi x / (4 pi^2) + cos 4 pi y / (16 pi^2)
    x, y = positions(32)
    w = torch.cos(2 * math.pi * x) + torch.cos(4 * math.pi * y)
    u = -torch.sin(4 * math.pi * y) / (4 * math.pi)
    v = torch.sin(2 * math.pi * x) / (2 * math.pi)
    truth = -(u * -2 * math.pi * torch.sin(2 * math.pi * x) + v * -4 * math.pi * torch.sin(4 * math.pi * y))
    explicit = to_grid(unforced(32).explicit(to_spectrum(w, 32)[None]), 32)[0]
    assert relative_error(explicit, truth) < 1e-13


def test_default_scheme_agrees_with_a_fine_reference() -> None:
    n, fine = 64, 128
    w0 = initial_fields(2)
    start = to_grid(to_spectrum(w0.double(), 96), fine)  # which carries all wavenumbers of the coarse grid
    reference = VorticityEquation.create(fine, VISCOSITY, 0.1 * paper_forcing(fine), dtype=torch.float64)
    truth = simulate(reference, start, frames=10, dt=1 / 64)[:, :, ::2, ::2]
    equation = VorticityEquation.create(n, VISCOSITY, 0.1 * paper_forcing(n))
    assert relative_error(simulate(equation, w0, frames=10), truth.float()) < 1e-5


def test_sample_does_not_depend_on_its_batch() -> None:
    equation = VorticityEquation.create(64, VISCOSITY, 0.1 * paper_forcing(64))
    w0 = initial_fields(5)
    together = simulate(equation, w0, frames=2)
    assert torch.equal(together[3:4], simulate(equation, w0[3:4], frames=2))


def test_unstable_sample_is_done_again_with_a_shorter_step_and_the_others_are_not() -> None:
    n = 64
    equation = VorticityEquation.create(n, VISCOSITY, torch.zeros(n, n))
    calm = initial_fields(1)
    fast = 20 * calm
    assert equation.courant(to_spectrum(calm, n), 1 / 16) < 3.4 < equation.courant(to_spectrum(fast, n), 1 / 16)
    both = simulate(equation, torch.cat([calm, fast]), frames=2)
    assert torch.equal(both[:1], simulate(equation, calm, frames=2))
    accurate = simulate(equation, fast, frames=2, dt=1 / 512)
    assert relative_error(both[1:], accurate) < 1e-3


def test_reduced_grid_agrees_and_samples_it_cannot_carry_get_the_full_one() -> None:
    full = VorticityEquation.create(64, VISCOSITY, 0.1 * paper_forcing(64))
    w0 = initial_fields(2)
    truth = simulate(full, w0, frames=10)
    reduced = VorticityEquation.create(48, VISCOSITY, 0.1 * paper_forcing(48))
    recorded = simulate(reduced, w0, frames=10, fallback=full)
    assert recorded.shape == truth.shape
    assert 0 < relative_error(recorded, truth) < 1e-4
    # 16 x 16 is far too coarse: without the guard wrong, with it the full grid's numbers to the last bit
    coarse = VorticityEquation.create(16, VISCOSITY, 0.1 * paper_forcing(16))
    assert relative_error(simulate(coarse, w0, frames=10), truth) > 1e-3
    assert torch.equal(simulate(coarse, w0, frames=10, fallback=full), truth)


@pytest.mark.parametrize(("n", "target"), [(32, 32), (32, 48), (64, 48), (48, 64)])
def test_spectra_carry_a_smooth_field_between_grids(n: int, target: int) -> None:
    def wave(points: int) -> torch.Tensor:
        x, y = positions(points)
        return torch.sin(2 * math.pi * (3 * x + 2 * y)) + torch.cos(2 * math.pi * (x - 4 * y)) + 0.3

    spectrum = to_spectrum(wave(n), min(n, target))
    assert relative_error(to_grid(spectrum, target), wave(target)) < 1e-13


def test_hopeless_parameters_are_refused() -> None:
    equation = VorticityEquation.create(32, 1e-6, 1e9 * 0.1 * paper_forcing(32))
    with pytest.raises(ValueError, match="unstable"):
        simulate(equation, initial_fields(1, 32), frames=1)
