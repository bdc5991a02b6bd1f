"""What the recipe of a store says of its sources, by which later ones are read in the same way."""

from __future__ import annotations

from typing import Any

from data_prep.channels import parse_variable
from data_prep.dimensions import ROLES, recognise
from data_prep.file_content import has_variable
from data_prep.sources import open_source
from mcrnn.data.groups import split_group
from mcrnn.data.store import FieldStore


def dimensions_of(store: FieldStore, urls: list[str]) -> dict[str, str | None]:
    """Return the dimensions by the names that they had when the store was made, as far as it says so.

    Older stores only have the names of the dimensions of the first variable, in order. Which one is which is told from
    their number, unless a name is that of another role: then dimensions are recognised as in a conversion. Where the
    first variable has no levels, the levels of another one are along the dimension that is left.
    """
    recipe = store.attributes["recipe"]
    if "roles" in recipe:
        return dict(recipe["roles"])
    names = recipe.get("dimensions", [])
    found: dict[str, str | None] = dict.fromkeys(ROLES)
    if len(names) > 2:
        *others, found["row"], found["column"] = names
        roles = ["time", "level"]
        if not store.is_series and (len(others) == 3 or (len(others) == 2 and "@" not in recipe["variables"][0])):
            roles = ["sample", "time", "level"]
        likely = dict(zip(roles, others, strict=False))
        if not any(
            name.lower() in ROLES[other].names and name.lower() not in ROLES[role].names
            for role, name in likely.items()
            for other in roles
        ):
            found |= likely
            found["level"] = found["level"] or _dimension_left(recipe, urls, {*names})
    return found


def _dimension_left(recipe: dict[str, Any], urls: list[str], known: set[str]) -> str | None:
    """Return the only dimension, beside those that are known, that variables have of which the store has a level.

    None where there are several, or one is recognised as that of the levels.
    """
    left: set[str] = set()
    for variable, level in map(parse_variable, recipe["variables"]):
        url = next((url for url in urls if level is not None and has_variable(url, variable)), None)
        if url is not None:
            dataset = open_source(url, variable)
            sizes = dataset[split_group(variable)[1]].sizes
            names = [str(name) for name, size in sizes.items() if name not in known and size > 1]
            left.update(names if recognise(dataset, names, ROLES["level"]) is None else [])
    return left.pop() if len(left) == 1 else None


def units_of(store: FieldStore) -> list[str]:
    """Return the units of the store by variable, of logarithms those before, as `--units` names them.

    Of several variables, a store that was made when all had the same levels does not say which channels they have.
    """
    recipe = store.attributes["recipe"]
    variables = [parse_variable(text)[0] for text in recipe["variables"]]
    units = store.units_of([name for name in store.channels if name not in store.inputs])
    if len(variables) != len(units) and len(variables) > 1:
        return []
    found = dict(zip(variables, units, strict=False))
    found |= {variable: units for variable, (_, units) in recipe.get("log", {}).items()}
    return [f"{variable}={units}" for variable, units in found.items()]


def differences_of(store: FieldStore) -> set[str]:
    """Return the variables of which a store holds differences, as far as it says so."""
    recipe, known = store.attributes["recipe"], store.attributes.get("differences", [])
    pairs = zip(recipe.get("channels", []), recipe["variables"], strict=False)
    return {parse_variable(text)[0] for channel, text in pairs if channel in known}
