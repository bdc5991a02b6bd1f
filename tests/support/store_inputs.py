"""A series with orography, as sources have it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tests.data_prep.test_odd_inputs import dataset

HEIGHTS = np.random.default_rng(2).uniform(0, 1000, (6, 8)).astype(np.float32)


def with_orography() -> xr.Dataset:
    """Three days of hourly fields of z, and orography without times."""
    return dataset().assign(orography=(("lat", "lon"), HEIGHTS, {"units": "m"}))
