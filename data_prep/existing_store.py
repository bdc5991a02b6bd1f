"""What is there already where a store is to be built: nothing, a store of the same recipe, or something else."""

from __future__ import annotations

import json
from typing import Any

from data_prep.plan import StorePlan
from data_prep.shard_records import record_keys
from mcrnn.data.store_format import APPENDING, BUILD_FOLDER, FORMAT, canonical_json
from mcrnn.errors import UserError
from mcrnn.storage.location import CHECK_PREFIX, Location


def existing_root(location: Location) -> dict[str, Any] | None:
    """Return the root document, or None if there is nothing yet or a build was killed before it wrote the root.

    Raises:
        UserError: there are files that are no store.
    """
    try:
        content = location.read("zarr.json")
    except FileNotFoundError:
        # another build may be checking its access just now, or was killed while it did
        if all(key.startswith((BUILD_FOLDER, CHECK_PREFIX)) or key.endswith(".partial") for key in location.sizes()):
            return None
        try:
            content = location.read("zarr.json")  # a build that began since the first look wrote it before the others
        except FileNotFoundError:
            content = b""
    try:
        document = json.loads(content)
        if document["attributes"]["format"] == FORMAT:
            return document
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"'{location.url}' exists and is not a store of this project; choose another name")


def is_complete(location: Location, plan: StorePlan, overwrite: bool) -> bool:
    """Return whether the store of this plan is there already and is to be kept.

    A build that has ended before any of its shards was done may be replaced by one of another recipe.

    Raises:
        UserError: there is something else, or a store of another recipe that is not to be overwritten.
    """
    root = existing_root(location)
    if root is None or overwrite:
        return False
    if not is_same_recipe(root, plan) and _has_no_shard(location, root):
        return False
    _check_same_recipe(location, plan, root["attributes"])
    if root["attributes"]["status"] == "complete":
        return True
    if root["attributes"]["status"] == APPENDING:
        raise UserError(f"appending to '{location.url}' was interrupted: run the command that appends again")
    sizes = sizes_of_objects(plan)
    if any(root["attributes"].get(name, size) != size for name, size in sizes.items()):
        raise UserError(
            f"'{location.url}' was begun by another version of mcrnn, which cuts arrays into objects of another size: "
            "finish it with that version, or --overwrite to build it anew"
        )
    return False


def is_same_recipe(root: dict[str, Any], plan: StorePlan) -> bool:
    """Return whether a store was made with the parameters of a plan."""
    old, new = _recipes(root["attributes"], plan)
    return old == new


def _recipes(attributes: dict[str, Any], plan: StorePlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recipes of a store and of a plan, without the roles of dimensions where the store is older than these.

    Of an older store, the names of its dimensions are compared.
    """
    old, new = attributes["recipe"], json.loads(canonical_json(plan.recipe))
    return old, {key: value for key, value in new.items() if key != "roles" or key in old}


def _has_no_shard(location: Location, root: dict[str, Any]) -> bool:
    if root["attributes"]["status"] != "building":
        return False
    keys = location.child(BUILD_FOLDER).sizes()
    return not record_keys({f"{BUILD_FOLDER}/{key}": size for key, size in keys.items()})


def _check_same_recipe(location: Location, plan: StorePlan, attributes: dict[str, Any]) -> None:
    """Refuse to continue or reuse a store that was made in another way.

    Raises:
        UserError: the recipes differ; the message names each difference.
    """
    old, new = _recipes(attributes, plan)
    different = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if different:
        named = "; ".join(f"{k} is {old.get(k, 'not set')}, not {new.get(k, 'not set')}" for k in different)
        raise UserError(
            f"'{location.url}' was made with other parameters: {named}. "
            "Choose another name, or --overwrite to replace it"
        )


def sizes_of_objects(plan: StorePlan) -> dict[str, int]:
    """Return how a store is cut into objects. Those that are done are of no use to a build that cuts it otherwise."""
    return {"shards": len(list(plan.shards())), "shard": plan.shard, "chunk": plan.chunk}
