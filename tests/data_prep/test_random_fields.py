from __future__ import annotations

import numpy as np

from data_prep.random_fields import gaussian_random_field, sqrt_eigenvalues


def test_sample_depends_on_seed_split_and_index_alone() -> None:
    first = gaussian_random_field(0, 0, 3, resolution=16)
    assert np.array_equal(first, gaussian_random_field(0, 0, 3, resolution=16))
    for other in ((1, 0, 3), (0, 1, 3), (0, 0, 4)):
        assert not np.array_equal(first, gaussian_random_field(*other, resolution=16))


def test_spectrum_of_many_samples_follows_the_covariance() -> None:
    n = 16
    fields = np.stack([gaussian_random_field(0, 0, i, resolution=n) for i in range(2000)]).astype(np.float64)
    power = (np.abs(np.fft.fft2(fields)) ** 2).mean(0)
    # the real part of the transform has E|u_k|^2 = (c_k^2 + c_-k^2) / 2 = c_k^2 for white complex noise
    expected = sqrt_eigenvalues(n) ** 2
    interior = np.ones((n, n), bool)
    interior[0, 0] = interior[n // 2] = interior[:, n // 2] = False
    ratio = power[interior] / expected[interior]
    assert abs(ratio.mean() - 1) < 0.02
    assert ratio.min() > 0.8
    assert ratio.max() < 1.2


def test_mean_is_zero() -> None:
    assert abs(gaussian_random_field(0, 0, 0, resolution=32).mean()) < 1e-7
