"""What is appended to a store: later times or further samples of the same field, checked against what it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_prep.common_units import conversions_of
from data_prep.field_source import FieldSource
from data_prep.gridded_field import GriddedField
from data_prep.inputs import Inputs, StaticField
from data_prep.joining import open_field, summary
from data_prep.logarithms import with_logarithms
from data_prep.masking import FieldMask, find_mask
from data_prep.plan import Shard, SplitPlan, StorePlan
from data_prep.recipe import differences_of, dimensions_of, units_of
from data_prep.source_identity import SourceIdentity
from data_prep.time_axis import TimeAxis, same_calendar
from mcrnn.data.forcings import SOLAR_ANGLE, STATIC
from mcrnn.data.segments import WHOLE, Segments
from mcrnn.data.store import FieldStore
from mcrnn.data.store_format import SPLITS
from mcrnn.data.time_step import TimeStep, show
from mcrnn.data.units import find_conversion
from mcrnn.errors import UserError


@dataclass(frozen=True)
class AppendPlan:
    """Times that follow on a split of a store, or samples that become part of it, and where they come from.

    Attributes:
        store: the store as it is.
        split: the split that they become part of.
        added: the new times in the units of the store's, or the numbers of the new samples.
        segments: segments of the split with the new times.
        plan: how the split is cut into objects once they are part of it.
        source: reads them; of its first time or sample the split has the position `before`.
        sources: name, size and checksum of what they are read from.
    """

    store: FieldStore
    split: str
    added: np.ndarray
    segments: Segments
    plan: StorePlan
    source: FieldSource
    sources: list[Any]

    @property
    def before(self) -> int:
        """Number of frames, or samples, that the split has."""
        return self.store.lengths[self.split]

    @property
    def whole(self) -> list[Shard]:
        """The objects that have new frames or samples only."""
        return [shard for shard in self.plan.shards() if shard.start >= self.before]

    @property
    def mixed(self) -> Shard | None:
        """The object that has both old and new ones; None where the old ones fill all of theirs."""
        return next((shard for shard in self.plan.shards() if shard.start < self.before < shard.stop), None)


def is_appended(store: FieldStore, sources: list[Any]) -> bool:
    """Return whether some sources were the last that were appended to a store."""
    return bool(store.history) and store.history[-1].get("sources") == json.loads(json.dumps(sources))


def plan_append(store: FieldStore, urls: list[str], split: str | None, *, gaps: bool = False) -> AppendPlan | None:
    """Find out what is in the sources, and check that it continues a split of the store.

    Args:
        store: the store.
        urls: the sources.
        split: the split that they become part of; None for the one of a series whose times are the latest.
        gaps: whether times may be missing between the store and the sources, and within the sources.

    Returns:
        The plan; None where the same sources have been appended already.

    Raises:
        UserError: the store was not converted, or variables, units, calendar, interval or grid differ, or the times do
            not follow, or samples are in the store already.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"--split is {', '.join(SPLITS)}, not '{split}'")
    recipe = store.attributes["recipe"]
    if "variables" not in recipe or (store.is_series and "calendar" not in store.attributes):
        raise UserError(f"'{store.name}' was not made by data_prep.convert, so that no files continue it")
    if not store.is_series and (split is None or gaps):
        raise UserError(
            "samples have no gaps in time: leave out --gaps"
            if gaps
            else f"'{store.name}' has samples: name the split that they become part of by --split"
        )
    field = open_field(
        urls,
        recipe["variables"],
        recipe.get("levels") or [],
        dimensions_of(store, urls),
        files_are_samples=not store.is_series,
        units=units_of(store),
        level_units=store.attributes.get("level_units", ""),
        differences=differences_of(store),
    )
    scales = {variable: scale for variable, (scale, _) in recipe.get("log", {}).items()}
    field = _named_as_in(store, with_logarithms(field, scales))
    field = field.select(*(recipe.get(name) for name in ("area", "every", "coarsen", "regrid")))
    sources = list(summary(field)["sources"] or [])
    if is_appended(store, sources) and split in (None, store.history[-1]["split"]):
        return None
    _check_same(store, field)
    segments = WHOLE
    if isinstance(field.axis, TimeAxis):
        split, segments = _followed(store, field.axis, split, gaps=gaps)
        added = field.axis.seconds
    else:
        assert split is not None, "samples become part of a split that is named"
        assert field.samples is not None, "what is no series has samples"
        _check_new(store, sources)
        added = _next_sample(store) + np.arange(field.samples)
    inputs, mask = _inputs_of(store), _mask_of(store, field)
    array, axis = store.array(split), store.growing_axis
    assert array.shards is not None, "fields are always written in shards"
    before, total = store.lengths[split], store.lengths[split] + len(added)
    height, width = store.grid()
    plan = StorePlan(
        splits={split: SplitPlan(1, total, {}) if store.is_series else SplitPlan(total, array.shape[1], {})},
        channels=store.channels,
        height=height,
        width=width,
        layout="series" if store.is_series else "samples",
        chunk=array.chunks[axis],
        shard=array.shards[axis],
        attributes={},
        recipe={},
        mask=store.mask(),
    )
    encoded = json.loads(plan.metadata()[f"{split}/field/zarr.json"])
    if encoded["codecs"] != json.loads(store.location.read(f"{split}/field/zarr.json"))["codecs"]:
        raise UserError(
            f"'{store.name}' was made by a version of mcrnn that compresses otherwise: append with that one"
        )
    source = FieldSource(field, {split: -before}, recipe.get("fill"), mask, inputs)
    return AppendPlan(store, split, added, segments, plan, source, sources)


