"""Later times appended to a series: the same bytes as a store made in one go, whatever happens on the way."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_prep import append as command
from data_prep import field_source
from data_prep.convert import convert
from data_prep.inspect import inspect
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.data.store_format import root_digest
from mcrnn.errors import UserError
from mcrnn.evaluation.result import evaluate_model
from mcrnn.models import trained_model
from mcrnn.runners import single_run
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.data_prep.test_convert import write_hdf5
from tests.data_prep.test_odd_inputs import DAYS, HOURS, LATITUDE, LONGITUDE, VALUES
from tests.support.registered_models import save
from tests.support.store_inputs import HEIGHTS

Change = Callable[[xr.Dataset], xr.Dataset]
LATER = np.random.default_rng(3).normal(54_000, 3_000, (48, 6, 8)).astype(np.float32)
INPUTS: dict[str, Any] = {"static": ["orography"], "forcing": ["solar-angle"]}


def hourly(values: np.ndarray, first: int, **more: Any) -> xr.Dataset:
    hours = first + np.arange(float(len(values)))
    return xr.Dataset(
        {"z": (("time", "lat", "lon"), values, {"units": "m**2 s**-2"})} | more,
        {"time": ("time", hours, {"units": HOURS}), "lat": LATITUDE, "lon": LONGITUDE},
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a store of three days in objects of 16 hours, and a file of the two days after them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(field_source, "CHUNK_BYTES", 4 * 3 * 192)
    monkeypatch.setattr(field_source, "SHARD_BYTES", 16 * 3 * 192)
    hourly(VALUES, 0, orography=(("lat", "lon"), HEIGHTS)).to_netcdf("a.nc")
    hourly(LATER, 72).to_netcdf("b.nc")
    convert(["a.nc"], "out.zarr", variable=["z"], workers=1, storage=".", **INPUTS, **DAYS)
    return tmp_path


def append(*files: str, **options: Any) -> None:
    command.append(list(files), "out.zarr", **({"storage": ".", "workers": 1} | options))


def opened(folder: Path) -> FieldStore:
    return FieldStore.open(LocalFolder(folder / "out.zarr"))


def test_appended_store_has_the_bytes_of_one_made_in_one_go(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = opened(folder)
    old = {key: (folder / "out.zarr" / key).read_bytes() for key in before.manifest.objects}
    frames = before.load("test")
    append("b.nc")
    assert "48 frames appended to test, which has 72 now" in capsys.readouterr().out
    store = opened(folder)
    store.verify()
    assert np.array_equal(store.load("test")[0, 24:, 0], LATER)
    changed = {key for key, content in old.items() if (folder / "out.zarr" / key).read_bytes() != content}
    assert changed == {"test/field/zarr.json", "test/time/zarr.json", "test/time/c/0", "test/field/c/0/1/0/0/0"}
    assert store.attributes["statistics"] == before.attributes["statistics"]
    assert not [key for key in LocalFolder(folder / "out.zarr").sizes() if key.startswith(".build")]
    convert(
        ["a.nc", "b.nc"],
        "whole.zarr",
        variable=["z"],
        workers=1,
        storage=".",
        **INPUTS,
        **(DAYS | {"test": "1979-01-03:1979-01-05"}),
    )
    assert store.digest == FieldStore.open(LocalFolder(folder / "whole.zarr")).digest
    with xr.open_zarr(folder / "out.zarr", group="test") as found:
        assert found.sizes["time"] == 72
    # as it was
    earlier = store.as_of(before.digest)
    assert (earlier.digest, earlier.shape("test")) == (before.digest, before.shape("test"))
    assert np.array_equal(earlier.load("test"), frames)
    assert earlier.dates("test") == before.dates("test")
    assert store.as_of("unknown") is store
    # the same once more, and the history
    append("b.nc")
    assert "the same sources are appended already, nothing to do" in capsys.readouterr().out
    convert(["a.nc"], "out.zarr", variable=["z"], workers=1, storage=".", **INPUTS, **DAYS)
    assert "complete already, nothing to do" in capsys.readouterr().out
    inspect("out.zarr", storage=".")
    shown = capsys.readouterr().out
    assert "as it was made: train 24, val 24, test 24 frames" in shown
    assert "b.nc appended to test: train 24, val 24, test 72 frames" in shown


def test_append_that_is_killed_anywhere_leaves_the_old_store_or_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = opened(folder).digest
    write = LocalFolder.write
    refusals = seen = 0
    for most in range(100):
        left = iter(range(most))

        def write_or_die(self: LocalFolder, key: str, content: bytes, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(self, key, content)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(LocalFolder, "write", write_or_die)
                append("b.nc")
            break
        except KeyboardInterrupt:
            seen += 1
        if json.loads((folder / "out.zarr/zarr.json").read_text())["attributes"]["status"] == "appending":
            with pytest.raises(UserError, match="run the command that appends them again"):
                opened(folder)
            with pytest.raises(UserError, match="run the command that appends again"):
                convert(["a.nc"], "out.zarr", variable=["z"], workers=1, storage=".", **INPUTS, **DAYS)
            refusals += 1
            break
        store = opened(folder)
        assert store.digest == digest
        store.verify()
    assert seen > 8
    assert refusals == 1
    append("b.nc")  # also finishes what was at its last step
    store = opened(folder)
    store.verify()
    assert np.array_equal(store.load("test")[0, 24:, 0], LATER)
    assert [state["frames"]["test"] for state in store.history] == [24, 72]


def test_what_another_append_left_behind_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hourly(LATER + 1, 72).to_netcdf("other.nc")
    write, left = LocalFolder.write, iter(range(7))

    def write_or_die(self: LocalFolder, key: str, content: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(self, key, content)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            append("other.nc")
    append("b.nc")
    store = opened(folder)
    store.verify()
    assert np.array_equal(store.load("test")[0, 24:, 0], LATER)


@pytest.mark.parametrize("scale", [None, 1e4])
def test_times_in_other_units_are_converted_to_those_of_the_store(
    folder: Path, capsys: pytest.CaptureFixture[str], scale: float | None
) -> None:
    if scale is not None:
        convert(
            ["a.nc"], "out.zarr", variable=["z"], log=[f"z:{scale}"], overwrite=True, workers=1, storage=".", **DAYS
        )
    values = LATER.astype(np.float64) / 1000
    part = hourly(LATER, 72)
    part.assign(z=(part.z.dims, values, {"units": "J g-1"})).to_netcdf("b.nc", mode="w")
    append("b.nc")
    assert "z is converted from J g-1 to m**2 s**-2" in capsys.readouterr().out
    expected = LATER if scale is None else np.log1p(LATER.astype(np.float64) / scale).astype(np.float32)
    assert np.array_equal(opened(folder).load("test")[0, 24:, 0], expected)


def test_nothing_is_converted_where_the_store_has_no_units(folder: Path) -> None:
    hourly(VALUES, 0).z.assign_attrs(units="").to_dataset(name="z").to_netcdf("plain.nc")
    convert(["plain.nc"], "out.zarr", variable=["z"], workers=1, storage=".", overwrite=True, **DAYS)
    hourly(LATER, 72).z.assign_attrs(units="%").to_dataset(name="z").to_netcdf("b.nc", mode="w")
    with pytest.raises(
        UserError, match=r"z is in % in the sources, and '.*out.zarr' does not say whether it has no units or is in 1"
    ):
        append("b.nc")


@pytest.mark.parametrize(
    ("change", "options", "named"),
    [
        (
            lambda d: d.isel(time=slice(1, None)),
            {},
            "begin at 1979-01-04 01:00, and test .* so that 1979-01-04 00:00 has",
        ),
        (lambda d: d.isel(time=slice(None, None, 2)), {}, "a time every 2 h, .* every 1 h"),
        (lambda d: d.isel(lat=slice(5)), {}, "another grid than"),
        (lambda d: d.assign(z=d.z.assign_attrs(units="m")), {}, "z is in m in '.*b.nc' and is to be in m\\*\\*2"),
        (lambda d: d.rename(z="t"), {}, "no file has a variable 'z'"),
        (lambda d: d, {"split": "train"}, "train .* they follow on test, which ends at 1979-01-03 23:00"),
        (lambda d: d, {"new_statistics": True}, "statistics are those of the training split"),
        (
            lambda d: d.assign_coords(time=d.time.assign_attrs(calendar="noleap")),
            {},
            "the sources have the calendar noleap, .* standard",
        ),
        (lambda d: d.assign(z=d.z.where(d.z > 54_000)), {}, "there are missing values"),
    ],
)
def test_times_that_do_not_continue_the_store_are_refused(
    folder: Path, change: Change, options: dict[str, Any], named: str
) -> None:
    change(hourly(LATER, 72)).to_netcdf("b.nc", mode="w")
    before = opened(folder).digest
    with pytest.raises(UserError, match=named):
        append("b.nc", **options)
    assert opened(folder).digest == before


def test_statistics_take_new_frames_of_the_training_split_where_asked_for(folder: Path) -> None:
    days = {"test": "1979-01-01", "val": "1979-01-02", "train": "1979-01-03", "boundary": "cylinder"}
    convert(["a.nc"], "out.zarr", variable=["z"], workers=1, storage=".", overwrite=True, **days)
    before = opened(folder)
    append("b.nc", new_statistics=True)
    store = opened(folder)
    both = np.concatenate([VALUES[48:], LATER]).astype(np.float64)
    assert store.statistic("mean")[0] == pytest.approx(both.mean(), rel=1e-12)
    assert store.statistic("std")[0] == pytest.approx(both.std(), rel=1e-12)
    assert (store.statistic("min")[0], store.statistic("max")[0]) == (both.min(), both.max())
    assert store.as_of(before.digest).attributes["statistics"] == before.attributes["statistics"]


class NoTracking:
    """In place of MLflow, which takes seconds to start."""

    def __init__(self, *_: Any) -> None:
        self.update = self.wait = self.close = lambda *_: None


def test_runs_and_models_of_before_go_on_with_what_they_saw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_run, "RunSync", NoTracking)
    monkeypatch.setattr(single_run.Tracker, "open", NoTracking)
    storage = Storage.open(str(folder))
    config = Configuration.model_validate(
        {
            "name": "run",
            "data": {"store": "out.zarr", "variables": ["z"], "sequence_length": 4, "normalize": True},
            "model": {"architecture": "convgru", "hidden_size": 2, "layers": 1},
            "train": {"epochs": 2, "teacher_forcing_steps": 2},
            "validation": {"warm_up": 2, "horizon": 3},
        }
    )
    before = opened(folder)
    model = trained_model.load(save(folder / "m", config, FieldDescription.of(before, config.data)))
    windows = len(evaluate_model("m", model, storage).evaluation_set)
    single_run.run(config, storage, new=False, target=1)
    append("b.nc")
    again = evaluate_model("m", model, storage)
    assert len(again.evaluation_set) == windows
    assert again.metrics["store_digest"] == before.digest
    longer = evaluate_model("m", model, storage, store="out.zarr")
    assert len(longer.evaluation_set) > windows
    assert longer.metrics["other_data"] == []
    assert not longer.as_configured
    run = single_run.run(config, storage, new=False)
    configuration = run.read_configuration()
    assert configuration is not None
    assert configuration["store_digest"] == before.digest
    assert trained_model.load(run.model).field.store_digest == before.digest


def test_mask_and_inputs_go_on_where_times_are_appended(folder: Path) -> None:
    land = HEIGHTS > 700
    masked = VALUES.copy()
    masked[:, land] = np.nan
    hourly(masked, 0, orography=(("lat", "lon"), HEIGHTS)).to_netcdf("masked.nc")
    convert(
        ["masked.nc"], "out.zarr", variable=["z"], workers=1, storage=".", mask=True, overwrite=True, **INPUTS, **DAYS
    )
    with pytest.raises(UserError, match="have no values at other points"):
        append("b.nc")
    later = LATER.copy()
    later[:, land] = np.nan
    hourly(later, 72, orography=(("lat", "lon"), HEIGHTS)).to_netcdf("later.nc")
    append("later.nc")
    store = opened(folder)
    store.verify()
    mask_CHW = store.mask()
    assert mask_CHW is not None
    assert [mask_HW.all() for mask_HW in mask_CHW] == [False, True, True]
    assert np.array_equal(mask_CHW[0], ~land)
    convert(
        ["masked.nc", "later.nc"],
        "whole.zarr",
        variable=["z"],
        workers=1,
        storage=".",
        mask=True,
        **INPUTS,
        **(DAYS | {"test": "1979-01-03:1979-01-05"}),
    )
    assert store.digest == FieldStore.open(LocalFolder(folder / "whole.zarr")).digest
    gaps = hourly(later, 120).isel(time=[0, 1, 2, 8, 9, 10])
    gaps.to_netcdf("gaps.nc")
    with pytest.raises(UserError, match="the sources have a gap in time, 1979-01-06 02:00 to 1979-01-06 08:00"):
        append("gaps.nc")


def test_gaps_are_taken_where_they_are_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = opened(folder)
    later = hourly(LATER, 72)
    later.isel(time=[2, 3, 4, 5, 6, 7, *range(12, 24)]).to_netcdf("gaps.nc")
    with pytest.raises(
        UserError, match=r"1979-01-04 00:00 has to follow; where the times between are missing, .*--gaps"
    ):
        append("gaps.nc")
    with pytest.raises(UserError, match=r"comes another split of '.*': append to test"):
        append("gaps.nc", gaps=True, split="train")
    append("gaps.nc", gaps=True)
    assert "18 frames appended to test, which has 42 now in 3 segments between gaps" in capsys.readouterr().out
    store = opened(folder)
    store.verify()
    assert [store.segments(split) for split in ("train", "val", "test")] == [(0,), (0,), (0, 24, 30)]
    assert store.attributes["format_version"] == 2
    later.isel(time=slice(24, 30)).to_netcdf("next.nc")
    append("next.nc")
    longer = opened(folder)
    assert longer.segments("test") == (0, 24, 30)
    days = DAYS | {"test": "1979-01-03:1979-01-05"}
    later.isel(time=slice(30, None)).to_netcdf("rest.nc")
    append("rest.nc")
    convert(
        ["a.nc", "gaps.nc", "next.nc", "rest.nc"],
        "whole.zarr",
        variable=["z"],
        workers=1,
        storage=".",
        **INPUTS,
        **days,
    )
    whole = FieldStore.open(LocalFolder(folder / "whole.zarr"))
    assert opened(folder).digest == whole.digest
    assert opened(folder).segments("test") == whole.segments("test")
    # as it was, without the gaps that came later
    assert longer.as_of(before.digest).segments("test") == (0,)
    assert longer.as_of(before.digest).shape("test") == before.shape("test")
    assert opened(folder).as_of(store.digest).segments("test") == (0, 24, 30)


def samples(first: int, count: int) -> xr.Dataset:
    """Some of the samples, each of 6 times."""
    values = VALUES.reshape(12, 6, 6, 8)[first : first + count]
    axes = {"time": np.arange(6.0), "lat": LATITUDE, "lon": LONGITUDE}
    return xr.Dataset({"z": (("sample", "time", "lat", "lon"), values)}, axes)


@pytest.fixture
def samples_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a store of 4 + 2 + 1 samples in objects of 3, and files of 3 and 2 later ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(field_source, "CHUNK_BYTES", 6 * 192)
    monkeypatch.setattr(field_source, "SHARD_BYTES", 3 * 6 * 192)
    for name, first, count in (("a", 0, 7), ("b", 7, 3), ("c", 10, 2)):
        samples(first, count).to_netcdf(f"{name}.nc")
    convert_samples("a.nc")
    return tmp_path


def convert_samples(*files: str, store: str = "out.zarr", test: str = "1") -> None:
    splits = {"train": "4", "val": "2", "test": test, "boundary": "zeros"}
    convert([*files], store, workers=1, storage=".", **splits)


def test_samples_become_part_of_the_split_that_is_named(
    samples_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = opened(samples_folder)
    values = VALUES.reshape(12, 6, 1, 6, 8)
    with pytest.raises(UserError, match=r"has samples: name the split .* by --split"):
        append("b.nc")
    append("b.nc", split="train", new_statistics=True)
    assert "3 samples appended to train, which has 7 now; digest" in capsys.readouterr().out
    store = opened(samples_folder)
    store.verify()
    expected = np.concatenate([values[:4], values[7:10]])
    assert np.array_equal(store.load("train"), expected)
    assert store.sample_numbers("train").tolist() == [0, 1, 2, 3, 7, 8, 9]
    assert store.statistic("mean")[0] == pytest.approx(expected.mean(dtype=np.float64), rel=1e-12)
    with xr.open_zarr(samples_folder / "out.zarr", group="train") as found:
        assert found.sample.values.tolist() == [0, 1, 2, 3, 7, 8, 9]
    append("b.nc", split="train")
    assert "the same sources are appended already, nothing to do" in capsys.readouterr().out
    for file in ("a.nc", "b.nc"):
        with pytest.raises(UserError, match=f"has the samples of {file} already"):
            append(file, split="test")
    samples(10, 2).isel(time=slice(5)).to_netcdf("short.nc")
    with pytest.raises(UserError, match=r"the samples of the sources have 5 times, those of .* 6"):
        append("short.nc", split="test")
    append("c.nc", split="test")
    earlier = opened(samples_folder).as_of(before.digest)
    assert earlier.attributes["statistics"] == before.attributes["statistics"]
    for split, start, stop in (("train", 0, 4), ("val", 4, 6), ("test", 6, 7)):
        assert np.array_equal(earlier.load(split), values[start:stop])
        assert earlier.sample_numbers(split).tolist() == list(range(start, stop))
    assert earlier.manifest.objects.keys() == before.manifest.objects.keys()
    inspect("out.zarr", storage=".")
    shown = capsys.readouterr().out
    assert "b.nc appended to train: train 7, val 2, test 1 samples; new statistics" in shown


def test_samples_appended_to_the_last_split_are_those_of_a_store_made_in_one_go(samples_folder: Path) -> None:
    append("b.nc", split="test")
    append("c.nc", split="test")
    convert_samples("a.nc", "b.nc", "c.nc", store="whole.zarr", test="6")
    assert opened(samples_folder).digest == FieldStore.open(LocalFolder(samples_folder / "whole.zarr")).digest


def test_files_that_are_samples_each_are_appended_as_such(samples_folder: Path) -> None:
    for number in range(5):
        samples(number, 1).isel(sample=0).to_netcdf(f"one{number}.nc")
    splits = {"train": "1", "val": "1", "test": "1", "boundary": "zeros", "files_are_samples": True, "overwrite": True}
    convert([f"one{n}.nc" for n in range(3)], "out.zarr", workers=1, storage=".", **splits)
    append("one3.nc", "one4.nc", split="val")
    assert np.array_equal(opened(samples_folder).load("val"), VALUES.reshape(12, 6, 1, 6, 8)[[1, 3, 4]])


def forget(folder: Path, *path: str) -> str:
    """Take an attribute from the store, as one of an earlier version lacks it; returns its document of before."""
    root = folder / "out.zarr/zarr.json"
    before = root.read_text()
    document = json.loads(before)
    *above, name = "attributes", *path
    del functools.reduce(operator.getitem, above, document)[name]
    document["attributes"]["sha256"] = root_digest(document)
    root.write_text(json.dumps(document))
    return before


@pytest.mark.parametrize("is_older", [False, True])
def test_samples_are_appended_whose_dimensions_have_no_names(samples_folder: Path, is_older: bool) -> None:
    values = VALUES.reshape(12, 6, 6, 8)
    for name, part in (("a", values[:7]), ("b", values[7:])):
        write_hdf5(f"{name}.hdf5", {"t0/density": part, "t1/velocity": np.stack([part, part + 1], -1)})
    dimensions = {role: f"dim_{n}" for n, role in enumerate(("sample", "time", "row", "column", "level"))}
    options: dict[str, Any] = {f"{role}_dimension": name for role, name in dimensions.items()}
    options |= {"variable": ["t0/density", "t1/velocity@1"], "overwrite": True}
    splits = {"train": "4", "val": "2", "test": "1", "boundary": "zeros"}
    convert(["a.hdf5"], "out.zarr", workers=1, storage=".", **splits, **options)
    if is_older:
        forget(samples_folder, "recipe", "roles")
    append("b.hdf5", split="test")
    assert np.array_equal(opened(samples_folder).load("test"), np.stack([values[6:], values[6:] + 1], 2))


@pytest.mark.parametrize("is_older", [False, True])
def test_files_with_one_level_that_are_samples_are_appended(samples_folder: Path, is_older: bool) -> None:
    for number in range(4):
        part = samples(number, 1).isel(sample=0).expand_dims(level=[500.0], axis=1)
        part.to_netcdf(f"one{number}.nc")
    splits: dict[str, Any] = {"train": "1", "val": "1", "test": "1", "boundary": "zeros", "files_are_samples": True}
    files = [f"one{n}.nc" for n in range(3)]
    convert(files, "out.zarr", workers=1, storage=".", overwrite=True, **splits)
    if is_older:
        forget(samples_folder, "recipe", "roles")
        convert(files, "out.zarr", workers=1, storage=".", **splits)  # is complete
    append("one3.nc", split="val")
    assert np.array_equal(opened(samples_folder).load("val"), VALUES.reshape(12, 6, 1, 6, 8)[[1, 3]])


def test_units_of_levels_are_named_where_the_store_is_older_than_those(folder: Path) -> None:
    def at_level(part: xr.Dataset, level: float, units: str) -> xr.Dataset:
        return part.z.expand_dims(level=[level], axis=1).assign_coords(level=("level", [level], {"units": units}))

    at_level(hourly(VALUES, 0), 500.0, "hPa").to_dataset(name="z").to_netcdf("levels.nc")
    convert(["levels.nc"], "out.zarr", variable=["z@500"], workers=1, storage=".", overwrite=True, **DAYS)
    at_level(hourly(LATER, 72), 50_000.0, "Pa").to_dataset(name="z").to_netcdf("b.nc", mode="w")
    newer = forget(folder, "level_units")
    with pytest.raises(UserError, match=r"z in '.*b.nc' has no level 500; there are 50000 Pa"):
        append("b.nc")
    (folder / "out.zarr/zarr.json").write_text(newer)
    append("b.nc")
    assert np.array_equal(opened(folder).load("test")[0, 24:, 0], LATER)


def test_samples_whose_times_are_in_other_units_are_appended(samples_folder: Path) -> None:
    def timed(first: int, count: int, step: float, units: str) -> xr.Dataset:
        return samples(first, count).assign_coords(time=("time", np.arange(6) * step, {"units": units}))

    timed(0, 7, 0.5, "s").to_netcdf("s.nc")
    timed(7, 1, 500.0, "ms").to_netcdf("ms.nc")
    timed(7, 1, 0.5, "ms").to_netcdf("other.nc")
    splits = {"train": "4", "val": "2", "test": "1", "boundary": "zeros"}
    convert(["s.nc"], "out.zarr", workers=1, storage=".", overwrite=True, **splits)
    with pytest.raises(UserError, match=r"the sources have a time every 0.5 ms, '.*out.zarr' every 0.5 s"):
        append("other.nc", split="test")
    append("ms.nc", split="test")
    assert np.array_equal(opened(samples_folder).load("test"), VALUES.reshape(12, 6, 1, 6, 8)[6:8])


def test_files_of_one_time_are_appended(folder: Path) -> None:
    for n in range(2):
        hourly(LATER, 72).isel(time=n).to_netcdf(f"one{n}.nc")
    append("one0.nc", "one1.nc")
    assert np.array_equal(opened(folder).load("test")[0, 24:, 0], LATER[:2])


def on_projection(values: np.ndarray, first: int, units: str, spacing: float) -> xr.Dataset:
    axes = {name: (name, spacing * np.arange(size), {"units": units}) for name, size in (("y", 6.0), ("x", 8.0))}
    return hourly(values, first).drop_vars(["lat", "lon"]).rename(lat="y", lon="x").assign_coords(axes)


def test_coordinates_of_a_projection_are_compared_in_their_units(folder: Path) -> None:
    on_projection(VALUES, 0, "m", 5000.0).to_netcdf("m.nc")
    splits = DAYS | {"boundary": "zeros"}
    convert(["m.nc"], "out.zarr", variable=["z"], workers=1, storage=".", overwrite=True, **splits)
    on_projection(LATER, 72, "km", 5000.0).to_netcdf("far.nc")
    with pytest.raises(UserError, match=r"another grid than '.*out.zarr': y and x differ$"):
        append("far.nc")
    on_projection(LATER, 72, "km", 5.0).to_netcdf("km.nc")
    newer = forget(folder, "grid_units")
    with pytest.raises(UserError, match=r"y and x differ; they are in km, and the store does not say in which units"):
        append("km.nc")
    (folder / "out.zarr/zarr.json").write_text(newer)
    append("km.nc")
    assert np.array_equal(opened(folder).load("test")[0, 24:, 0], LATER)
    assert opened(folder).coordinate("height")[1] == 5000.0


def test_anomalies_are_appended_without_an_offset_where_only_the_store_says_that_they_are_some(folder: Path) -> None:
    def anomalies(values: np.ndarray, first: int, **attributes: str) -> xr.Dataset:
        part = hourly(values, first)
        return part.assign(z=part["z"].assign_attrs(attributes))

    anomalies(VALUES, 0, units="K", long_name="temperature anomaly").to_netcdf("k.nc")
    convert(["k.nc"], "out.zarr", variable=["z"], workers=1, storage=".", overwrite=True, **DAYS)
    anomalies(LATER, 72, units="degC").to_netcdf("c.nc")
    append("c.nc")
    assert np.array_equal(opened(folder).load("test")[0, 24:, 0], LATER)
