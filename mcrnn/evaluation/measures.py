"""What is measured of a field: its means over the grid, over its mask and in regions, and its power spectra.

Axes: B windows of a batch, T steps, C channels, K wavenumbers, H and W rows and columns of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from mcrnn.data.masks import mask_weights


def power_spectrum(x_BTCHW: torch.Tensor) -> torch.Tensor:
    """Split the mean square of a periodic field by wavenumber.

    Shells have width 1 around the wavenumbers 0 .. K, where K is half the shorter side of the grid; larger wavenumbers
    count to the last shell. For vorticity the result is twice the enstrophy spectrum.

    Returns:
        (B, T, C, K + 1); the sum over wavenumbers is the mean square of the field.
    """
    height, width = x_BTCHW.shape[-2:]
    power = _squared_modulus(torch.fft.rfft2(x_BTCHW, norm="forward"))
    power[..., 1 : (width + 1) // 2] *= 2  # the half of the plane that rfft leaves out
    k_y = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)
    k_x = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64)
    last = min(height, width) // 2
    shell_HW = torch.sqrt(k_y[:, None] ** 2 + k_x**2).round().long().clamp(max=last).to(x_BTCHW.device)
    spectrum = power.new_zeros(*x_BTCHW.shape[:3], last + 1)
    return spectrum.index_add_(-1, shell_HW.flatten(), power.flatten(-2))


def zonal_spectrum(x_BTCHW: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """Split the area-weighted mean square of a field on a globe by zonal wavenumber, the waves in a circle of latitude.

    Args:
        x_BTCHW: the field, whose rows are whole circles of latitude.
        weights: area weights of the rows with mean 1.

    Returns:
        (B, T, C, W // 2 + 1); the sum over wavenumbers is the area-weighted mean square of the field.
    """
    width = x_BTCHW.shape[-1]
    power_BTCHK = _squared_modulus(torch.fft.rfft(x_BTCHW, norm="forward"))
    power_BTCHK[..., 1 : (width + 1) // 2] *= 2  # the negative wavenumbers, which rfft leaves out
    return (power_BTCHK * torch.as_tensor(weights).to(power_BTCHK)[:, None]).mean(-2)


def _squared_modulus(x: torch.Tensor) -> torch.Tensor:
    """Return |x|^2 of complex numbers, without the root that `abs` takes first."""
    return x.real.square().add_(x.imag.square())


@dataclass(frozen=True)
class RegionPoints:
    """The grid points of a region.

    Attributes:
        rows: positions of its rows.
        columns: positions of its columns.
        weights: area weights of its rows with mean 1.
    """

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray

    @property
    def size(self) -> int:
        """Number of grid points."""
        return len(self.rows) * len(self.columns)

    def of(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return the part of a field that lies in the region."""
        rows, columns = (torch.as_tensor(chosen, device=x_BTCHW.device) for chosen in (self.rows, self.columns))
        return x_BTCHW.index_select(-2, rows).index_select(-1, columns)


@dataclass(frozen=True)
class Measures:
    """What is measured beside the errors.

    Attributes:
        weights: area weights of the rows with mean 1 on a sphere, see `latitude_weights`; else None.
        spectra: whether power spectra are computed, which need a periodic field without a mask.
        zonal: whether power spectra of circles of latitude are computed, which need a globe without a mask.
        regions: grid points of the regions that are also measured by themselves, by name.
        mask_CHW: points that have values, on which all means and variances are taken; None where all have.
        predicted: number of channels, the first ones, that are measured in regions, of which another one may have no
            value there; None for all.
    """

    weights: np.ndarray | None = None
    spectra: bool = False
    zonal: bool = False
    regions: Mapping[str, RegionPoints] = field(default_factory=dict)
    mask_CHW: np.ndarray | None = None
    predicted: int | None = None

    def power(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return the power spectrum of a field, (B, T, C, K + 1)."""
        if self.zonal:
            assert self.weights is not None
            return zonal_spectrum(x_BTCHW, self.weights)
        return power_spectrum(x_BTCHW)

    def num_wavenumbers(self, height: int, width: int) -> int:
        """Return K + 1 for a grid; 0 where there are no spectra."""
        if self.zonal:
            return width // 2 + 1
        return min(height, width) // 2 + 1 if self.spectra else 0

    def within_mask(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        """Return a field of all channels or the first ones, with 0 outside of the mask."""
        if self.mask_CHW is None:
            return x_BTCHW
        mask_CHW = torch.tensor(self.mask_CHW[: x_BTCHW.shape[2]], device=x_BTCHW.device)
        return torch.where(mask_CHW, x_BTCHW, 0.0)

    def mean(self, x_BTCHW: torch.Tensor, *, by_area: bool = False) -> torch.Tensor:
        """Return the mean over the grid, or over the points of the mask, (B, T, C).

        Args:
            x_BTCHW: a field, finite outside of the mask.
            by_area: whether it is weighted by the area of the cells.
        """
        weights = self.weights_for(x_BTCHW, by_area=by_area)
        return (x_BTCHW if weights is None else x_BTCHW * weights).mean((-2, -1))

    def weights_for(self, x_BTCHW: torch.Tensor, *, by_area: bool) -> torch.Tensor | None:
        """Return the weights in means of a field, of rows (H, 1) or of points (C, H, W); None if all count the same."""
        weights = self._weights[by_area]
        if weights is None:
            return None
        return torch.as_tensor(weights[: x_BTCHW.shape[2]] if weights.ndim == 3 else weights[:, None]).to(x_BTCHW)

    @cached_property
    def _weights(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Weights of rows (H,) or of points (C, H, W) in plain means, and in those by area."""
        if self.mask_CHW is None:
            return None, self.weights
        return mask_weights(self.mask_CHW), mask_weights(self.mask_CHW, self.weights)

    @cached_property
    def of_regions(self) -> dict[str, Measures]:
        """What is measured in each region, by name."""
        found = {}
        for name, points in self.regions.items():
            mask_CHW = self.mask_CHW
            if mask_CHW is not None:
                mask_CHW = mask_CHW[: self.predicted][:, points.rows][:, :, points.columns]
            found[name] = Measures(points.weights, mask_CHW=mask_CHW)
        return found