def _named_as_in(store: FieldStore, field: GriddedField) -> GriddedField:
    """Return a field whose channels have the names of those of the store, of which each has the same place."""
    names = [name for name in store.channels if name not in store.inputs]
    if len(names) != len(field.channels):
        found = ", ".join(channel.name for channel in field.channels)
        raise UserError(f"'{store.name}' has the channels {', '.join(names)}, the sources {found}")
    channels = (replace(channel, name=name) for channel, name in zip(field.channels, names, strict=True))
    return replace(field, channels=tuple(channels))


def _check_same(store: FieldStore, field: GriddedField) -> None:
    """Refuse a field that is not that of the store but for its times."""
    axis, attributes = field.axis, store.attributes
    if store.is_series and not isinstance(axis, TimeAxis):
        raise UserError(f"'{store.name}' is a series, the sources have samples")
    for channel, units in zip(field.channels, store.units_of([c.name for c in field.channels]), strict=True):
        found = field.units_of[channel.variable]
        if found != units and channel.variable not in field.logarithms:
            raise UserError(f"{channel.name} is in {found} in the sources and in {units} in '{store.name}': convert it")
    for variable, conversion, _ in conversions_of(field):
        if field.units_of[variable] == "1":  # which a store also has of a variable without units
            raise UserError(
                f"{variable} is in {conversion.source} in the sources, and '{store.name}' does not say whether it has "
                "no units or is in 1: convert it to the numbers of the store and write them without units"
            )
    if isinstance(axis, TimeAxis):
        if not same_calendar(axis.calendar, attributes["calendar"], float(axis.seconds[0])):
            raise UserError(f"the sources have the calendar {axis.calendar}, '{store.name}' {attributes['calendar']}")
    elif field.frames != (frames := store.array("train").shape[1]):
        raise UserError(f"the samples of the sources have {field.frames} times, those of '{store.name}' {frames}")
    is_same = axis.step == attributes["time_step"]
    if not is_same and not (field.samples is not None and _is_same_step(axis.step, attributes["time_step"])):
        raise UserError(f"the sources have a time every {axis.step}, '{store.name}' every {attributes['time_step']}")
    grid = field.store_grid
    there = replace(
        grid,
        rows=store.coordinate("height"),
        columns=store.coordinate("width"),
        units=tuple(attributes.get("grid_units", ("", ""))),
    )
    if differing := [name for name, same in zip(grid.names, there.same_axes(grid), strict=True) if not same]:
        unknown = [units for units, known in zip(grid.units, there.units, strict=True) if units and not known]
        hint = f"; they are in {unknown[0]}, and the store does not say in which units it has them" if unknown else ""
        differ = f"{' and '.join(differing)} differ{'s' if len(differing) == 1 else ''}"
        raise UserError(f"the sources have another grid than '{store.name}': {differ}{hint}")


