"""The section `space` of a YAML file: which fields a search may vary, and between which values.

An entry names a field of the configuration by its dotted path, and its values take the place of the field's value. An
entry may have several alternatives with different conditions; the first whose conditions hold is the active one.
Conditions and bounds may name other fields, searched or not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field, field_validator, model_validator

from mcrnn.config.paths import Values, default_of, value_at, with_values
from mcrnn.config.search import SearchConfig
from mcrnn.config.sections import Configuration, Section

Bound = int | float | str
"""A number, or the dotted path of the field whose value is the bound."""

NOT_FINITE = "a grid needs choice, int without log, or float with a step"


class SpaceEntry(Section):
    """The values that a field of the configuration may take: exactly one of `choice`, `int` and `float`."""

    choice: list[Any] | None = Field(None, min_length=1, description="List of values, one of which is taken.")
    int_range: tuple[int | str, int | str] | None = Field(
        None,
        alias="int",
        description="Smallest and largest whole number, both included. A bound may be the path of another field.",
    )
    float_range: tuple[float | str, float | str] | None = Field(
        None,
        alias="float",
        description="Smallest and largest number. A bound may be the path of another field.",
    )
    log: bool = Field(False, description="For int and float: sample the logarithm of the value uniformly.")
    step: float | None = Field(
        None,
        gt=0,
        description="For int and float: distance between values, counted from the smallest; null for 1 with int, and "
        "for any value between the bounds with float.",
    )
    when: dict[str, Any] | None = Field(
        None,
        min_length=1,
        description="Conditions: for each of some other fields the value, or the list of values, for which this entry "
        "is used. null to use it always.",
    )

    @field_validator("int_range", "float_range", mode="before")
    @classmethod
    def _read_numbers(cls, value: Any) -> Any:
        # a text that is no number names a field
        return [read_number(bound) for bound in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_kind(self) -> SpaceEntry:
        if sum(kind is not None for kind in (self.choice, self.int_range, self.float_range)) != 1:
            raise ValueError("needs exactly one of choice, int, float")
        if self.bounds is None:
            if self.log or self.step is not None:
                raise ValueError("log and step go with int or float, not with choice")
            return self
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.int_range is not None and self.step is not None and self.step != int(self.step):
            raise ValueError(f"step of an int must be a whole number, not {self.step}")
        low, high = self.bounds
        if not isinstance(low, str) and self.log and low <= 0:
            raise ValueError(f"log needs bounds above 0, not {low}")
        if not isinstance(low, str) and not isinstance(high, str) and low > high:
            raise ValueError(f"the lower bound {low} is above the upper bound {high}")
        return self

    @property
    def bounds(self) -> tuple[Bound, Bound] | None:
        """The smallest and the largest value; None for a choice."""
        return self.int_range or self.float_range

    @property
    def conditions(self) -> dict[str, list[Any]]:
        """The fields that the conditions name, each with the values for which the condition holds."""
        return {path: value if isinstance(value, list) else [value] for path, value in (self.when or {}).items()}

    @property
    def needs(self) -> set[str]:
        """The fields that conditions and bounds name."""
        return {*self.conditions, *(bound for bound in self.bounds or () if isinstance(bound, str))}

    @property
    def corners(self) -> list[Any]:
        """The choices or both bounds: if a configuration is valid with each of these, it is valid with all values."""
        return list(self.choice or self.bounds or [])

    @property
    def only_value(self) -> Any:
        """The value if the entry has a single one, else None."""
        corners = self.corners
        return corners[0] if all(corner == corners[0] for corner in corners) else None

    def with_bounds(self, value_of: Callable[[str], Any]) -> SpaceEntry:
        """Return the entry with numbers in place of the fields that its bounds name.

        Args:
            value_of: Gives the value of a field by its dotted path.

        Raises:
            ValidationError: The value of such a field is no number, or the lower bound is above the upper one.
        """
        if not self.bounds or not any(isinstance(bound, str) for bound in self.bounds):
            return self
        numbers = [value_of(bound) if isinstance(bound, str) else bound for bound in self.bounds]
        kind = "int" if self.int_range else "float"
        return SpaceEntry.model_validate({kind: numbers, "log": self.log, "step": self.step, "when": self.when})

    def contains(self, value: Any) -> bool:
        """Return whether an entry whose bounds are numbers has a value."""
        if self.choice is not None:
            return any(value == each and type(value) is type(each) for each in self.choice)
        assert self.bounds is not None
        low, high = self.bounds
        assert not isinstance(low, str)
        assert not isinstance(high, str)
        if isinstance(value, bool) or not isinstance(value, int if self.int_range else (int, float)):
            return False
        if not low <= value <= high:
            return False
        return self.step is None or abs((steps := (value - low) / self.step) - round(steps)) < 1e-9

    @property
    def is_finite(self) -> bool:
        """Whether the entry has a finite number of values, as a grid needs."""
        return self.choice is not None or self.step is not None or (self.int_range is not None and not self.log)

    def grid(self) -> list[Any]:
        """Return all values of an entry whose bounds are numbers.

        Raises:
            ValueError: The entry has no finite number of values.
        """
        if self.choice is not None:
            return self.choice
        assert self.bounds is not None
        low, high = self.bounds
        assert not isinstance(low, str)
        assert not isinstance(high, str)
        if not self.is_finite:
            raise ValueError(NOT_FINITE)
        step = self.step or 1
        count = int((high - low) / step + 1e-9) + 1
        values = [low + step * i for i in range(count)]
        return [int(value) for value in values] if self.int_range else values

    def __str__(self) -> str:
        """Return the values in a few words, such as `from 8 to 24, step 4`."""
        if self.choice is not None:
            return "one of " + ", ".join(map(str, self.choice))
        scale = ", logarithmic" if self.log else f", step {self.step:g}" if self.step else ""
        low, high = self.corners
        return f"from {low} to {high}{scale}"


def read_number(bound: Any) -> Any:
    """Return the number that a text spells, such as 1e-4 in YAML 1.1, and anything else as it is."""
    try:
        return float(bound) if isinstance(bound, str) else bound
    except ValueError:
        return bound


Entries = dict[str, list[SpaceEntry]]
"""The alternatives of each entry by the dotted path of its field. They differ in their conditions."""


@dataclass(frozen=True)
class Space:
    """The entries of a space, and the sections of the file whose values they take the place of.

    Attributes:
        base: The sections as they are in the file; fields that have an entry may be missing.
        entries: The entries, in an order in which each follows those that its conditions and bounds name.
    """

    base: dict[str, Any]
    entries: Entries = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, path: object) -> bool:
        return path in self.entries

    def value(self, path: str, values: Values) -> Any:
        """Return the value of a field.

        It is the sampled value if the field has an entry (None if no alternative of it is active), else the value in
        the file, else the default.

        Args:
            path: Dotted path of the field.
            values: Sampled values.
        """
        return values.get(path) if path in self.entries else value_at(self.base, path, default_of(path))

    def active_index(self, path: str, values: Values) -> int | None:
        """Return the index of the active alternative of an entry: the first whose conditions hold.

        Args:
            path: Dotted path of the entry's field.
            values: Values of the entries before it.

        Returns:
            The index; None if the conditions of no alternative hold, so that the field keeps its value of the file.
        """
        for index, entry in enumerate(self.entries[path]):
            if all(self.value(key, values) in allowed for key, allowed in entry.conditions.items()):
                return index
        return None

    def active_entry(self, path: str, values: Values) -> SpaceEntry | None:
        """Return the active alternative of an entry, with numbers for its bounds; see `active_index`.

        Raises:
            ValidationError: A bound names a field whose value is no number, or the lower bound is above the upper one.
        """
        index = self.active_index(path, values)
        return None if index is None else self.entries[path][index].with_bounds(lambda name: self.value(name, values))

    def completed(self, values: Values, corner: int = 0) -> Values:
        """Complete some values with a corner of every other entry that is then active.

        Args:
            values: Values of some entries. Those whose entry is not active are kept as well.
            corner: Index of the corner: 0 for the first choice or lower bound, -1 for the last or upper.
        """
        result: Values = {}
        for path in self.entries:
            if path in values:
                result[path] = values[path]
            elif (entry := self.active_entry(path, result)) is not None:
                result[path] = entry.corners[corner]
        return result

    def corners(self) -> Iterator[Values]:
        """Yield values of all entries in which each corner of each alternative occurs that can be active.

        If a configuration is valid with each of these, it is taken to be valid everywhere in the space. The other
        entries are once at their first and once at their last corner.
        """
        yield self.completed({})
        yield self.completed({}, -1)
        for path, alternatives in self.entries.items():
            for number, entry in enumerate(alternatives):
                searched = {key: allowed for key, allowed in entry.conditions.items() if key in self and allowed}
                conditions = {key: allowed[0] for key, allowed in searched.items()}
                for others in (0, -1):
                    before = self.completed(conditions, others)
                    if self.active_index(path, before) != number:
                        continue
                    for corner in entry.with_bounds(lambda name: self.value(name, before)).corners:  # noqa: B023
                        values = self.completed(conditions | {path: corner}, others)
                        if self.active_index(path, values) == number:
                            yield values

    def grid(self) -> Iterator[Values]:
        """Yield all combinations of values.

        Raises:
            ValueError: An entry has no finite number of values; the message names it.
        """

        def combinations(paths: list[str], values: Values) -> Iterator[Values]:
            if not paths:
                yield values
                return
            entry = self.active_entry(paths[0], values)
            if entry is None:
                yield from combinations(paths[1:], values)
                return
            try:
                each = entry.grid()
            except ValueError as error:
                raise ValueError(f"{paths[0]}: {error}") from None
            yield from itertools.chain.from_iterable(
                combinations(paths[1:], values | {paths[0]: value}) for value in each
            )

        return combinations(list(self.entries), {})


@dataclass(frozen=True)
class Search:
    """A search as it is in a file: the space, and how the search spends its budget.

    Attributes:
        space: The fields that are searched, and the sections of the file.
        search: The section `search`.
    """

    space: Space
    search: SearchConfig

    @property
    def name(self) -> str:
        """The name of the search."""
        return self.space.base["name"]

    def configuration(self, values: Values) -> Configuration:
        """Return the configuration of a trial.

        Args:
            values: Value of each active entry by the dotted path of its field.

        Raises:
            ValidationError: A value does not fit its field, or the values do not fit each other.
        """
        return Configuration.model_validate(with_values(self.space.base, values))

    def first_configuration(self) -> Configuration:
        """Return one configuration of the space, for whatever is the same in all of them."""
        return self.configuration(self.space.completed({}))

    def without_database(self) -> Search:
        """Return the search without the URL of its database, which may hold a password, for those who need none."""
        return replace(self, search=self.search.model_copy(update={"storage": None}))

    def content(self) -> dict[str, Any]:
        """Return the whole search as plain data, as the file would have it."""
        entries = self.space.entries.items()
        return {
            **self.space.base,
            "search": self.search.model_dump(),
            "space": {path: [entry.model_dump(exclude_none=True) for entry in each] for path, each in entries},
        }
