"""The record of all candidates that were compared with a champion on a test split.

Whoever compares many candidates on the same windows will find one that is better by chance. So each comparison is
numbered, over all registered models whose store has the same digest, and the later ones have to be clearer; see
`mcrnn.evaluation.comparison`. A comparison is a tag of the registered model. The same comparison, made again, keeps its
number: its windows and its answer are the same.
"""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

from mcrnn.tracking.mlflow_client import all_pages
from mcrnn.tracking.registry import alias_lock, champion_history

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TRY_TAG = "mcrnn.try."
"""Start of the names of the tags that record comparisons; the time of the comparison follows."""


def number_try(client: MlflowClient, name: str, asked: dict[str, Any]) -> tuple[str, int]:
    """Record that a candidate is about to be compared with the champion.

    It is recorded before the errors are known, so that a comparison that is interrupted counts too.

    Args:
        client: client of the registry.
        name: name of the registered model.
        asked: all that the answer depends on, with the store's digest as `store_digest`.

    Returns:
        The key under which `note_outcome` adds the answer, and the number of the comparison on this store, from 1.
    """
    with alias_lock(client, f"comparisons-{asked['store_digest'][:16]}"):
        found = _tries(client, asked["store_digest"])
        for number, (key, record) in enumerate(found, start=1):
            if record["name"] == name and record["asked"] == asked:
                return key, number + _earlier(client, name)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        client.set_registered_model_tag(name, TRY_TAG + now, json.dumps({"name": name, "asked": asked}))
        return TRY_TAG + now, len(found) + 1 + _earlier(client, name)


def note_outcome(client: MlflowClient, name: str, key: str, asked: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Add the answer to the record of a comparison."""
    client.set_registered_model_tag(name, key, json.dumps({"name": name, "asked": asked, "outcome": outcome}))


def _tries(client: MlflowClient, store_digest: str) -> list[tuple[str, dict[str, Any]]]:
    """Return key and record of all comparisons on a store, of any registered model, in the order of their times."""
    found = []
    for model in all_pages(client.search_registered_models):
        for key, value in model.tags.items():
            if key.startswith(TRY_TAG) and (record := json.loads(value))["asked"]["store_digest"] == store_digest:
                found.append((key, record))
    return sorted(found, key=lambda pair: pair[0])


def _earlier(client: MlflowClient, name: str) -> int:
    """Return how many promotions were recorded with errors before comparisons were numbered."""
    return sum("rmse_candidate" in move and "tried" not in move for move in champion_history(client, name))
