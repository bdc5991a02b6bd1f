"""How much the error of an early epoch tells of the last one, and the error on one field of that on another.

    python -m benchmarks.curves.correlation

Prints Spearman's rank correlation between the validation error of an epoch and of the last epoch, over the same
configurations of the tables `navier-stokes` (train.ema: 0.9) and `navier-stokes-raw` (no averaging). Then between the
smallest validation errors of the same configurations in `navier-stokes` and `turbulence`, with the rank on turbulence
of the best configuration of each architecture on Navier-Stokes vorticity.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as parquet
from scipy.stats import spearmanr

from benchmarks.curves.blackbox import HERE, RECORDED
from mcrnn.config.paths import ARCHITECTURE

EPOCHS = (1, 2, 3, 5, 8, 10, 15, 20, 25)


def smallest_errors(name: str) -> dict[str, float]:
    """Return the smallest validation error of each configuration of a table, the best first, by its values as JSON."""
    rows = [row for row in parquet.read_table(HERE / f"{name}.parquet").to_pylist() if row["seed"] == 0]
    found = {
        json.dumps({path: value for path, value in row.items() if path not in RECORDED}): min(row["validation"])
        for row in rows
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def print_transfer() -> None:
    """Print what the errors on Navier-Stokes vorticity tell of those on the turbulent series."""
    vorticity, turbulence = smallest_errors("navier-stokes"), smallest_errors("turbulence")
    both = [values for values in vorticity if values in turbulence]
    correlation = spearmanr([vorticity[values] for values in both], [turbulence[values] for values in both]).statistic
    print(f"\nrank correlation between navier-stokes and turbulence over {len(both)} configurations: {correlation:.2f}")
    ranks = {values: rank for rank, values in enumerate(turbulence, start=1)}
    seen = set()
    for values, error in vorticity.items():
        architecture = json.loads(values)[ARCHITECTURE]
        if architecture not in seen:
            seen.add(architecture)
            rank = f"rank {ranks[values]} of {len(ranks)}" if values in ranks else "not in the table"
            print(f"best {architecture:14} on navier-stokes: error {error:.3f}; on turbulence {rank}")


def main() -> None:
    """Print a row for each epoch, and what one field tells of another."""
    curves = {}
    for name in ("navier-stokes-raw", "navier-stokes"):
        rows = parquet.read_table(HERE / f"{name}.parquet").to_pylist()
        curves[name] = {row["configuration"]: row["validation"] for row in rows if row["end"] == "finished"}
    both = sorted(curves["navier-stokes-raw"].keys() & curves["navier-stokes"].keys())
    raw, averaged = (np.array([curves[name][number] for number in both]) for name in curves)
    last = np.median(averaged[:, -1] / raw[:, -1])
    print(f"{len(both)} configurations; last error with averaged weights over that without: {last:.3f} (median)")
    print("epoch  not averaged  (smallest so far)  averaged  (smallest so far)  median error: not averaged  averaged")
    for epoch in EPOCHS:
        correlations = [
            spearmanr(early, errors[:, -1]).statistic
            for errors in (raw, averaged)
            for early in (errors[:, epoch - 1], errors[:, :epoch].min(1))
        ]
        medians = [float(np.median(errors[:, epoch - 1])) for errors in (raw, averaged)]
        print(
            f"{epoch:5d}  {correlations[0]:12.2f}  {correlations[1]:17.2f}  {correlations[2]:8.2f}  "
            f"{correlations[3]:17.2f}  {medians[0]:26.3f}  {medians[1]:8.3f}"
        )
    print_transfer()


if __name__ == "__main__":
    main()
