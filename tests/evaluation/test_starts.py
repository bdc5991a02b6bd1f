"""Series of any time step and calendar are evaluated and promoted."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

import data_prep.convert
from mcrnn.config.sections import Configuration, DataConfig
from mcrnn.data.checks import check_store_serves
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.starts import overlap_of
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking import registry
from mcrnn.tracking.mlflow_client import client_of, tracking_uri
from tests.commands.test_commands import CONFIGURATION
from tests.conftest import CommandRunner
from tests.data_prep.test_netcdf import convert, field, write
from tests.support.registered_models import register, save

WARM_UP, HORIZON = 2, 3
MONTHS = (np.datetime64("2000-01") + np.arange(120)).astype("datetime64[D]").astype(float)
SERIES = {
    "weekly": (np.arange(314) * 7.0, "standard", ("2000:2003", "2004", "2005")),
    "monthly": (MONTHS - MONTHS[0], "standard", ("2000:2005", "2006:2007", "2008:2009")),
    "360-day": (np.arange(360.0 * 3), "360_day", ("2000", "2001", "2002")),
    "10-minute": (np.arange(864.0) / 144, "standard", ("2000-01-01:2000-01-03", "2000-01-04", "2000-01-05:2000-01-06")),
}
"""days since 2000-01-01, calendar and splits"""


@pytest.fixture
def storage(root: Path) -> Storage:
    """The storage root, opened."""
    return Storage.open(str(root))


def make_store(command: CommandRunner, root: Path, kind: str) -> FieldStore:
    days, calendar, splits = SERIES[kind]
    walk = (field(len(days)) - 54_000).cumsum(0)  # a random walk, of which persistence is the best forecast
    write(root / "z.nc", walk, days, units="days since 2000-01-01", calendar=calendar)
    named = [
        word for name, dates in zip(("train", "val", "test"), splits, strict=True) for word in (f"--{name}", dates)
    ]
    convert(command, "z.nc", "data/z.zarr", "--variable", "z", "--boundary", "cylinder", *named)
    return FieldStore.open(LocalFolder(root / "data/z.zarr"))


@pytest.mark.parametrize(
    ("kind", "rule", "count"),
    [
        # 52 weeks, or 24 months, less the 5 frames that the last window takes after its first
        ("weekly", "all", 53 - 5),
        ("monthly", "all", 24 - 5),
        # 360 days have 51 weeks and 3 days; one of the starts lacks room
        ("360-day", "biweekly", 102),
        # Wednesday and Thursday: a single start, so windows one after the other are taken
        ("10-minute", "one after the other", 2 * 144 // 6),
    ],
)
def test_every_time_step_has_windows(command: CommandRunner, root: Path, kind: str, rule: str, count: int) -> None:
    store = make_store(command, root, kind)
    found = EvaluationSet.of(store, DataConfig(store="data/z.zarr"), warm_up=WARM_UP, horizon=HORIZON)
    assert found.starts == rule
    assert len(found) == pytest.approx(count, abs=1)
    assert found.climatology.at(found.windows[1], slice(0, 6)).isfinite().all()


def test_overlap_is_that_of_the_starts() -> None:
    def overlap(starts: list[int], samples: list[int] | None = None) -> float | None:
        start = torch.tensor(starts)
        return overlap_of((torch.zeros_like(start) if samples is None else torch.tensor(samples), start), 9)

    assert overlap([0, 1, 2, 3]) == 10
    assert overlap([0, 4, 8]) == 2.5
    assert overlap([0, 10, 20]) == 1
    assert overlap([0, 30]) == 1
    assert overlap([0, 0, 0], [0, 1, 2]) is None
    assert overlap([5]) == 10


def test_no_start_crosses_a_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = np.delete(np.arange(4 * 60) / 4, [*range(40, 47), 130, *range(200, 212)])  # at 6-hourly intervals
    write(tmp_path / "z.nc", field(len(days)), days, units="days since 2001-01-01")
    splits = {"train": "2001-01-01:2001-01-20", "val": "2001-01-21:2001-01-25", "test": "2001-01-26:2001-02-28"}
    data_prep.convert.convert(
        [str(tmp_path / "z.nc")], "z.zarr", **splits, boundary="cylinder", workers=1, storage=str(tmp_path)
    )
    assert "the series has 3 gaps (2001-01-10 18:00 to 2001-01-12 18:00, 2001-02-02 06:00 to 2001-02-02 18:00" in (
        capsys.readouterr().out
    )
    store = FieldStore.open(LocalFolder(tmp_path / "z.zarr"))
    data = FieldData.load(store, DataConfig(store="z.zarr"))
    assert (data.train_segments, data.val_segments, store.segments("test")) == ((0, 40), (0,), (0, 30, 99))
    long = CONFIGURATION | {"data": {"store": "z.zarr", "sequence_length": 40}}
    with pytest.raises(UserError, match=r"needs 41 frames without a gap in time, and the longest of the 2 .* has 40"):
        check_store_serves(store, Configuration.model_validate(long))
    dates = store.dates("test")
    assert dates is not None
    windows = {}
    for rule in ("all", "every 4", "biweekly", "apart"):
        found = EvaluationSet.of(
            store, DataConfig(store="z.zarr"), warm_up=WARM_UP, horizon=HORIZON, split="test", starts=rule
        )
        windows[rule] = found.windows[1].tolist()
        for start in windows[rule]:
            assert dates[start + WARM_UP + HORIZON] - dates[start] == datetime.timedelta(hours=6 * (WARM_UP + HORIZON))
        overlap = {"all": 6.0, "every 4": 1.5, "apart": 1.0}.get(rule)
        assert overlap is None or found.overlap == overlap
    assert len(windows["all"]) == 123 - 3 * 5
    assert windows["every 4"] == [*range(0, 25, 4), *range(30, 94, 4), *range(99, 118, 4)]
    assert all(dates[start + 1].hour == 0 and dates[start + 1].dayofwk in (0, 3) for start in windows["biweekly"])


@pytest.mark.soak
@pytest.mark.integration
@pytest.mark.usefixtures("database")
def test_models_of_weekly_data_are_promoted(command: CommandRunner, root: Path, storage: Storage) -> None:
    store = make_store(command, root, "weekly")
    changes = {
        "data": {"store": "data/z.zarr"},
        "model": {"architecture": "minconvgru", "hidden_size": 4, "layers": 1, "prediction": "increment"},
        "validation": {"warm_up": WARM_UP, "horizon": HORIZON},
    }
    config = Configuration.model_validate(CONFIGURATION | changes)
    described = FieldDescription.of(store, config.data)
    for number, scale in enumerate((1e6, 0.0), start=1):
        register(storage, "w", save(root / f"models/{number}", config, described, scale))
    unknown = command("mcrnn.promote", "w", "--starts", "sometimes")
    assert unknown.returncode == 2
    assert "--starts is all, 'every N', biweekly or apart" in unknown.stderr
    nowhere = command("mcrnn.promote", "w", "--region", "10/0/5/20")
    assert nowhere.returncode == 2
    assert "--region 10/0/5/20 holds no grid point" in nowhere.stderr
    promoted = command("mcrnn.promote", "w", "--starts", "every 2", "--region", "80/170/-20/-170")
    assert promoted.returncode == 0, promoted.stderr
    assert "24 windows; comparison 1 on this test split" in promoted.stdout
    client = client_of(tracking_uri(storage))
    assert registry.champion(client, "w") == 2
    moved = registry.champion_history(client, "w")[-1]
    assert (moved["tried"], moved["region"], moved["starts"]) == (1, "80/170/-20/-170", "every 2")


@pytest.mark.usefixtures("database")
def test_every_comparison_on_a_test_split_is_counted_once(storage: Storage) -> None:
    from mcrnn.tracking import tries

    client = client_of(tracking_uri(storage))
    for name in ("a", "b"):
        client.create_registered_model(name)
    asked = {"store_digest": "d", "candidate": 2, "champion": 1, "starts": "all", "margin": 0.0}
    key, number = tries.number_try(client, "a", asked)
    assert number == 1
    tries.note_outcome(client, "a", key, asked, {"outcome": "not better"})
    assert tries.number_try(client, "a", asked) == (key, 1)  # the same question again
    assert tries.number_try(client, "b", asked)[1] == 2  # another model on the same test split
    assert tries.number_try(client, "a", asked | {"starts": "every 4"})[1] == 3
    assert tries.number_try(client, "a", asked | {"store_digest": "e"})[1] == 1
    # a promotion that was recorded before comparisons were numbered
    client.set_registered_model_tag("a", registry.CHANGE_TAG + "20250101T000000.0Z", '{"rmse_candidate": 1}')
    assert tries.number_try(client, "a", asked | {"candidate": 3})[1] == 5


def test_biweekly_is_refused_where_frames_have_no_such_day(command: CommandRunner, root: Path) -> None:
    store = make_store(command, root, "weekly")  # 2000-01-01 was a Saturday
    with pytest.raises(UserError, match="no Monday or Thursday of the test split"):
        EvaluationSet.of(store, DataConfig(store="x"), warm_up=WARM_UP, horizon=HORIZON, starts="biweekly")
