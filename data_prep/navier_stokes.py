"""Generate a store of two-dimensional Navier-Stokes vorticity.

    python -m data_prep.navier_stokes data/ns.zarr --train 1000 --val 50 --test 200 --seed 0

Random initial fields with the paper's spectrum, driven by its forcing, solved by `data_prep.solver` and
recorded at t = 1, 2, ... The initial field is kept beside the frames as `initial_field`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from mcrnn.cli import StorageOption, main
from mcrnn.data.store_format import SPLITS
from mcrnn.errors import UserError
from mcrnn.storage.location import check
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    from data_prep.plan import Shard, StorePlan

OBJECT_BYTES = 13_000_000
"""size of a shard before compression that is aimed at"""


@dataclass(frozen=True)
class Parameters:
    """What determines a sample, beside its split and index."""

    seed: int
    frames: int
    interval: float
    resolution: int
    compute_resolution: int
    viscosity: float
    forcing: float
    alpha: float
    tau: float


@dataclass(frozen=True)
class NavierStokes:
    """The source of the store's numbers: see `data_prep.builder.Source`."""

    parameters: Parameters
    device: str
    shards_at_once: int

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Draw the initial fields of the shards and integrate them."""
        import torch

        from data_prep.random_fields import gaussian_random_field
        from data_prep.solver import VorticityEquation, batch_size, paper_forcing, simulate

        torch.set_num_threads(1)
        p = self.parameters
        forcing = p.forcing * paper_forcing(p.resolution)
        equation, *finer = (
            VorticityEquation.create(n, p.viscosity, forcing, device=self.device)
            for n in sorted({p.compute_resolution, p.resolution})
        )
        initial = [
            np.stack(
                [
                    gaussian_random_field(
                        p.seed, SPLITS.index(shard.split), i, resolution=p.resolution, alpha=p.alpha, tau=p.tau
                    )
                    for i in range(shard.start, shard.stop)
                ]
            )
            for shard in shards
        ]
        batch = batch_size(p.compute_resolution) if self.device == "cpu" else 10**9
        solved = []
        try:
            for part in torch.from_numpy(np.concatenate(initial)).split(batch):
                vorticity = simulate(
                    equation,
                    part.to(self.device),
                    frames=p.frames,
                    interval=p.interval,
                    fallback=finer[0] if finer else None,
                )
                solved.append(vorticity.cpu().numpy()[:, :, None])
        except ValueError as error:
            raise UserError(str(error)) from None
        ends = np.cumsum([len(fields) for fields in initial])[:-1]
        fields = np.split(np.concatenate(solved), ends)
        return [{"field": f, "initial_field": w0} for f, w0 in zip(fields, initial, strict=True)]


def plan_store(parameters: Parameters, samples: dict[str, int]) -> StorePlan:
    """The store of these parameters."""
    from data_prep.plan import Coordinate, SplitPlan, StorePlan, text_array
    from data_prep.solver import batch_size

    p = parameters
    position = np.arange(p.resolution) / p.resolution
    times = p.interval * np.arange(1, p.frames + 1)
    frame_bytes = 4 * p.resolution**2 * p.frames
    shard = max(1, OBJECT_BYTES // frame_bytes)
    batch = batch_size(p.compute_resolution)
    if shard >= batch // 2:
        shard = max(1, round(shard / batch)) * batch

    def coordinates(count: int) -> dict[str, Coordinate]:
        return {
            "sample": (("sample",), np.arange(count), {}),
            "time": (("time",), times, {"long_name": "time", "units": "1"}),
            "channel": (("channel",), text_array(["vorticity"]), {}),
            "height": (("height",), position, {"long_name": "x"}),
            "width": (("width",), position, {"long_name": "y"}),
        }

    return StorePlan(
        splits={name: SplitPlan(count, p.frames, coordinates(count)) for name, count in samples.items()},
        channels=["vorticity"],
        height=p.resolution,
        width=p.resolution,
        layout="samples",
        chunk=1,
        shard=shard,
        attributes={
            "variable": "vorticity",
            "units": "1",
            "boundary": "periodic",
            "time_step": f"{p.interval:g}",
        },
        recipe={"command": "data_prep.navier_stokes", **samples, **asdict(p)},
        extras={"initial_field": ("sample", "height", "width")},
    )


def generate(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Name of the store: data/ns.zarr, or s3://bucket/ns.zarr.")
    ],
    train: Annotated[int, typer.Option(min=1, help="Samples of the training split.")] = 1000,
    val: Annotated[int, typer.Option(min=1, help="Samples of the validation split.")] = 50,
    test: Annotated[int, typer.Option(min=1, help="Samples of the test split.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed; sample i of a split depends on it and i alone.")] = 0,
    frames: Annotated[int, typer.Option(min=2, help="Frames recorded; the initial field is none of them.")] = 51,
    interval: Annotated[float, typer.Option(help="Time between frames; the first is one interval after 0.")] = 1.0,
    resolution: Annotated[int, typer.Option(min=8, help="Grid points a side, even.")] = 64,
    compute_resolution: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Solve on a coarser grid, such as 48, and record on the full one: faster, and checked; samples "
            "that need the full grid get it.",
        ),
    ] = None,
    viscosity: Annotated[float, typer.Option(help="Viscosity, 1 / Reynolds number.")] = 1e-3,
    forcing: Annotated[float, typer.Option(help="Amplitude of sin 2 pi (x + y) + cos 2 pi (x + y).")] = 0.1,
    alpha: Annotated[float, typer.Option(help="Smoothness of the initial field, above 1.")] = 2.0,
    tau: Annotated[float, typer.Option(help="Inverse correlation length of the initial field.")] = 7.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store of that name.")] = False,
    animate: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write an animation of sample 0 (.mp4 or .gif).")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Generate a store of 2D Navier-Stokes vorticity, in the paper's setting by default.

    The same command again continues an unfinished store and leaves a complete one alone.
    """
    parameters = Parameters(
        seed, frames, interval, resolution, compute_resolution or resolution, viscosity, forcing, alpha, tau
    )
    _check_parameters(parameters)
    if animate:
        from data_prep.animation import check_target

        check_target(Path(animate))
    root = Storage.open(storage)
    location = root.location(store)
    check(location)

    from data_prep.builder import build
    from mcrnn.console import Bar
    from mcrnn.device import choose_device

    samples = dict(zip(SPLITS, (train, val, test), strict=True))
    where = str(choose_device(device, "--device"))
    source = NavierStokes(parameters, where, shards_at_once=1 if where == "cpu" else 64)
    with Bar("samples", sum(samples.values()), "samples") as bar:
        fresh = build(
            location,
            plan_store(parameters, samples),
            source,
            workers=workers or os.cpu_count() or 1,
            overwrite=overwrite,
            on_done=lambda count, now: bar.advance(count) if now else bar.skip(count),
        )
    shape = f"{train} + {val} + {test} samples of {frames} frames, {resolution} x {resolution}"
    print(f"{root.show(location)}: {shape}" + ("" if fresh else " (complete already, nothing to do)"))
    if animate:
        from data_prep.animation import animate_sample
        from mcrnn.data.store import FieldStore

        animate_sample(FieldStore.open(location), "train", 0, Path(animate))
        print(f"{animate}: sample 0 of the training split")


def _check_parameters(p: Parameters) -> None:
    for name in ("resolution", "compute_resolution"):
        if getattr(p, name) % 2:
            raise UserError(f"--{name.replace('_', '-')} must be even, not {getattr(p, name)}")
    if p.compute_resolution > p.resolution:
        raise UserError(f"--compute-resolution {p.compute_resolution} is above --resolution {p.resolution}")
    for name in ("interval", "viscosity", "tau"):
        if not 0 < getattr(p, name) < float("inf"):
            raise UserError(f"--{name} must be above 0, not {getattr(p, name):g}")
    if not 1 < p.alpha < float("inf"):
        raise UserError(f"--alpha must be above 1, or the initial field is not continuous, not {p.alpha:g}")
    if not abs(p.forcing) < float("inf"):
        raise UserError(f"--forcing must be a finite number, not {p.forcing:g}")


if __name__ == "__main__":
    main(generate)
