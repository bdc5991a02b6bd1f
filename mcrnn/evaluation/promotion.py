"""Promotion: a candidate replaces the champion only where it is better beyond doubt.

Both are evaluated on the same windows of the test split of the same store; `mcrnn.evaluation.comparison` says how they
are compared. Each comparison is recorded, also where it moves nothing; see `mcrnn.tracking.tries`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError, did_you_mean
from mcrnn.evaluation.basis import WHOLE, Basis, quantity
from mcrnn.evaluation.comparison import Comparison, Outcome, compare
from mcrnn.evaluation.compatibility import DataIdentity, check_same_data, check_store
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.kept_scores import SCORES
from mcrnn.evaluation.parts import PartScorer, score_here
from mcrnn.evaluation.result import score_model
from mcrnn.storage.root import Storage
from mcrnn.tracking import model_loading, registry, tries
from mcrnn.tracking.mlflow_client import all_pages, client_of, quiet_mlflow, reachable, summarize_error, tracking_uri
from mcrnn.tracking.provenance import origin
from mcrnn.tracking.registry import CANDIDATE, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RECORDED = ("starts", "channel_weights", "region", "channels", "lead_times")
"""What a comparison is about, as far as it is recorded with the change of the champion."""


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


def compare_versions(
    storage: Storage,
    client: MlflowClient,
    name: str,
    candidate: int,
    champion: int,
    *,
    starts: str | None = None,
    basis: Basis = WHOLE,
    margin: float = 0.0,
    score_parts: PartScorer = score_here,
) -> Comparison:
    """Compare the errors of two versions on the windows of the champion's validation, in the test split.

    Channels have the weights of the champion's validation.

    Where frames were appended to the store between the two trainings, the split is that of now.

    Args:
        storage: the storage root.
        client: client of the registry, where the comparison is numbered and recorded.
        name: name of the registered model.
        candidate: version of the candidate.
        champion: version of the champion.
        starts: where windows of a series start; see `EvaluationSet.of`.
        basis: the region, channels and lead times whose errors are compared.
        margin: share by which the candidate's error must be smaller.
        score_parts: scores the windows, in this process or on workers.

    Raises:
        UserError: they were trained on different data, or their store cannot be used; the message gives all reasons.
            Or the basis does not fit.
    """
    new, old = (model_loading.load_model(f"models:/{name}/{version}", storage) for version in (candidate, champion))
    store = FieldStore.open(storage.location(old.config.data.store))
    if new.field.store_digest == old.field.store_digest:
        store = store.as_of(old.field.store_digest)
    check_same_data(
        DataIdentity.of_training(new).as_part_of(store),
        DataIdentity.of_training(old).as_part_of(store),
        "the candidate cannot be compared with the champion",
        "With a reason, --version and --alias champion move it by hand",
    )
    check_store(old, store, f"models:/{name}/{champion}")
    shape = old.config.validation
    basis.check_lead_times(shape.horizon)
    channels = basis.channel_indices(old.field.channels[: old.network.channels_out])
    evaluation_set = EvaluationSet.of(
        store,
        old.config.data,
        warm_up=shape.warm_up,
        horizon=shape.horizon,
        starts=starts,
        regions=basis.regions,
        predicted=old.network.channels_out,
        elsewhere=storage.location(SCORES),
    )
    asked = {
        "store_digest": store.digest,
        "candidate": candidate,
        "champion": champion,
        "starts": evaluation_set.starts,
        "margin": margin,
        **({"channel_weights": shape.channel_weights} if shape.channel_weights else {}),
        **basis.recorded,
    }
    key, number = tries.number_try(client, name, asked)
    scales = np.array(
        shape.error_scales([old.field.channels[i] for i in channels], [old.field.std[i] for i in channels])
    )
    cache = storage.location(SCORES)
    scores = [
        score_model(
            model,
            store,
            evaluation_set,
            shape,
            cache=cache,
            score_parts=score_parts,
            title=f"{name}, version {version}",
        ).scores
        for model, version in ((new, candidate), (old, champion))
    ]
    candidate_N, champion_N = (basis.error_by_window(each, shape.warm_up - 1, channels, scales) for each in scores)
    comparison = replace(
        compare(candidate_N, champion_N, evaluation_set.overlap, number, margin),
        quantity=quantity(scores[0], basis, shape),
        basis={key: value for key, value in asked.items() if key in RECORDED},
    )
    tries.note_outcome(client, name, key, asked, comparison.figures)
    return comparison


def promote(
    storage: Storage,
    client: MlflowClient,
    name: str,
    candidate: int,
    *,
    starts: str | None = None,
    basis: Basis = WHOLE,
    margin: float = 0.0,
    score_parts: PartScorer = score_here,
) -> tuple[Outcome, list[str]]:
    """Compare a candidate with the champion, and make it the champion if it is better.

    Args:
        storage: the storage root.
        client: client of the registry.
        name: name of the registered model.
        candidate: version of the candidate.
        starts: where windows of a series start; see `EvaluationSet.of`.
        basis: the region, channels and lead times whose errors are compared.
        margin: share by which the candidate's error must be smaller.
        score_parts: scores the windows, in this process or on workers.

    Returns:
        The answer; `BETTER` where the candidate is the champion now. And the comparison, or the reason, in words.

    Raises:
        UserError: they cannot be compared.
    """
    while True:
        champion = registry.champion(client, name)
        if champion == candidate:
            return Outcome.BETTER, [f"version {candidate} is the champion already"]
        comparison = None
        if champion is not None:
            comparison = compare_versions(
                storage,
                client,
                name,
                candidate,
                champion,
                starts=starts,
                basis=basis,
                margin=margin,
                score_parts=score_parts,
            )
            if comparison.outcome is Outcome.NOT_ENOUGH_EVIDENCE:
                return comparison.outcome, [str(comparison), comparison.advice]
            if comparison.outcome is Outcome.NOT_BETTER:
                return comparison.outcome, [str(comparison)]
        why = f"better than version {champion} in the test{basis}" if comparison else "there was no champion"
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
            return Outcome.BETTER, [str(comparison or why)]


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
