"""The learning curve of any configuration of a space, as a forest predicts it from a table of recorded ones.

The forest (extremely randomised trees, Geurts et al. 2006) is fitted to the logarithms of recorded curves. It stands
for the landscape in which searches are compared, and its own smallest error for the best that a search can find: the
errors of a forest are means, which do not come down to that of the best recorded configuration. Of what was tried it
predicts configurations best that are left out of its fit; adding what it misses at the nearest recorded configuration,
and Gaussian processes, predict them worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import KFold

from mcrnn.config.paths import Values
from mcrnn.training.session import PENALTY

HERE = Path(__file__).parent
RECORDED = ("configuration", "seed", "end", "validation", "test", "seconds")
"""Columns of a table that are not values of the configuration."""
CHOICES = {
    "model.architecture": ["convgru", "convlstm", "minconvgru", "minconvlstm", "minconvexplstm"],
    "model.prediction": ["frame", "increment"],
}
"""Values of the fields that are not numbers."""
DIVERGES_ABOVE = 5.0
"""Error, in standard deviations, from which on a curve counts as that of a training that diverged."""


@dataclass(frozen=True)
class Curve:
    """The learning curve of one configuration; arrays over epochs."""

    validation: np.ndarray
    """Closed-loop validation RMSE in standard deviations; `PENALTY` from the epoch on in which training diverged."""
    test: np.ndarray
    """The same on the test split."""
    seconds: np.ndarray
    """Processor seconds of each epoch."""

    @property
    def diverged_at(self) -> int | None:
        """The epoch in which the training diverged, from 1; None if it did not."""
        above = np.flatnonzero(self.validation >= DIVERGES_ABOVE)
        return int(above[0]) + 1 if len(above) else None


class Blackbox:
    """Answers with the curve of any configuration.

    Args:
        rows: rows of a table that `benchmarks.curves.record` has written.
    """

    def __init__(self, rows: list[dict]) -> None:
        self.rows = [row for row in rows if row["seed"] == 0]
        self.paths = [path for path in self.rows[0] if path not in RECORDED]
        self.epochs = max(len(row["validation"]) for row in self.rows)
        self.choices = {path: CHOICES[path] for path in self.paths if path in CHOICES}
        self.curves = [self._curve(row) for row in self.rows]
        self.features = np.array([self._features(row) for row in self.rows])
        self.targets = np.log(
            np.array([np.concatenate([c.validation, c.test, [c.seconds.mean()]]) for c in self.curves])
        )
        self._known: dict[tuple, Curve] = {}

    @classmethod
    def load(cls, name: str) -> Blackbox:
        """Load the table of a field, such as `navier-stokes`."""
        return cls(parquet.read_table(HERE / f"{name}.parquet").to_pylist())

    def best_of(self, configurations: list[Values]) -> float:
        """Return the smallest validation error at any epoch that is predicted for some configurations."""
        predicted = self.forest.predict(np.array([self._features(values) for values in configurations]))
        return float(np.exp(predicted[:, : self.epochs].min()))

    @cached_property
    def forest(self) -> ExtraTreesRegressor:
        """The forest, fitted to the logarithms of the curves."""
        return self._new_forest().fit(self.features, self.targets)

    def curve(self, values: Values) -> Curve:
        """Return the curve that is predicted for a configuration.

        Args:
            values: value of each searched field by its dotted path.
        """
        key = self._key(values)
        if key not in self._known:
            self._known[key] = self._from_logarithms(self._predict(self._features(values)))
        return self._known[key]

    def _predict(self, features: list[float]) -> np.ndarray:
        """Return the prediction of the forest, for which its own method takes twenty times as long."""
        row = np.array([features], dtype=np.float32)
        trees = [tree.tree_ for tree in self.forest.estimators_]
        return np.mean([tree.value[tree.apply(row)[0], :, 0] for tree in trees], axis=0)

    def accuracy(self) -> str:
        """Say how well the forest predicts the configurations that are left out of its fit, in ten folds."""
        folds = KFold(10, shuffle=True, random_state=0)
        predicted = np.empty_like(self.targets)
        for fitted, left_out in folds.split(self.rows):
            other = Blackbox([self.rows[index] for index in fitted])
            for index in left_out:
                predicted[index] = other._predict(list(self.features[index]))
        last = self.epochs - 1
        rank = spearmanr(predicted[:, last], self.targets[:, last]).statistic
        off = np.median(np.abs(np.expm1(predicted[:, last] - self.targets[:, last])))
        time_off = np.median(np.abs(np.expm1(predicted[:, -1] - self.targets[:, -1])))
        return (
            f"left-out configurations: rank correlation of the last error {rank:.2f}, median deviation of the error "
            f"{off:.0%}, of the time {time_off:.0%}"
        )

    def _new_forest(self) -> ExtraTreesRegressor:
        return ExtraTreesRegressor(100, max_features=0.6, min_samples_leaf=3, random_state=0, n_jobs=1)

    def _curve(self, row: dict) -> Curve:
        validation = np.full(self.epochs, PENALTY)
        test, seconds = validation.copy(), np.full(self.epochs, np.mean(row["seconds"]))
        recorded = np.nan_to_num(np.array(row["validation"]), nan=PENALTY)
        validation[: len(recorded)] = recorded
        test[: len(recorded)] = np.nan_to_num(np.array(row["test"]), nan=PENALTY)
        seconds[: len(row["seconds"])] = row["seconds"]
        return Curve(validation, test, seconds)

    def _from_logarithms(self, target: np.ndarray) -> Curve:
        validation, test = np.exp(target[: self.epochs]), np.exp(target[self.epochs : 2 * self.epochs])
        return Curve(validation, test, np.full(self.epochs, np.exp(target[-1])))

    def _features(self, values: Values) -> list[float]:
        numbers: list[float] = []
        for path in self.paths:
            if path in self.choices:
                numbers += [float(values[path] == choice) for choice in self.choices[path]]
            else:
                numbers.append(float(np.log(values[path] + 1e-6)) if path != "model.layers" else float(values[path]))
        steps, length = values["train.teacher_forcing_steps"], values["data.sequence_length"]
        return [*numbers, length - steps]

    def _key(self, values: Values) -> tuple:
        return tuple(values[path] for path in self.paths)
