"""Generate a store of two-dimensional Navier-Stokes vorticity.

    python -m data_prep.navier_stokes data/ns.zarr --train 1000 --val 50 --test 200 --seed 0

Random initial fields with the paper's spectrum, driven by its forcing, solved by `data_prep.solver` and
recorded at t = 1, 2, ... The initial field is kept beside the frames as `initial_field`.
"""

from __future__ import annotations

import sys
from typing import Annotated

import numpy as np
import typer

from mcrnn.cli import StorageOption, main
from mcrnn.errors import UserError
from mcrnn.storage import Storage

SAMPLES_PER_SHARD = 16
"""one batch of the solver and, at 64 x 64 x 51 frames, one object of about 12 MB"""


def generate(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Name of the store, such as data/ns.zarr.")],
    train: Annotated[int, typer.Option(min=1, help="Samples of the training split.")] = 1000,
    val: Annotated[int, typer.Option(min=1, help="Samples of the validation split.")] = 50,
    test: Annotated[int, typer.Option(min=1, help="Samples of the test split.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed; sample i of a split depends on it and i alone.")] = 0,
    frames: Annotated[int, typer.Option(min=2, help="Frames recorded, at t = 1, 2, ...")] = 51,
    resolution: Annotated[int, typer.Option(min=8, help="Grid points a side, even.")] = 64,
    viscosity: Annotated[float, typer.Option(help="Viscosity, 1 / Reynolds number.")] = 1e-3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store of that name.")] = False,
    storage: StorageOption = None,
) -> None:
    """Generate a store of 2D Navier-Stokes vorticity (the paper's setting by default).

    The same command again continues an unfinished store and leaves a complete one alone.
    """
    if resolution % 2:
        raise UserError(f"--resolution must be even, not {resolution}")
    if not viscosity > 0:
        raise UserError(f"--viscosity must be above 0, not {viscosity:g}")
    root = Storage.open(storage)
    path = root.path(store)

    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from data_prep.builder import StorePlan, build
    from data_prep.random_fields import gaussian_random_field
    from data_prep.solver import VorticityEquation, kolmogorov_like_forcing, simulate
    from mcrnn.store_format import SPLITS

    position = np.arange(resolution) / resolution
    plan = StorePlan(
        samples={"train": train, "val": val, "test": test},
        frames=frames,
        channels=["vorticity"],
        height=resolution,
        width=resolution,
        samples_per_shard=SAMPLES_PER_SHARD,
        coordinates={
            "sample": (("sample",), np.empty(0), {}),
            "time": (("time",), np.arange(1.0, frames + 1), {"long_name": "time", "units": "1"}),
            "channel": (("channel",), np.array(["vorticity"], dtype=np.dtypes.StringDType()), {}),
            "height": (("height",), position, {"long_name": "x"}),
            "width": (("width",), position, {"long_name": "y"}),
        },
        attributes={"variable": "vorticity", "units": "1", "boundary": "periodic", "time_step": "1"},
        recipe={
            "command": "data_prep.navier_stokes",
            "train": train,
            "val": val,
            "test": test,
            "seed": seed,
            "frames": frames,
            "resolution": resolution,
            "viscosity": viscosity,
            "alpha": 2.0,
            "tau": 7.0,
            "forcing": "0.1 (sin 2 pi (x + y) + cos 2 pi (x + y))",
            "time_step": "1/16",
        },
        extras={"initial_field": ("sample", "height", "width")},
    )
    equation = VorticityEquation.create(resolution, viscosity, kolmogorov_like_forcing(resolution))

    def compute(split: str, start: int, stop: int) -> dict[str, np.ndarray]:
        number = SPLITS.index(split)
        fields = [gaussian_random_field(seed, number, i, resolution=resolution) for i in range(start, stop)]
        initial = np.stack(fields)
        try:
            vorticity = simulate(equation, torch.from_numpy(initial), frames=frames)
        except ValueError as error:
            raise UserError(str(error)) from None
        return {"field": vorticity.numpy()[:, :, None], "initial_field": initial}

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("samples", total=train + val + test)
        fresh = build(path, plan, compute, overwrite=overwrite, on_shard=lambda n: progress.advance(task, n))
    shape = f"{train} + {val} + {test} samples of {frames} frames, {resolution} x {resolution}"
    print(f"{root.show(path)}: {shape}" + ("" if fresh else " (complete already, nothing to do)"))


if __name__ == "__main__":
    main(generate)
