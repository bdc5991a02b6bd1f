"""Describe a store: what it holds, how it was made, how far a build is. Also verify every byte, or animate a sample.

python -m data_prep.inspect data/ns.zarr --verify
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.data.store_format import SPLITS
from mcrnn.storage.location import Location
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    from mcrnn.data.store import FieldStore


def inspect(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Name of the store: data/ns.zarr, or a URL.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare it with the manifest.")] = False,
    animate: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write an animation of a sample (.mp4 or .gif).")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the sample to animate.")] = "train",
    sample: Annotated[int, typer.Option(min=0, help="Sample to animate.")] = 0,
    storage: StorageOption = None,
) -> None:
    """Describe a store, also one that is unfinished.

    Verifying and animating need a complete store.
    """
    root = Storage.open(storage)
    location = root.location(store)

    from mcrnn.data.root_document import read_root
    from mcrnn.data.store import FieldStore

    if animate:
        from mcrnn.reports.animation import check_animation

        check_animation(Path(animate))
    attributes = read_root(location)["attributes"]
    if attributes.get("status") == "building" and not (verify or animate):
        _print_build(root.show(location), attributes, location)
        return
    field_store = FieldStore.open(location)
    _print_complete(root.show(location), field_store)
    if verify:
        from mcrnn.console import Bar

        manifest = field_store.manifest
        with Bar("verify", manifest.total_bytes, "bytes") as bar:
            manifest.verify(bar.advance)
        print(f"verified: all {len(manifest.objects)} objects, {_size(manifest.total_bytes)}, are as they were built")
    if animate:
        from data_prep.animation import animate_sample
        from mcrnn.console import Bar

        with Bar("animation", field_store.array(split).shape[1], "frames") as bar:
            animate_sample(field_store, split, sample, Path(animate), lambda _: bar.advance(1))
        print(f"{animate}: sample {sample} of {split}")


def _print_build(name: str, attributes: dict[str, Any], location: Location) -> None:
    from data_prep.shard_records import read_records, record_keys

    done = read_records(location, record_keys(location.sizes()))
    print(f"{name}: unfinished, {len(done)} of {attributes['shards']} objects are done")
    print("the command that builds it continues; its parameters:")
    _print_pairs(attributes["recipe"])


def _print_complete(name: str, store: FieldStore) -> None:
    a = store.attributes
    height, width = store.grid()
    print(f"{name}: complete, {len(store.manifest.objects)} objects, {_size(store.manifest.total_bytes)}")
    step = f"{a['time_step']} between frames" if a["time_step"] != "1" else "1 time unit between frames"
    units = f" [{a['units']}]" if a["units"] != "1" else ""
    pairs = {
        "field": f"{a['variable']}{units}, {len(store.channels)} channel{'s' * (len(store.channels) > 1)}",
        "grid": f"{height} x {width}, boundary {a['boundary']}",
        "time": step + (f", calendar {a['calendar']}" if "calendar" in a else ""),
    }
    for name, formula in a.get("logarithms", {}).items():
        pairs[name] = formula
    if "scaling" in a:
        pairs["scaling"] = ", ".join(f"{name} by {kind}" for name, kind in a["scaling"].items())
    if store.inputs:
        pairs["inputs"] = ", ".join(f"{name} ({kind})" for name, kind in store.inputs.items())
    for split in SPLITS:
        shape = store.array(split).shape
        pairs[split] = (
            f"{shape[1]} frames{_range_of_dates(store, split)}{_segments(store, split)}"
            if store.is_series
            else f"{shape[0]} samples of {shape[1]} frames"
        )
    _print_pairs(pairs)
    for index, channel in enumerate(store.channels):
        figures = ", ".join(f"{k} {a['statistics'][k][index]:.6g}" for k in ("mean", "std", "min", "max"))
        print(f"  {channel + ' (train)':<20} {figures}")
    if (mask := store.mask()) is not None:
        shares = zip(store.channels, 1 - mask.mean((1, 2)), strict=True)
        listed = [f"{name} has no value at {100 * share:.3g} % of the points" for name, share in shares if share]
        _print_pairs({"mask": ", ".join(listed)})
    _print_pairs({"digest": store.digest})
    if store.history:
        print("history:")
        _print_pairs({state["digest"][:12]: _state(state, store) for state in store.history})
    print("made by:")
    _print_pairs(a["recipe"])
    _print_pairs({"versions": ", ".join(f"{k} {v}" for k, v in a["versions"].items())})


def _state(state: dict[str, Any], store: FieldStore) -> str:
    """Return a state of the store's history in words: when it began, what was appended, and how much each split has."""
    unit = "frames" if store.is_series else "samples"
    counts = ", ".join(f"{split} {count}" for split, count in state[unit].items())
    if "split" not in state:
        return f"as it was made: {counts} {unit}"
    names = ", ".join(source[0] for source in state["sources"])
    changed = state["statistics"] != store.history[store.history.index(state) - 1]["statistics"]
    statistics = "; new statistics" if changed else ""
    return f"{state['date']}, {names} appended to {state['split']}: {counts} {unit}{statistics}"


def _range_of_dates(store: FieldStore, split: str) -> str:
    from mcrnn.data.time_step import show

    dates = store.dates(split, (0, -1))
    assert dates is not None, "the times of a series are dates"
    return f", {show(dates[0])} to {show(dates[1])}"


def _segments(store: FieldStore, split: str) -> str:
    count = len(store.segments(split))
    return f", {count} segments between gaps" if count > 1 else ""


def _print_pairs(pairs: dict[str, Any]) -> None:
    for key, value in pairs.items():
        text = str(value)
        print(f"  {key:<20} {text if len(text) <= 300 else text[:300] + ' ...'}")


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


if __name__ == "__main__":
    main(inspect)
