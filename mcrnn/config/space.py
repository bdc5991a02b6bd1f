"""What a search leaves open: the entries of the space, their alternatives, conditions and bounds.

An entry names a field of the configuration by its dotted path and takes the place of that field's value. Conditions
and bounds may name other fields, searched or not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator, model_validator

from mcrnn.config.paths import Values, default_of, given, with_values
from mcrnn.config.search import SearchConfig
from mcrnn.config.sections import Configuration, Section

Bound = int | float | str


NOT_FINITE = "a grid needs choice, int without log, or float with a step"


class SpaceEntry(Section):
    """The values that a field of the configuration may take."""

    choice: list[Any] | None = Field(None, min_length=1, description="one of these")
    int_range: tuple[int | str, int | str] | None = Field(
        None, alias="int", description="whole numbers, both included; a bound may be the name of another field"
    )
    float_range: tuple[float | str, float | str] | None = Field(
        None, alias="float", description="numbers between; a bound may be the name of another field"
    )
    log: bool = Field(False, description="sample the logarithm uniformly")
    step: float | None = Field(None, gt=0, description="distance of the values")
    when: dict[str, Any] | None = Field(
        None, min_length=1, description="other fields' values, or lists of such, for which this holds"
    )

    @field_validator("int_range", "float_range", mode="before")
    @classmethod
    def _numbers_are_no_names(cls, value: Any) -> Any:
        # 1e-4 without a point is a string in YAML 1.1
        return [_number(bound) for bound in value] if isinstance(value, list) else value

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
        """The least and the largest value, None for a choice."""
        return self.int_range or self.float_range

    @property
    def conditions(self) -> dict[str, list[Any]]:
        """Fields and the values that they may have."""
        return {path: value if isinstance(value, list) else [value] for path, value in (self.when or {}).items()}

    @property
    def needs(self) -> set[str]:
        """Fields that conditions and bounds name."""
        return {*self.conditions, *(bound for bound in self.bounds or () if isinstance(bound, str))}

    @property
    def corners(self) -> list[Any]:
        """Values such that the configuration accepts all if it accepts these: every choice, both bounds."""
        return list(self.choice or self.bounds or [])

    @property
    def only_value(self) -> Any:
        """The value, where there is but one, else None."""
        corners = self.corners
        return corners[0] if all(corner == corners[0] for corner in corners) else None

    def with_bounds(self, value_of: Callable[[str], Any]) -> SpaceEntry:
        """The same with numbers for the bounds that name fields.

        Raises:
            ValidationError: a field has no number, or the bounds do not fit each other.
        """
        if not self.bounds or not any(isinstance(bound, str) for bound in self.bounds):
            return self
        numbers = [value_of(bound) if isinstance(bound, str) else bound for bound in self.bounds]
        kind = "int" if self.int_range else "float"
        return SpaceEntry.model_validate({kind: numbers, "log": self.log, "step": self.step, "when": self.when})

    @property
    def is_finite(self) -> bool:
        """Whether it is so many values and no more."""
        return self.choice is not None or self.step is not None or (self.int_range is not None and not self.log)

    def grid(self) -> list[Any]:
        """All values.

        Raises:
            ValueError: they are not a finite number of values.
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
        """In a few words."""
        if self.choice is not None:
            return "one of " + ", ".join(map(str, self.choice))
        scale = ", logarithmic" if self.log else f", step {self.step:g}" if self.step else ""
        return "from {} to {}".format(*self.corners) + scale


def _number(bound: Any) -> Any:
    try:
        return float(bound) if isinstance(bound, str) else bound
    except ValueError:
        return bound


Entries = dict[str, list[SpaceEntry]]
"""by field; several alternatives of one differ in their conditions"""


