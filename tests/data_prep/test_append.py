"""Later times appended to a series: the same bytes as a store made in one go, whatever happens on the way."""

from __future__ import annotations

import json
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
from mcrnn.errors import UserError
from mcrnn.evaluation.result import evaluate_model
from mcrnn.models import trained_model
from mcrnn.runners import single_run
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
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
    with pytest.raises(UserError, match=r"z is in % in the sources and has no units in '.*out.zarr'"):
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
