"""Which version is in use: the candidate replaces the champion only where it is better beyond doubt.

Both are judged on the same windows of the test split of the same store. Windows are drawn anew with replacement
(paired bootstrap, Efron and Tibshirani 1993): the candidate wins if its error is smaller in 97.5 % of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError, did_you_mean
from mcrnn.evaluation.compatibility import check_store
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.scoring import score
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.root import Storage
from mcrnn.tracking import model_loading, registry
from mcrnn.tracking.mlflow_client import client_of, quiet_mlflow, reachable, short, tracking_uri
from mcrnn.tracking.provenance import origin
from mcrnn.tracking.registry import CANDIDATE, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DRAWS = 10_000
CONFIDENCE = 0.975


@dataclass(frozen=True)
class Comparison:
    """Closed-loop errors of a candidate and a champion on the same windows, over the standard deviation."""

    candidate: float
    champion: float
    low: float
    high: float
    """bounds of candidate over champion, minus 1, that 95 % of the draws keep"""
    windows: int

    def wins(self, margin: float) -> bool:
        """Whether the candidate is better by more than a margin and the spread."""
        return self.high < -margin

    @property
    def figures(self) -> dict[str, Any]:
        """For the record."""
        return {
            "rmse_candidate": self.candidate,
            "rmse_champion": self.champion,
            "change": [self.low, self.high],
            "windows": self.windows,
        }

    def __str__(self) -> str:
        change = 100 * (self.candidate / self.champion - 1)
        return (
            f"candidate {self.candidate:.4f}, champion {self.champion:.4f}: {change:+.1f} % "
            f"(95 % of the draws: {100 * self.low:+.1f} to {100 * self.high:+.1f} %; {self.windows} windows)"
        )


def compare(candidate_N: np.ndarray, champion_N: np.ndarray, seed: int = 0) -> Comparison:
    """Compare squared errors, window by window, in draws of windows.

    Args:
        candidate_N: mean squared error of each window.
        champion_N: the same of the champion.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    count = len(candidate_N)
    ratios = np.empty(DRAWS)
    for i in range(DRAWS):
        picked = rng.integers(0, count, count)
        ratios[i] = np.sqrt(candidate_N[picked].mean() / champion_N[picked].mean())
    low, high = np.quantile(ratios, [1 - CONFIDENCE, CONFIDENCE]) - 1
    return Comparison(
        float(np.sqrt(candidate_N.mean())), float(np.sqrt(champion_N.mean())), float(low), float(high), count
    )


def open_registry(storage: Storage, name: str) -> MlflowClient:
    """The registry, where it has such a model.

    Raises:
        UserError: it cannot be reached, or has none.
    """
    quiet_mlflow()
    with reachable(tracking_uri(storage)):
        client = client_of(tracking_uri(storage))
        names = [model.name for model in client.search_registered_models()]
    if name not in names:
        known = did_you_mean(name, names) if names else "; the registry is empty"
        raise UserError(f"there is no model '{name}' in the registry{known}")
    return client


def candidate_of(client: MlflowClient, name: str, version: int | None) -> int | None:
    """The version that is to be judged, None where the newest is the champion already.

    Raises:
        UserError: there is no such version.
    """
    known = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    if version is not None:
        if version not in known:
            raise UserError(f"'{name}' has no version {version}; it has {', '.join(map(str, known))}")
        return version
    aliases = registry.aliases(client, name)
    newest = aliases.get(CANDIDATE, known[-1])
    return None if newest == aliases.get(CHAMPION) else newest


def compare_versions(storage: Storage, name: str, candidate: int, champion: int) -> Comparison:
    """Judge two versions on the same windows.

    Raises:
        UserError: they are not of the same data, or their store cannot be used; says all reasons.
    """
    models = [model_loading.load_model(f"models:/{name}/{version}", storage) for version in (candidate, champion)]
    _check_comparable(*models)
    old = models[1]
    store = FieldStore.open(storage.location(old.config.data.store))
    check_store(old, store, f"models:/{name}/{champion}")
    own = old.config.validation
    evaluation_set = EvaluationSet.of(store, old.config.data, warm_up=own.warm_up, horizon=own.horizon)
    std = np.array(old.field.std[: old.network.channels_out])
    by_window = []
    for model in models:
        squared_NTC = score(model, evaluation_set)[0].squared[:, evaluation_set.warm_up :] / std**2
        by_window.append(np.nan_to_num(squared_NTC.mean((1, 2)), posinf=1e30))
    return compare(*by_window)


def _check_comparable(new: TrainedModel, old: TrainedModel) -> None:
    def coarse(model: TrainedModel) -> str:
        return " x ".join(map(str, model.field.frame_shape[1:]))

    differences = [
        f"{what} {a} instead of {b}"
        for what, a, b in (
            ("a store with digest", new.field.store_digest[:12], old.field.store_digest[:12]),
            ("units", new.field.units, old.field.units),
            ("channels", ", ".join(new.field.channels), ", ".join(old.field.channels)),
            ("a grid of", coarse(new), coarse(old)),
            ("predicted channels", new.network.channels_out, old.network.channels_out),
        )
        if a != b
    ]
    if differences:
        raise UserError(
            f"the candidate cannot be judged beside the champion: it has {'; '.join(differences)}. With a reason, "
            "--version and --alias champion move it by hand"
        )


def promote(storage: Storage, client: MlflowClient, name: str, candidate: int, margin: float) -> tuple[bool, str]:
    """Judge a candidate beside the champion, and make it the champion if it wins.

    Returns:
        Whether it is the champion now, and the figures.

    Raises:
        UserError: they cannot be compared.
    """
    while True:
        champion = registry.champion(client, name)
        if champion == candidate:
            return True, f"version {candidate} is the champion already"
        comparison = compare_versions(storage, name, candidate, champion) if champion is not None else None
        if comparison is not None and not comparison.wins(margin):
            return False, str(comparison)
        why = f"better than version {champion} in the test" if comparison else "there was no champion"
        with registry.alias_lock(client, name):
            if registry.champion(client, name) != champion:
                continue  # somebody was faster; their champion is the one to beat
            registry.set_champion(
                client,
                name,
                to=candidate,
                before=champion,
                why=why,
                origin=origin(),
                figures=comparison.figures if comparison else None,
            )
            return True, str(comparison or why)


def move_by_hand(client: MlflowClient, name: str, version: int, alias: str, reason: str) -> None:
    """Point an alias to a version, whatever their errors; of the champion it is recorded as a move."""
    from mlflow.exceptions import MlflowException

    with registry.alias_lock(client, name):
        if alias == CHAMPION:
            before = registry.champion(client, name)
            if before != version:
                registry.set_champion(client, name, to=version, before=before, why=reason, origin=origin())
        else:
            try:
                client.set_registered_model_alias(name, alias, str(version))
            except MlflowException as error:
                raise UserError(f"--alias {alias} cannot be used: {short(str(error))}") from None


def roll_back(client: MlflowClient, name: str, reason: str) -> tuple[int, int]:
    """Make the previous champion the champion again; the same once more takes that back.

    Returns:
        The version in use now, and the one that was.

    Raises:
        UserError: there was no champion before.
    """
    with registry.alias_lock(client, name):
        aliases = registry.aliases(client, name)
        if PREVIOUS not in aliases or CHAMPION not in aliases:
            raise UserError(f"'{name}' has no previous champion to go back to")
        now, before = aliases[PREVIOUS], aliases[CHAMPION]
        registry.set_champion(client, name, to=now, before=before, why=reason, origin=origin())
    return now, before
