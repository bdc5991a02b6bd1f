"""How often the "95 %" interval holds the true error, and how often a candidate is promoted that is not better.

    python -m benchmarks.intervals [--draws 400] [--years 1]

Simulation with a known truth: 20 independent modes of red noise that decorrelate in three days, sampled every 6 hours,
and forecasts of ten days. Persistence has the expected squared error 2 (1 - r^l) at lead time l, where r is the
autocorrelation from frame to frame. First, the share of draws in which the interval of the RMSE holds the true value,
for each rule by which windows start, beside resampling single windows as if they were independent draws. Then, the
share of draws in which any of ten candidates is promoted one after the other, and in which the first is, although all
are exactly as good as the champion: each forecasts another half of the modes by persistence and the others by r^l times
the last frame. Independent samples, as of generated fields, have one window each of the same forecasts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import cftime
import numpy as np
import torch
from scipy.signal import lfilter

from mcrnn.evaluation.comparison import Outcome, compare
from mcrnn.evaluation.starts import biweekly_starts, overlap_of
from mcrnn.evaluation.uncertainty import rmse_interval

FRAMES_A_DAY, DECORRELATION_DAYS, MODES = 4, 3.0, 20
WARM_UP, HORIZON = 1, 40
CANDIDATES = 10
AUTOCORRELATION = math.exp(-1 / (FRAMES_A_DAY * DECORRELATION_DAYS))
LEADS = np.arange(2, HORIZON + 2)
"""Lead times of the closed-loop steps."""


def starts_of(rule: str, frames: int) -> np.ndarray:
    """Return the first frames of the windows of a rule."""
    last_start = frames - (WARM_UP + HORIZON) - 1
    if rule == "biweekly":
        dates = cftime.num2date(np.arange(frames) / FRAMES_A_DAY, "days since 2001-01-01")
        return biweekly_starts(list(dates), WARM_UP, range(last_start + 1))
    every = {"apart": WARM_UP + HORIZON + 1, "daily": FRAMES_A_DAY, "all": 1}[rule]
    return np.arange(0, last_start + 1, every)


def red_noise(rng: np.random.Generator, samples: int, frames: int) -> np.ndarray:
    """Return modes of red noise with variance 1, (samples, frames, modes)."""
    noise = rng.normal(size=(samples, frames, MODES)) * math.sqrt(1 - AUTOCORRELATION**2)
    noise[:, 0] /= math.sqrt(1 - AUTOCORRELATION**2)
    return lfilter([1.0], [1.0, -AUTOCORRELATION], noise, axis=1)


def errors_of(series_TM: np.ndarray, starts_N: np.ndarray) -> np.ndarray:
    """Return the mean squared error of each window and mode, of persistence and of the damped forecast, (2, N, M)."""
    persistence_NM = np.zeros((len(starts_N), MODES))
    damped_NM = np.zeros_like(persistence_NM)
    last_NM = series_TM[starts_N]
    for lead in LEADS:
        truth_NM = series_TM[starts_N + lead]
        persistence_NM += (truth_NM - last_NM) ** 2
        damped_NM += (truth_NM - AUTOCORRELATION**lead * last_NM) ** 2
    return np.stack([persistence_NM, damped_NM]) / len(LEADS)


def draw(rng: np.random.Generator, rule: str, years: float) -> tuple[np.ndarray, float | None]:
    """Return the errors of the windows of one simulated test split, and how many of them overlap."""
    if rule == "samples":
        series_NTM = red_noise(rng, 100, HORIZON + WARM_UP + 1)
        return np.concatenate([errors_of(series_TM, np.array([0])) for series_TM in series_NTM], axis=1), None
    frames = round(365.25 * years * FRAMES_A_DAY)
    starts_N = starts_of(rule, frames)
    windows = torch.zeros(len(starts_N), dtype=torch.int64), torch.from_numpy(starts_N)
    return errors_of(red_noise(rng, 1, frames)[0], starts_N), overlap_of(windows, WARM_UP + HORIZON)


def models_of(rng: np.random.Generator, errors_2NM: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the errors of models that are equally good: each forecasts another half of the modes by persistence."""
    while True:
        chosen_M = rng.permutation(MODES) < MODES // 2
        yield np.where(chosen_M, errors_2NM[0], errors_2NM[1]).mean(1)


def covered(interval: tuple[float, float] | None, truth: float) -> bool:
    """Say whether an interval holds a value; no interval holds any."""
    return interval is None or interval[0] <= truth <= interval[1]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--years", type=float, default=1.0, help="length of the test split")
    options = parser.parse_args()
    truth = math.sqrt((2 * (1 - AUTOCORRELATION**LEADS)).mean())
    print(f"{options.draws} draws of a test split of {options.years:g} years of 6-hourly frames, {HORIZON} steps")
    for rule in ("samples", "apart", "biweekly", "daily", "all"):
        rng = np.random.default_rng(0)
        inside = naive = first_promoted = ever_promoted = 0
        windows, overlap = 0, None
        for _ in range(options.draws):
            errors_2NM, overlap = draw(rng, rule, options.years)
            windows = errors_2NM.shape[1]
            inside += covered(rmse_interval(errors_2NM[0].mean(1), overlap), truth)
            naive += covered(rmse_interval(errors_2NM[0].mean(1), None), truth)
            models = models_of(rng, errors_2NM)
            champion_N = next(models)
            won = [
                compare(next(models), champion_N, overlap, number).outcome is Outcome.BETTER
                for number in range(1, CANDIDATES + 1)
            ]
            first_promoted += won[0]
            ever_promoted += any(won)
        shares = [100 * count / options.draws for count in (inside, naive, first_promoted, ever_promoted)]
        shared = "independent" if overlap is None else f"{overlap:.1f} share a frame"
        print(
            f"{rule:9s} {windows:5d} windows, {shared:19s}: the 95 % interval holds the error in {shares[0]:.1f} % "
            f"(windows taken for independent: {shares[1]:.1f} %); promoted although equal: the first "
            f"{shares[2]:.1f} %, any of ten {shares[3]:.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
