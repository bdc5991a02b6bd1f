"""Gaussian random fields on the periodic unit square: the initial vorticity of the Navier-Stokes data.

The covariance is that of Li et al. (2021, arXiv 2010.08895, A.3.3) as the paper's generator uses it,

    C = sigma^2 (-Laplacian + tau^2 I)^(-alpha),    sigma = tau^(alpha - 1),

whose eigenfunctions are the Fourier modes. A sample is the real part of the inverse transform of white
complex noise times the square roots of the eigenvalues; its mean is zero.
"""

from __future__ import annotations

import math

import numpy as np


def sqrt_eigenvalues(resolution: int, alpha: float = 2.0, tau: float = 7.0) -> np.ndarray:
    """Return the square roots of the covariance's eigenvalues, scaled for an unnormalised inverse FFT.

    Args:
        resolution: grid points along each side.
        alpha: smoothness, the larger the smoother; the field is continuous for alpha > 1.
        tau: inverse correlation length, in units of the domain's side.

    Returns:
        float64 (resolution, resolution), C-contiguous, because the last bits of a sample depend on the memory layout
        that the FFT meets.
    """
    wavenumber = np.fft.fftfreq(resolution, d=1.0 / resolution)
    squared = wavenumber[:, None] ** 2 + wavenumber[None, :] ** 2
    sigma = tau ** (alpha - 1.0)
    root = resolution**2 * math.sqrt(2.0) * sigma * (4 * math.pi**2 * squared + tau**2) ** (-alpha / 2.0)
    root[0, 0] = 0.0
    return np.ascontiguousarray(root)


def gaussian_random_field(
    seed: int, split: int, sample: int, *, resolution: int, alpha: float = 2.0, tau: float = 7.0
) -> np.ndarray:
    """Draw one sample of the field, which is determined by (seed, split, sample) alone.

    Every sample has its own generator, so a sample does not depend on how many others are drawn, in which order or by
    which worker.

    Args:
        seed: seed of the store.
        split: number of the split (0 train, 1 val, 2 test), so that splits never share a sample.
        sample: position in the split.
        resolution: grid points along each side.
        alpha: see `sqrt_eigenvalues`.
        tau: see `sqrt_eigenvalues`.

    Returns:
        float32 of shape (resolution, resolution) with mean zero.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, sample)))
    noise = generator.standard_normal((2, resolution, resolution))
    spectrum = sqrt_eigenvalues(resolution, alpha, tau) * (noise[0] + 1j * noise[1])
    return np.fft.ifft2(spectrum).real.astype(np.float32)
