"""Measure the solver against the paper's scheme: time for each sample on one core, and error at t = 50.

    python -m benchmarks.solver [--samples 32] [--repeats 3]

All variants integrate the same initial fields, taking turns, in one process with one thread. An error is the relative
L2 difference from a run in float64 on 128 x 128 points with dt = 1/64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.paper_solver import solve
from data_prep.random_fields import gaussian_random_field
from data_prep.solver import VorticityEquation, batch_size, paper_forcing, simulate, to_grid, to_spectrum

RESOLUTION, FRAMES, VISCOSITY, AMPLITUDE = 64, 50, 1e-3, 0.1


def reference(w0: torch.Tensor) -> torch.Tensor:
    """Return the vorticity at the last frame, on the grid of w0, from a run on a finer grid with a shorter step."""
    fine = 2 * RESOLUTION
    equation = VorticityEquation.create(fine, VISCOSITY, AMPLITUDE * paper_forcing(fine), dtype=torch.float64)
    # A spectrum on 96 points along each side holds all wavenumbers of a field on 64.
    start = to_grid(to_spectrum(w0.double(), 3 * RESOLUTION // 2), fine)
    return simulate(equation, start, frames=FRAMES, dt=1 / 64)[:, -1, ::2, ::2]


def variants() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return functions that integrate a batch of initial fields, by name."""
    forcing = AMPLITUDE * paper_forcing(RESOLUTION)

    def ours(resolution: int) -> Callable[[torch.Tensor], torch.Tensor]:
        full, equation = (VorticityEquation.create(n, VISCOSITY, forcing) for n in (RESOLUTION, resolution))
        fallback = full if resolution < RESOLUTION else None

        def run(w0: torch.Tensor) -> torch.Tensor:
            parts = w0.split(batch_size(resolution))
            return torch.cat([simulate(equation, part, frames=FRAMES, fallback=fallback) for part in parts])

        return run

    def paper(w0: torch.Tensor) -> torch.Tensor:
        return solve(w0, forcing.float(), viscosity=VISCOSITY, frames=FRAMES)

    return {
        "paper, 64 x 64, dt 1/100": paper,
        "ours, 64 x 64": ours(64),
        "ours, 48 x 48": ours(48),
        "ours, 32": ours(32),
    }


def main() -> None:
    """Integrate by each variant and print times and errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    w0 = torch.stack(
        [torch.from_numpy(gaussian_random_field(0, 0, i, resolution=RESOLUTION)) for i in range(options.samples)]
    )
    truth = reference(w0)
    solvers = variants()
    times: dict[str, list[float]] = {name: [] for name in solvers}
    errors: dict[str, torch.Tensor] = {}
    for _ in range(options.repeats):
        for name, solver in solvers.items():
            started = time.perf_counter()
            last = solver(w0)[:, -1]
            times[name].append((time.perf_counter() - started) / options.samples * 1e3)
            errors[name] = (last - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    print(f"{options.samples} samples, {options.repeats} repeats, one core, t = {FRAMES}")
    print(f"{'':<28}{'ms a sample':>12}{'speed':>9}{'median error':>15}{'worst error':>14}{'of paper':>11}")
    paper = next(iter(solvers))
    for name in solvers:
        middle = statistics.median(times[name])
        speed = statistics.median(times[paper]) / middle
        better = float(errors[paper].median() / errors[name].median())
        print(
            f"{name:<28}{middle:>12.1f}{speed:>8.1f}x{float(errors[name].median()):>15.1e}"
            f"{float(errors[name].max()):>14.1e}{'1/' + format(better, '.0f'):>11}"
        )
    print("promised: at least 10x and 1/100 at 64 x 64, 25x at 48 x 48")


if __name__ == "__main__":
    main()
