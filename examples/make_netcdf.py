"""Write a small NetCDF file with a field on a globe, to try the commands on where no other data are at hand.

    python examples/make_netcdf.py waves.nc

Seven planetary waves travel around the globe, each at its own speed, while their amplitudes change at random within a
few days: five years of a field every twelve hours, on a grid of 16 x 32 points. It stands for a variable such as the
geopotential, and is no simulation of anything.
"""

from __future__ import annotations

import sys

import numpy as np
import xarray as xr

LATITUDES, LONGITUDES = 16, 32
STEPS_OF_MEMORY = 20.0
"""after which an amplitude has lost e^-1 of itself: ten days"""


def waves(times: int, seed: int = 0) -> np.ndarray:
    """The field at so many times, float32 (time, latitude, longitude), in metres."""
    rng = np.random.default_rng(seed)
    longitude = 2 * np.pi * np.arange(LONGITUDES) / LONGITUDES
    latitude = np.deg2rad(np.linspace(-84.375, 84.375, LATITUDES))
    kept = np.exp(-1 / STEPS_OF_MEMORY)
    field = np.zeros((times, LATITUDES, LONGITUDES))
    for wavenumber in range(1, 8):
        speed = 0.30 - 0.9 / (wavenumber + 1) ** 2  # radians a step: long waves go west, short ones east
        shape = np.cos(latitude) ** 2 * np.cos(wavenumber * latitude)
        amplitude = 0j
        for time in range(times):
            change = rng.normal() + 1j * rng.normal()
            amplitude = kept * amplitude * np.exp(-1j * speed * wavenumber) + np.sqrt(1 - kept**2) * change
            wave = (amplitude * np.exp(1j * wavenumber * longitude)).real
            field[time] += 60 / wavenumber * shape[:, None] * wave
    return (5500 + field).astype(np.float32)


def main(path: str) -> None:
    """Write the file."""
    times = xr.date_range("2001-01-01", "2005-12-31T12:00", freq="12h")
    field = xr.DataArray(
        waves(len(times)),
        {
            "time": times,
            "lat": ("lat", np.linspace(-84.375, 84.375, LATITUDES), {"units": "degrees_north"}),
            "lon": ("lon", 360 * np.arange(LONGITUDES) / LONGITUDES, {"units": "degrees_east"}),
        },
        name="z",
        attrs={"long_name": "height of an imagined surface", "units": "m"},
    )
    field.to_netcdf(path)
    print(f"{path}: {dict(field.sizes)}")


if __name__ == "__main__":
    main(sys.argv[1])