@dataclass(frozen=True)
class Space:
    """The entries over the file's own sections."""

    base: dict[str, Any]
    """the sections as they stand; fields of the entries may be missing"""
    entries: Entries = field(default_factory=dict)
    """in an order in which each follows those that it names"""

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, path: object) -> bool:
        return path in self.entries

    def value(self, path: str, values: Values) -> Any:
        """What a field is: drawn, given in the file, or the default. None where it is an entry that does not hold."""
        return values.get(path) if path in self.entries else given(self.base, path, default_of(path))

    def holding(self, path: str, values: Values) -> int | None:
        """Which alternative of an entry holds, given the values of those before it; None where none does."""
        for index, entry in enumerate(self.entries[path]):
            if all(self.value(key, values) in allowed for key, allowed in entry.conditions.items()):
                return index
        return None

    def entry(self, path: str, values: Values) -> SpaceEntry | None:
        """That alternative, with numbers for its bounds.

        Raises:
            ValidationError: a bound has no number, or the bounds do not fit each other.
        """
        index = self.holding(path, values)
        return None if index is None else self.entries[path][index].with_bounds(lambda name: self.value(name, values))

    def completed(self, values: Values, corner: int = 0) -> Values:
        """Values with a corner, the first by default, of each other entry that then holds."""
        result: Values = {}
        for path in self.entries:
            if path in values:
                result[path] = values[path]
            elif (entry := self.entry(path, result)) is not None:
                result[path] = entry.corners[corner]
        return result

    def corners(self) -> Iterator[Values]:
        """Values of the whole space such that each corner of each alternative occurs, where it can hold."""
        yield self.completed({})
        yield self.completed({}, -1)
        for path, alternatives in self.entries.items():
            for number, entry in enumerate(alternatives):
                searched = {key: allowed for key, allowed in entry.conditions.items() if key in self and allowed}
                conditions = {key: allowed[0] for key, allowed in searched.items()}
                for others in (0, -1):
                    before = self.completed(conditions, others)
                    if self.holding(path, before) != number:
                        continue
                    for corner in entry.with_bounds(lambda name: self.value(name, before)).corners:  # noqa: B023
                        values = self.completed(conditions | {path: corner}, others)
                        if self.holding(path, values) == number:
                            yield values

    def grid(self) -> Iterator[Values]:
        """All values of the space.

        Raises:
            ValueError: an entry has no finite number of values; names it.
        """

        def rest(paths: list[str], values: Values) -> Iterator[Values]:
            if not paths:
                yield values
                return
            entry = self.entry(paths[0], values)
            if entry is None:
                yield from rest(paths[1:], values)
                return
            try:
                each = entry.grid()
            except ValueError as error:
                raise ValueError(f"{paths[0]}: {error}") from None
            yield from itertools.chain.from_iterable(rest(paths[1:], values | {paths[0]: value}) for value in each)

        return rest(list(self.entries), {})


@dataclass(frozen=True)
class Search:
    """A configuration with some fields left to a search."""

    space: Space
    search: SearchConfig

    @property
    def name(self) -> str:
        """Name of the search."""
        return self.space.base["name"]

    def configuration(self, values: Values) -> Configuration:
        """The configuration with these values in place of the space's entries.

        Raises:
            ValidationError: a value does not fit its field, or the values do not fit each other.
        """
        return Configuration.model_validate(with_values(self.space.base, values))

    def parameter(self, path: str, index: int) -> str:
        """What an alternative is called where all have to differ, as in a study."""
        return path if len(self.space.entries[path]) == 1 else f"{path} ({index + 1})"

    def values(self, parameters: Values) -> Values:
        """The values of the entries, of parameters called so."""
        return {name.split(" ")[0]: value for name, value in parameters.items()}

    def parameters(self, values: Values) -> Values:
        """The same the other way round."""
        found = {path: self.space.holding(path, values) for path in values}
        return {self.parameter(path, index): values[path] for path, index in found.items() if index is not None}

    def first_configuration(self) -> Configuration:
        """The configuration of the entries' first corners: for what is the same in all of them."""
        return self.configuration(self.space.completed({}))

    def content(self) -> dict[str, Any]:
        """All of it as plain data."""
        entries = self.space.entries.items()
        return {
            **self.space.base,
            "search": self.search.model_dump(),
            "space": {path: [entry.model_dump(exclude_none=True) for entry in each] for path, each in entries},
        }