def _is_same_step(step: str, other: str) -> bool:
    """Return whether two intervals of samples are the same, such as `0.5 s` and `500 ms`."""
    (number, _, units), (other_number, _, other_units) = step.partition(" "), other.partition(" ")
    try:
        conversion = find_conversion(units or "1", other_units or "1")
        value = np.array(float(number))
        return bool(
            np.isclose(value if conversion is None else conversion.apply(value), float(other_number), rtol=1e-5)
        )
    except ValueError:
        return False


def _followed(store: FieldStore, axis: TimeAxis, split: str | None, *, gaps: bool) -> tuple[str, Segments]:
    """Return the split that some times follow on, and its segments once they are part of it."""
    ends = {}
    for name in SPLITS:
        dates = store.dates(name, [-1])
        assert dates is not None, "a series has dates"
        ends[name] = dates[0]
    latest = max(SPLITS, key=lambda name: ends[name])
    asked = split or latest
    first = axis.date(0)
    step = TimeStep.parse(axis.step)
    follows = step.leads_to(ends[asked], first)
    is_later = step.steps_between(ends[asked], first) is not None
    if not follows and not (gaps and is_later):
        hint = ""
        if step.leads_to(ends[latest], first):
            hint = f"; they follow on {latest}, which ends at {show(ends[latest])}"
        elif is_later and asked == latest:
            hint = "; where the times between are missing, say so by --gaps"
        raise UserError(
            f"the sources begin at {show(first)}, and {asked} of '{store.name}' ends at {show(ends[asked])}, so that "
            f"{show(step.after(ends[asked], 1))} has to follow{hint}"
        )
    if asked != latest:
        raise UserError(f"after {show(ends[asked])} comes another split of '{store.name}': append to {latest}")
    if (found := axis.describe_gaps()) and not gaps:
        raise UserError(
            f"the sources have a gap in time, {found}: append only what lies before it, or take it as one by --gaps"
        )
    before = store.lengths[asked]
    starts = axis.segments[1:] if follows else axis.segments
    return asked, (*store.segments(asked), *(before + start for start in starts))


def _check_new(store: FieldStore, sources: list[Any]) -> None:
    """Refuse samples of a source that the store has some of already, which could be in two splits then."""
    states = [store.attributes["recipe"], *store.history]
    known = {tuple(source) for state in states for source in state.get("sources") or []}
    for source in sources:
        if tuple(source) in known:
            raise UserError(f"'{store.name}' has the samples of {source[0]} already")


def _next_sample(store: FieldStore) -> int:
    """Return the number of the next sample: each has one of its own, in whichever split it is."""
    return 1 + max(int(store.sample_numbers(name).max()) for name in SPLITS)


def _mask_of(store: FieldStore, field: GriddedField) -> FieldMask | None:
    """Return the mask of a store for the frames of a field, of which the first must have it.

    Outside of it, frames hold what those of the store hold there.
    """
    if not store.attributes["recipe"].get("mask"):
        return None
    mask = find_mask(field, 0)
    names = [channel.name for channel in field.channels]
    expected_CHW = store.mask(variables=names)
    found_CHW = mask.on_grid_of(field)
    if not np.array_equal(found_CHW, np.ones_like(found_CHW) if expected_CHW is None else expected_CHW):
        raise UserError(f"the sources have no values at other points than '{store.name}': --mask is the same for all")
    frame_CHW = np.asarray(store.array("train")[0, 0])
    outside = [
        frame_CHW[index][~mask_HW][0] if not mask_HW.all() else value
        for index, mask_HW, value in zip(store.channel_indices(names), found_CHW, mask.outside, strict=True)
    ]
    return replace(mask, outside=np.array(outside, np.float32))


def _inputs_of(store: FieldStore) -> Inputs:
    """Return the inputs of a store; its static fields have the values of its own frames."""
    static = []
    for name, kind in store.inputs.items():
        if kind == STATIC:
            (index,) = store.channel_indices([name])
            values_HW = np.asarray(store.array("train")[0, 0, index], dtype=np.float32)
            unread = SourceIdentity(store.name, (), 0, "", None)
            static.append(StaticField(name, store.units_of([name])[0], unread, values_HW))
    forcings = tuple(dict.fromkeys(kind for kind in store.inputs.values() if kind != STATIC))
    place = (store.coordinate("height"), store.coordinate("width")) if SOLAR_ANGLE in forcings else None
    return Inputs(tuple(static), forcings, place)
