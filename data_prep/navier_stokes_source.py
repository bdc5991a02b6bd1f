"""Navier-Stokes fields as a source of shards, and the plan of a store of them.

Random initial fields with the paper's spectrum (`data_prep.random_fields`), driven by its forcing, are integrated by
`data_prep.solver` and recorded at t = interval, 2 interval, ... The initial field is kept beside the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from data_prep.plan import Coordinate, Shard, SplitPlan, StorePlan, text_array
from data_prep.random_fields import gaussian_random_field
from data_prep.solver import VorticityEquation, batch_size, paper_forcing, simulate
from mcrnn.data.store_format import SPLITS
from mcrnn.errors import UserError

if TYPE_CHECKING:
    from data_prep.source_identity import SourceIdentity

OBJECT_BYTES = 13_000_000
"""Size of a shard, before compression, that plans come near to."""

SHARDS_AT_ONCE_ON_GPU = 64
"""Shards that a GPU integrates together. On a CPU it is one per process."""


@dataclass(frozen=True)
class Parameters:
    """All that determines a sample, apart from its split and its position in the split.

    Attributes:
        seed: seed of the initial fields.
        frames: number of frames recorded; the initial field is none of them.
        interval: time between frames.
        resolution: grid points along each side of a recorded frame, even.
        compute_resolution: grid points along each side of the grid on which the equation is solved, even.
        viscosity: 1 / Reynolds number.
        forcing: amplitude of the paper's forcing.
        alpha: smoothness of the initial field, above 1, see `random_fields.sqrt_eigenvalues`.
        tau: inverse correlation length of the initial field, see `random_fields.sqrt_eigenvalues`.
    """

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
class NavierStokesSource:
    """Computes shards of vorticity, see `data_prep.builder.Source`.

    Attributes:
        parameters: what determines the samples.
        device: device as PyTorch names it, such as cpu or cuda.
    """

    parameters: Parameters
    device: str
    sources: ClassVar[Sequence[SourceIdentity]] = ()

    @property
    def shards_at_once(self) -> int:
        """Number of shards that are best computed together."""
        return 1 if self.device == "cpu" else SHARDS_AT_ONCE_ON_GPU

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Draw the initial fields of the shards and integrate them.

        Raises:
            UserError: the solver is unstable for these parameters.
        """
        torch.set_num_threads(1)  # there is one process for each core
        initial = [np.stack([self._initial_field(s.split, i) for i in range(s.start, s.stop)]) for s in shards]
        vorticity_NTHW = self._integrate(torch.from_numpy(np.concatenate(initial)))
        ends = np.cumsum([len(w0_NHW) for w0_NHW in initial])
        fields = np.split(vorticity_NTHW[:, :, None], ends[:-1])
        return [{"field": field, "initial_field": w0} for field, w0 in zip(fields, initial, strict=True)]

    def _initial_field(self, split: str, sample: int) -> np.ndarray:
        p = self.parameters
        return gaussian_random_field(
            p.seed, SPLITS.index(split), sample, resolution=p.resolution, alpha=p.alpha, tau=p.tau
        )

    def _integrate(self, w0_NHW: torch.Tensor) -> np.ndarray:
        """Return the frames (N, T, H, W) that follow some initial fields."""
        p = self.parameters
        forcing = p.forcing * paper_forcing(p.resolution)

        def equation_on(resolution: int) -> VorticityEquation:
            return VorticityEquation.create(resolution, p.viscosity, forcing, device=self.device)

        equation = equation_on(p.compute_resolution)
        fallback = equation_on(p.resolution) if p.compute_resolution < p.resolution else None
        # A CPU is fastest with as many samples as fit its cache, a GPU with all of them.
        batch = batch_size(p.compute_resolution) if self.device == "cpu" else len(w0_NHW)
        recorded = []
        try:
            for part_NHW in w0_NHW.split(batch):
                frames_NTHW = simulate(
                    equation, part_NHW.to(self.device), frames=p.frames, interval=p.interval, fallback=fallback
                )
                recorded.append(frames_NTHW.cpu().numpy())
        except ValueError as error:
            raise UserError(str(error)) from None
        return np.concatenate(recorded)


def plan_store(parameters: Parameters, samples: dict[str, int]) -> StorePlan:
    """Plan the store of some parameters.

    Args:
        parameters: what determines the samples.
        samples: number of samples of each split, by its name.
    """
    p = parameters
    position = np.arange(p.resolution) / p.resolution
    times = p.interval * np.arange(1, p.frames + 1)

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
        shard=_samples_per_shard(p),
        attributes={
            "variable": "vorticity",
            "units": "1",
            "boundary": "periodic",
            "time_step": f"{p.interval:g}",
        },
        recipe={"command": "data_prep.navier_stokes", **samples, **asdict(p)},
        extras={"initial_field": ("sample", "height", "width")},
    )


def _samples_per_shard(p: Parameters) -> int:
    """Return how many samples come near to `OBJECT_BYTES`.

    The solver computes a shard at a time, and a batch that is not full costs nearly as much as a full one. The number
    is therefore a multiple of the solver's batch, unless not even half a batch comes near to the size.
    """
    bytes_per_sample = 4 * p.resolution**2 * p.frames
    samples = max(1, OBJECT_BYTES // bytes_per_sample)
    batch = batch_size(p.compute_resolution)
    if samples < batch // 2:
        return samples
    return max(1, round(samples / batch)) * batch
