"""The sources: how their shards depend on parameters, grouping and missing values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_prep.builder import Source
from data_prep.navier_stokes_source import NavierStokesSource, Parameters, plan_store
from data_prep.plan import Shard

PARAMETERS = Parameters(
    seed=3,
    frames=2,
    interval=1.0,
    resolution=16,
    compute_resolution=16,
    viscosity=1e-3,
    forcing=0.1,
    alpha=2.0,
    tau=7.0,
)


def test_shard_does_not_depend_on_those_computed_with_it() -> None:
    source: Source = NavierStokesSource(PARAMETERS, "cpu")
    shards = [Shard("train", 0, 3), Shard("val", 0, 2), Shard("train", 3, 4)]
    together = source.compute(shards)
    for shard, arrays in zip(shards, together, strict=True):
        (alone,) = source.compute([shard])
        assert arrays["field"].shape == (shard.stop - shard.start, 2, 1, 16, 16)
        for name in ("field", "initial_field"):
            np.testing.assert_allclose(arrays[name], alone[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("resolution", "frames"), [(16, 2), (32, 20), (64, 51), (128, 51), (256, 51)])
def test_shards_hold_whole_batches_of_the_solver_unless_samples_are_large(resolution: int, frames: int) -> None:
    from data_prep.navier_stokes_source import OBJECT_BYTES
    from data_prep.solver import batch_size

    parameters = replace(PARAMETERS, resolution=resolution, compute_resolution=resolution, frames=frames)
    plan = plan_store(parameters, {"train": 1000, "val": 1, "test": 1})
    size, batch = 4 * resolution**2 * frames * plan.shard, batch_size(resolution)
    assert plan.shard % batch == 0 or plan.shard < batch // 2
    assert 0.4 * OBJECT_BYTES < size < 4 * OBJECT_BYTES
