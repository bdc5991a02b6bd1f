"""Promotion: a candidate replaces the champion only where it is better beyond doubt.

Both are evaluated on the same windows of the test split of the same store. A paired bootstrap (Efron and Tibshirani
1993) resamples the windows with replacement: the candidate wins if its error is smaller in 97.5 % of the resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError, did_you_mean
from mcrnn.evaluation.compatibility import DataIdentity, check_same_data, check_store
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.scoring import score
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.root import Storage
from mcrnn.tracking import model_loading, registry
from mcrnn.tracking.mlflow_client import all_pages, client_of, quiet_mlflow, reachable, summarize_error, tracking_uri
from mcrnn.tracking.provenance import origin
from mcrnn.tracking.registry import CANDIDATE, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DRAWS = 10_000
"""Resamples of the bootstrap."""
CONFIDENCE = 0.975
"""Share of the resamples in which the candidate's error must be smaller."""


@dataclass(frozen=True)
class Comparison:
    """Closed-loop errors of a candidate and a champion on the same windows.

    Attributes:
        candidate: RMSE of the candidate over the training split's standard deviation.
        champion: the same of the champion.
        low: lower bound of the relative change of the error, candidate / champion - 1, in 95 % of the resamples.
        high: upper bound of the relative change.
        windows: number of windows.
    """

    candidate: float
    champion: float
    low: float
    high: float
    windows: int

    def wins(self, margin: float) -> bool:
        """Say whether the error of the candidate is smaller by more than a share `margin`, beyond the spread."""
        return self.high < -margin

    @property
    def figures(self) -> dict[str, Any]:
        """The comparison as it is recorded with the promotion."""
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
    """Compare the errors of two models by a paired bootstrap over windows.

    Args:
        candidate_N: mean squared error of the candidate in each window.
        champion_N: mean squared error of the champion in the same windows.
        seed: seed of the resampling.
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
    """Return a client of the model registry that has a model of this name.

    Raises:
        UserError: the registry cannot be reached, or has no such model.
    """
    quiet_mlflow()
    with reachable(tracking_uri(storage)):
        client = client_of(tracking_uri(storage))
        names = [model.name for model in all_pages(client.search_registered_models)]
    if name not in names:
        known = did_you_mean(name, names) if names else "; the registry is empty"
        raise UserError(f"there is no model '{name}' in the registry{known}")
    return client


def candidate_of(client: MlflowClient, name: str, version: int | None) -> int | None:
    """Return the version that is to be compared with the champion.

    Args:
        client: client of the registry.
        name: name of the registered model.
        version: the version asked for; by default that of the alias `candidate`, else the newest.

    Returns:
        The version; None where it is the champion already, unless it was asked for.

    Raises:
        UserError: there is no such version, or none at all.
    """
    known = sorted(int(v.version) for v in all_pages(client.search_model_versions, f"name = '{name}'"))
    if not known:
        raise UserError(f"the model '{name}' has no version yet: a search registers its best model as the first one")
    if version is not None:
        if version not in known:
            raise UserError(f"'{name}' has no version {version}; it has {', '.join(map(str, known))}")
        return version
    aliases = registry.aliases(client, name)
    newest = aliases.get(CANDIDATE, known[-1])
    return None if newest == aliases.get(CHAMPION) else newest


def compare_versions(storage: Storage, name: str, candidate: int, champion: int) -> Comparison:
    """Compare the closed-loop errors of two versions on the windows of the champion's validation, in the test split.

    Raises:
        UserError: they were trained on different data, or their store cannot be used; the message gives all reasons.
    """
    new, old = (model_loading.load_model(f"models:/{name}/{version}", storage) for version in (candidate, champion))
    check_same_data(
        DataIdentity.of_training(new),
        DataIdentity.of_training(old),
        "the candidate cannot be compared with the champion",
        "With a reason, --version and --alias champion move it by hand",
    )
    store = FieldStore.open(storage.location(old.config.data.store))
    check_store(old, store, f"models:/{name}/{champion}")
    asked = old.config.validation
    evaluation_set = EvaluationSet.of(store, old.config.data, warm_up=asked.warm_up, horizon=asked.horizon)
    std = np.array(old.field.std[: old.network.channels_out])
    return compare(_error_by_window(new, evaluation_set, std), _error_by_window(old, evaluation_set, std))


def _error_by_window(model: TrainedModel, evaluation_set: EvaluationSet, std: np.ndarray) -> np.ndarray:
    """Return the normalised mean squared closed-loop error of each window, finite so that errors have a ratio."""
    squared_NTC = score(model, evaluation_set)[0].squared[:, evaluation_set.warm_up :] / std**2
    return np.nan_to_num(squared_NTC.mean((1, 2)), posinf=1e30)


def promote(storage: Storage, client: MlflowClient, name: str, candidate: int, margin: float) -> tuple[bool, str]:
    """Compare a candidate with the champion, and make it the champion if it wins.

    Args:
        storage: the storage root.
        client: client of the registry.
        name: name of the registered model.
        candidate: version of the candidate.
        margin: share by which the candidate's error must be smaller beyond the spread.

    Returns:
        Whether the candidate is the champion now, and the comparison or the reason in words.

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
                continue  # another process has promoted meanwhile: compare with its champion
            registry.set_champion(
                client,
                name,
                version=candidate,
                before=champion,
                reason=why,
                origin=origin(),
                comparison=comparison.figures if comparison else None,
            )
            return True, str(comparison or why)


def move_by_hand(client: MlflowClient, name: str, version: int, alias: str, reason: str) -> None:
    """Point an alias to a version without comparing errors; a move of the champion is recorded with its reason.

    Raises:
        UserError: MLflow does not allow the alias.
    """
    from mlflow.exceptions import MlflowException

    with registry.alias_lock(client, name):
        if alias == CHAMPION:
            before = registry.champion(client, name)
            if before != version:
                registry.set_champion(client, name, version=version, before=before, reason=reason, origin=origin())
        else:
            try:
                client.set_registered_model_alias(name, alias, str(version))
            except MlflowException as error:
                raise UserError(f"--alias {alias} cannot be used: {summarize_error(str(error))}") from None


def roll_back(client: MlflowClient, name: str, reason: str) -> tuple[int, int]:
    """Make the previous champion the champion again; done twice, it leaves things as they were.

    Returns:
        The version in use now, and the one that was in use.

    Raises:
        UserError: there was no champion before.
    """
    with registry.alias_lock(client, name):
        aliases = registry.aliases(client, name)
        if PREVIOUS not in aliases or CHAMPION not in aliases:
            raise UserError(f"'{name}' has no previous champion to go back to")
        now, before = aliases[PREVIOUS], aliases[CHAMPION]
        registry.set_champion(client, name, version=now, before=before, reason=reason, origin=origin())
    return now, before
