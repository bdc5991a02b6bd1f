"""Scores against closed forms, and against plain float64 NumPy on random data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mcrnn.data.sphere import latitude_weights
from mcrnn.evaluation.measures import Measures, RegionPoints, power_spectrum, zonal_spectrum
from mcrnn.evaluation.metrics import (
    ARRAYS,
    Scores,
    instability,
    rmse,
    rmse_by_step,
    rmse_mean_of_steps,
    rmse_normalized,
    skill_horizon,
)

LATITUDE = np.linspace(-84.375, 84.375, 16)


def scored(
    prediction_NTCHW: np.ndarray,
    truth_NTCHW: np.ndarray,
    measures: Measures,
    climatology_NTCHW: np.ndarray | None = None,
    batch_size: int = 3,
) -> Scores:
    windows, steps, channels, height, width = truth_NTCHW.shape
    scores = Scores.empty(windows, steps, channels, measures, (height, width))
    for first in range(0, windows, batch_size):
        rows = slice(first, first + batch_size)
        climatology = None if climatology_NTCHW is None else torch.from_numpy(climatology_NTCHW[rows])
        scores.update(
            torch.from_numpy(prediction_NTCHW[rows]), torch.from_numpy(truth_NTCHW[rows]), measures, climatology
        )
    return scores


def random_fields(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, error, mean = (rng.normal(size=(7, 5, 2, 16, 32)) for _ in range(3))
    return truth + 0.3 * error, truth, mean


def test_errors_of_a_shifted_sine_are_those_of_the_closed_form() -> None:
    # sin(x + d) - sin(x) = 2 sin(d/2) cos(x + d/2), whose mean square is 2 sin(d/2)^2; its mean size 4/pi |sin(d/2)|
    x = 2 * np.pi * np.arange(64) / 64
    shifts = np.array([0.0, 0.1, 0.7, np.pi])
    truth = np.broadcast_to(np.sin(x), (3, 4, 1, 64, 64)).copy()
    prediction = np.broadcast_to(np.sin(x + shifts[:, None])[:, None, None, :], (3, 4, 1, 64, 64)).copy()
    scores = scored(prediction, truth, Measures())
    expected = 2 * np.sin(shifts / 2) ** 2
    assert np.allclose(scores.squared[:, :, 0], expected, rtol=1e-12, atol=1e-28)
    assert np.allclose(scores.absolute[:, :, 0], 4 / np.pi * np.abs(np.sin(shifts / 2)), rtol=2e-3)
    assert np.allclose(rmse_by_step(scores.squared), np.sqrt(expected), rtol=1e-12, atol=1e-14)
    assert rmse(scores.squared, 1, 4) == pytest.approx(np.sqrt(expected.mean()), rel=1e-12)
    assert rmse_mean_of_steps(scores.squared, 2, 3) == pytest.approx(np.sqrt(expected[1:3]).mean(), rel=1e-12)


def test_spectrum_of_waves_is_half_the_square_of_their_amplitudes() -> None:
    y, x = np.meshgrid(*(2 * np.pi * np.arange(32) / 32,) * 2, indexing="ij")
    field = 3 + 2 * np.sin(4 * x) + 0.5 * np.cos(3 * x + 4 * y)  # wavenumbers 0, 4 and 5
    spectrum = power_spectrum(torch.from_numpy(field)[None, None, None])[0, 0, 0].numpy()
    expected = np.zeros(17)
    expected[[0, 4, 5]] = 9, 2, 0.125
    assert np.allclose(spectrum, expected, atol=1e-12)


def test_zonal_spectrum_of_waves_is_that_of_each_circle_weighted_by_area() -> None:
    # on each circle of latitude 3 + a sin(5 x): 9 at wavenumber 0 and a^2 / 2 at wavenumber 5
    x = 2 * np.pi * np.arange(32) / 32
    amplitude = np.cos(np.deg2rad(LATITUDE))
    weights = latitude_weights(LATITUDE)
    field = torch.from_numpy(3 + amplitude[:, None] * np.sin(5 * x))[None, None, None]
    expected = np.zeros(17)
    expected[[0, 5]] = 9, (weights * amplitude**2).mean() / 2
    assert np.allclose(zonal_spectrum(field, weights)[0, 0, 0], expected, rtol=1e-12, atol=1e-12)
    for width in (8, 9):  # the sum over wavenumbers is the mean square, by area
        noise = np.random.default_rng(3).normal(size=(2, 3, 1, 16, width))
        total = zonal_spectrum(torch.from_numpy(noise), weights).sum(-1).numpy()
        assert np.allclose(total, (weights[:, None] * noise**2).mean((-2, -1)), rtol=1e-12)


def test_spectrum_sums_to_the_mean_square() -> None:
    for shape in ((16, 16), (15, 20), (8, 31)):
        field = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 1, *shape)))
        assert torch.allclose(power_spectrum(field).sum(-1), field.square().mean((-2, -1)), rtol=1e-12)


def test_latitude_weights_are_the_exact_areas_of_the_cells() -> None:
    # 8 rows of 22.5 degrees: the area between two latitudes is the difference of their sines
    edges = np.deg2rad(np.linspace(-90, 90, 9))
    area = np.diff(np.sin(edges))
    rows = np.linspace(-78.75, 78.75, 8)
    assert np.allclose(latitude_weights(rows), area / area.mean(), rtol=1e-12)
    assert np.allclose(latitude_weights(rows[::-1]), (area / area.mean())[::-1], rtol=1e-12)
    # rows on the poles have half a cell each
    with_poles = latitude_weights(np.linspace(-90, 90, 5))
    assert with_poles.mean() == pytest.approx(1)
    assert with_poles[0] == pytest.approx(with_poles[-1])
    assert with_poles[0] < with_poles[1] < with_poles[2]
    # a region ends half a row beyond its last rows, not at the poles
    region = np.diff(np.sin(np.deg2rad(np.arange(52.5, 61))))
    assert np.allclose(latitude_weights(np.arange(60.0, 52, -1)), region[::-1] / region.mean(), rtol=1e-12)
    assert latitude_weights(np.array([45.0])) == 1


def test_all_scores_are_those_of_plain_numpy_on_random_data() -> None:
    prediction, truth, mean = random_fields()
    weights = latitude_weights(LATITUDE)
    scores = scored(prediction, truth, Measures(weights, spectra=True), mean)
    error = prediction - truth
    w = weights[:, None]
    close = {"rtol": 1e-10, "atol": 0}
    assert np.allclose(scores.squared, (error**2).mean((-2, -1)), **close)
    assert np.allclose(scores.absolute, np.abs(error).mean((-2, -1)), **close)
    assert np.allclose(scores.variance[0], prediction.var((-2, -1)), **close)
    assert np.allclose(scores.variance[1], truth.var((-2, -1)), **close)
    assert scores.weighted is not None
    assert scores.weighted_absolute is not None
    assert np.allclose(scores.weighted, (w * error**2).mean((-2, -1)), **close)
    assert np.allclose(scores.weighted_absolute, (w * np.abs(error)).mean((-2, -1)), **close)
    assert np.allclose(scores.bias, (w * error).mean((-2, -1)), rtol=1e-8)
    a, b = prediction - mean, truth - mean
    correlation = (w * a * b).sum((-2, -1)) / np.sqrt((w * a**2).sum((-2, -1)) * (w * b**2).sum((-2, -1)))
    assert scores.correlation is not None
    assert np.allclose(scores.correlation, correlation, **close)
    assert scores.power is not None
    for i, field in enumerate((prediction, truth, error)):
        assert np.allclose(scores.power[i].sum(-1), (field**2).mean((0, -2, -1)), **close)
    std = np.array([2.0, 0.5])
    expected = np.sqrt(((error / std[:, None, None]) ** 2)[:, 1:4].mean())
    assert rmse_normalized(scores.squared, 2, 4, std) == pytest.approx(expected, rel=1e-10)


def test_scores_of_parts_are_joined_in_their_order() -> None:
    prediction, truth, mean = random_fields()
    weights = latitude_weights(LATITUDE)
    rows = np.arange(3, 9)
    points = {"band": RegionPoints(rows, np.arange(32), weights[rows] / weights[rows].mean())}
    measures = Measures(weights, zonal=True, regions=points)
    of_parts = [
        scored(prediction[part], truth[part], measures, mean[part]) for part in (slice(0, 3), slice(3, 6), slice(6, 7))
    ]
    joined, whole = Scores.joined(of_parts), scored(prediction, truth, measures, mean)
    assert joined.filled == joined.regions["band"].filled == 7
    for found, expected in ((joined, whole), (joined.regions["band"], whole.regions["band"])):
        for name in ARRAYS:
            if name != "power":
                assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert joined.power is not None
    assert whole.power is not None
    np.testing.assert_allclose(joined.power, whole.power, rtol=1e-12)
    assert joined.regions["band"].power is None


def test_scores_within_a_mask_are_those_of_its_points_alone() -> None:
    prediction, truth, mean = random_fields(3)
    mask = np.random.default_rng(4).random((2, 16, 32)) > 0.4
    weights = latitude_weights(LATITUDE)
    measures = Measures(weights, mask_CHW=mask)
    scores = scored(prediction, truth, measures, mean)
    assert scores.weighted is not None
    assert scores.correlation is not None
    for c in range(2):  # by hand, from lists of points
        p, t, m = (x[:, :, c, mask[c]] for x in (prediction, truth, mean))
        w = np.broadcast_to(weights[:, None], (16, 32))[mask[c]]
        w = w / w.sum()
        assert np.allclose(scores.squared[:, :, c], ((p - t) ** 2).mean(-1), rtol=1e-10)
        assert np.allclose(scores.absolute[:, :, c], np.abs(p - t).mean(-1), rtol=1e-10)
        assert np.allclose(scores.variance[:, :, :, c], [p.var(-1), t.var(-1)], rtol=1e-10)
        assert np.allclose(scores.weighted[:, :, c], ((p - t) ** 2 * w).sum(-1), rtol=1e-10)
        assert np.allclose(scores.bias[:, :, c], ((p - t) * w).sum(-1), atol=1e-12)
        a, b = p - m, t - m
        correlation = (w * a * b).sum(-1) / np.sqrt((w * a**2).sum(-1) * (w * b**2).sum(-1))
        assert np.allclose(scores.correlation[:, :, c], correlation, rtol=1e-10)
    changed = [np.where(mask, x, value) for x, value in ((prediction, np.nan), (truth, 1e300), (mean, -np.inf))]
    others = scored(changed[0], changed[1], measures, changed[2])
    for name in ("squared", "absolute", "bias", "variance", "weighted", "weighted_absolute", "correlation"):
        assert np.array_equal(getattr(others, name), getattr(scores, name))
    assert np.array_equal(scored(prediction, truth, Measures(mask_CHW=mask)).squared, scores.squared)
    # a region is the mask within it
    rows, columns = np.arange(3, 9), np.array([30, 31, 0, 1, 2])
    points = RegionPoints(rows, columns, weights[rows] / weights[rows].mean())
    in_region = scored(prediction, truth, replace(measures, regions={"r": points}), mean).regions["r"]
    within = np.zeros_like(mask)
    within[:, rows[:, None], columns] = True
    alone = scored(prediction, truth, Measures(weights, mask_CHW=mask & within), mean)
    for name in ("squared", "bias", "variance", "weighted", "correlation"):
        assert np.allclose(getattr(in_region, name), getattr(alone, name), rtol=1e-10, atol=1e-14)


def test_scores_depend_on_neither_batch_size_nor_order() -> None:
    prediction, truth, mean = random_fields(1)
    measures = Measures(latitude_weights(LATITUDE), spectra=True)
    whole = scored(prediction, truth, measures, mean, batch_size=7)
    order = np.random.default_rng(2).permutation(7)
    parts = scored(prediction[order], truth[order], measures, mean[order], batch_size=2)
    for name in ("squared", "absolute", "weighted", "correlation"):
        assert np.allclose(getattr(whole, name)[order], getattr(parts, name), rtol=1e-12)
    assert np.allclose(whole.power, parts.power, rtol=1e-12)


def test_float32_forecasts_are_scored_in_float64() -> None:
    truth = np.full((1, 1, 1, 64, 64), 5e4, dtype=np.float32)
    prediction = truth + np.float32(0.0625)
    assert scored(prediction, truth, Measures()).squared[0, 0, 0] == 0.0625**2


def test_what_is_not_finite_is_an_infinite_error_of_its_step_only() -> None:
    prediction, truth, _ = random_fields()
    prediction[2, 3, 0, 0, 0] = np.nan
    scores = scored(prediction, truth, Measures())
    assert np.isinf(scores.squared[2, 3, 0])
    assert np.isfinite(np.delete(scores.squared.ravel(), np.ravel_multi_index((2, 3, 0), scores.squared.shape))).all()
    assert rmse(scores.squared, 4, 4) == np.inf
    assert np.isfinite(rmse(scores.squared, 1, 3))


def test_skill_horizon_is_where_an_error_passes_the_baseline() -> None:
    model = np.array([0.1, 0.2, 0.5, 0.4])
    assert skill_horizon(model, np.array([0.2, 0.3, 0.5, 0.9])) == 3
    assert skill_horizon(model, np.ones(4)) is None
    assert skill_horizon(np.array([np.inf, 1.0]), np.ones(2)) == 1
    # persistence is better at first, where hardly anything has moved
    assert skill_horizon(np.array([0.2, 0.3, 0.5, 0.7]), np.array([0.1, 0.4, 0.6, 0.6])) == 4
    assert skill_horizon(np.array([0.2, 0.3, 0.5]), np.array([0.1, 0.4, 0.6])) is None


def test_blow_up_and_flatness_are_noticed_with_their_lead_time() -> None:
    truth = np.ones((2, 8, 1))
    grows = np.ones((2, 8, 1))
    grows[:, 6:] = 100
    fades = np.ones((2, 8, 1))
    fades[:, 5:] = 1e-3
    # from step 4, which has lead time 2
    assert instability(np.stack([grows, truth]), 4) == "blows up at lead time 5"
    assert instability(np.stack([fades, truth]), 4) == "goes flat at lead time 4"
    assert instability(np.stack([truth, truth]), 4) is None
    assert instability(np.stack([np.full_like(truth, np.inf), truth]), 4) == "blows up at lead time 2"
