"""How much the error of an early epoch tells of the last one, with and without averaged weights.

    python -m benchmarks.curves.correlation

Prints Spearman's rank correlation between the validation error of an epoch and of the last epoch, over the same
configurations of the tables `navier-stokes` (train.ema: 0.9) and `navier-stokes-raw` (no averaging).
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as parquet
from scipy.stats import spearmanr

from benchmarks.curves.blackbox import HERE

EPOCHS = (1, 2, 3, 5, 8, 10, 15, 20, 25)


def main() -> None:
    """Print a row for each epoch."""
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


if __name__ == "__main__":
    main()
