"""Generate a store of two-dimensional Navier-Stokes vorticity.

    python -m data_prep.navier_stokes data/ns.zarr --train 1000 --val 50 --test 200 --seed 0

`generate` may also be called from Python, with the same arguments: `generate("data/ns.zarr", train=1000)`.
`data_prep.navier_stokes_source` says what is computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.data.store_format import SPLITS
from mcrnn.errors import UserError
from mcrnn.storage.location import check
from mcrnn.storage.root import Storage


def generate(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Name of the store: data/ns.zarr, or s3://bucket/ns.zarr.")
    ],
    train: Annotated[int, typer.Option(min=1, help="Samples of the training split.")] = 1000,
    val: Annotated[int, typer.Option(min=1, help="Samples of the validation split.")] = 50,
    test: Annotated[int, typer.Option(min=1, help="Samples of the test split.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed. Sample i of a split depends on the seed and on i alone.")] = 0,
    frames: Annotated[int, typer.Option(min=2, help="Frames recorded; the initial field is none of them.")] = 51,
    interval: Annotated[float, typer.Option(help="Time between frames; the first is one interval after 0.")] = 1.0,
    resolution: Annotated[int, typer.Option(min=8, help="Grid points along each side, even.")] = 64,
    compute_resolution: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Solve on a coarser grid, such as 48, and record on the full one. This is faster, and checked: "
            "samples that need the full grid are solved on it.",
        ),
    ] = None,
    viscosity: Annotated[float, typer.Option(help="Viscosity, 1 / Reynolds number.")] = 1e-3,
    forcing: Annotated[float, typer.Option(help="Amplitude of sin 2 pi (x + y) + cos 2 pi (x + y).")] = 0.1,
    alpha: Annotated[float, typer.Option(help="Smoothness of the initial field, above 1.")] = 2.0,
    tau: Annotated[float, typer.Option(help="Inverse correlation length of the initial field.")] = 7.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; by default one for each core.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store of that name.")] = False,
    animate: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write an animation of sample 0 (.mp4 or .gif).")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Generate a store of 2D Navier-Stokes vorticity, in the paper's setting by default.

    The same command again continues an unfinished store and leaves a complete one alone.
    """
    compute_resolution = compute_resolution or resolution
    _check_resolutions(resolution, compute_resolution)
    _check_physics(interval, viscosity, tau, alpha, forcing)
    if animate:
        from mcrnn.reports.animation import check_animation

        check_animation(Path(animate))
    root = Storage.open(storage)
    location = root.location(store)
    check(location)

    from data_prep.build_command import build_and_report
    from data_prep.navier_stokes_source import NavierStokesSource, Parameters, plan_store
    from mcrnn.device import choose_device

    parameters = Parameters(
        seed=seed,
        frames=frames,
        interval=interval,
        resolution=resolution,
        compute_resolution=compute_resolution,
        viscosity=viscosity,
        forcing=forcing,
        alpha=alpha,
        tau=tau,
    )
    build_and_report(
        root,
        location,
        plan_store(parameters, dict(zip(SPLITS, (train, val, test), strict=True))),
        NavierStokesSource(parameters, str(choose_device(device, "--device"))),
        workers=workers,
        overwrite=overwrite,
        unit="samples",
        content=f"{train} + {val} + {test} samples of {frames} frames, {resolution} x {resolution}",
    )
    if animate:
        from data_prep.animation import animate_sample
        from mcrnn.data.store import FieldStore

        animate_sample(FieldStore.open(location), "train", 0, Path(animate))
        print(f"{animate}: sample 0 of the training split")


def _check_resolutions(resolution: int, compute_resolution: int) -> None:
    for option, value in (("--resolution", resolution), ("--compute-resolution", compute_resolution)):
        if value % 2:
            raise UserError(f"{option} must be even, not {value}")
    if compute_resolution > resolution:
        raise UserError(f"--compute-resolution {compute_resolution} is above --resolution {resolution}")


def _check_physics(interval: float, viscosity: float, tau: float, alpha: float, forcing: float) -> None:
    for option, value in (("--interval", interval), ("--viscosity", viscosity), ("--tau", tau)):
        if not 0 < value < float("inf"):
            raise UserError(f"{option} must be above 0, not {value:g}")
    if not 1 < alpha < float("inf"):
        raise UserError(f"--alpha must be above 1, or the initial field is not continuous, not {alpha:g}")
    if not abs(forcing) < float("inf"):
        raise UserError(f"--forcing must be a finite number, not {forcing:g}")


if __name__ == "__main__":
    main(generate)
