"""Channels of different units: figures by channel everywhere, and none that averages them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scores.continuous import additive_bias, mae, rmse

from mcrnn.data.sphere import latitude_weights
from mcrnn.data.store import FieldStore
from mcrnn.models import trained_model
from mcrnn.storage.local import LocalFolder
from tests.conftest import CommandRunner
from tests.data_prep.test_netcdf import LATITUDE, convert, field, write
from tests.reports.test_evaluation_report import save

WARM_UP, HORIZON = 2, 3
DAYS = ("--train", "1979-01-01:1979-01-20", "--val", "1979-01-21:1979-01-24", "--test", "1979-01-25:1979-02-09")


@pytest.fixture
def two_units(command: CommandRunner, root: Path) -> FieldStore:
    """A series on a globe with z in m2 s-2 and t in K, every 6 hours."""
    hours = 6.0 * np.arange(40 * 4)
    write(root / "z.nc", field(len(hours), 1), hours)
    write(root / "t.nc", 280 + field(len(hours), 2) / 3_000, hours, name="t", field_units="K")
    variables = ("--variable", "z", "--variable", "t", "--boundary", "cylinder")
    convert(command, "z.nc", "t.nc", "data/two.zarr", *variables, *DAYS)
    return FieldStore.open(LocalFolder(root / "data/two.zarr"))


@pytest.mark.usefixtures("database")
def test_errors_of_different_units_are_by_channel_and_those_of_the_library_scores(
    command: CommandRunner, root: Path, two_units: FieldStore
) -> None:
    save(root / "runs/two/model", two_units, data={"coarsen": 1}, channel_weights={"z": 3})
    arguments = (
        "--warm-up",
        str(WARM_UP),
        "--horizon",
        str(HORIZON),
        "--save-forecasts",
        "all",
        "--out",
        "reports/two",
    )
    regions = ("--region", "pacific=60/130/-20/-130", "--region", "south=-40/-180/-90/180")
    result = command("mcrnn.evaluate", "runs/two", *arguments, *regions, "--starts", "every 3")
    assert result.returncode == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "over the standard deviation of each channel" in shown
    assert "(normalised errors weighted z 3)" in shown
    assert "RMSE by channel" in shown
    out = root / "reports/two"
    (metrics,) = json.loads((out / "metrics.json").read_text())
    for name in ("rmse_closed_loop", "mae_closed_loop", "rmse_by_lead_time", "rmse_closed_loop_interval"):
        assert metrics[name] is None
        assert metrics["baselines"]["persistence"].get(name) is None
    assert metrics["rmse_closed_loop_normalized_interval"] is not None
    assert [channel["units"] for channel in metrics["channels"].values()] == ["m**2 s**-2", "K"]

    # all figures again, from the forecasts, by a library of the Australian Bureau of Meteorology
    saved = xr.open_zarr(out / "forecasts.zarr").load().astype(np.float64)
    weights = xr.DataArray(latitude_weights(LATITUDE), dims="height")
    forecast, kept = saved.forecast.isel(model=0), {"preserve_dims": ["lead_time", "channel"]}
    area = {"weights": weights, **kept}
    expected = {
        "rmse": rmse(forecast, saved.truth, **kept),
        "mae": mae(forecast, saved.truth, **kept),
        "bias": additive_bias(forecast, saved.truth, **area),
        "rmse_latitude_weighted": rmse(forecast, saved.truth, **area),
        "mae_latitude_weighted": mae(forecast, saved.truth, **area),
    }
    persistence = saved.given.isel(given_frame=-1).rename(input_channel="channel")
    dataset = xr.open_dataset(out / "metrics.nc")
    assert dataset.rmse.dims == ("forecast", "lead_time", "channel")
    assert list(dataset.forecast.values) == ["runs/two", "persistence", "climatology"]
    assert list(dataset.channel_units.values) == ["m**2 s**-2", "K"]
    for name, values in expected.items():
        values_TC = values.transpose("lead_time", "channel").to_numpy()
        assert np.allclose(dataset[name].sel(forecast="runs/two"), values_TC, rtol=1e-6, atol=1e-9), name
        for i, errors in enumerate(metrics["channels"].values()):
            assert np.allclose(errors[f"{name}_by_lead_time"], values_TC[:, i], rtol=1e-6, atol=1e-9), name
    held = rmse(persistence, saved.truth, **area).transpose("lead_time", "channel")
    assert np.allclose(dataset.rmse_latitude_weighted.sel(forecast="persistence"), held, rtol=1e-6)
    normalized = np.sqrt(np.average(((held.values[1:] / metrics["std"]) ** 2).mean(0), weights=[3, 1]))
    stated = metrics["baselines"]["persistence"]["rmse_closed_loop_normalized_latitude_weighted"]
    assert stated == pytest.approx(normalized, rel=1e-6)
    by_window = ((forecast - saved.truth) ** 2).isel(lead_time=slice(1, None)).mean(("lead_time", "height", "width"))
    assert np.allclose(dataset.mse_by_window.sel(forecast="runs/two"), by_window, rtol=1e-6)
    by_area = (
        ((forecast - saved.truth) ** 2 * weights).isel(lead_time=slice(1, None)).mean(("lead_time", "height", "width"))
    )
    assert np.allclose(dataset.mse_by_window_latitude_weighted.sel(forecast="runs/two"), by_area, rtol=1e-6)
    # Parseval: the power at all zonal wavenumbers is the mean square, by area
    assert dataset.power_of_error.dims == ("forecast", "lead_time", "channel", "wavenumber")
    mean_square = dataset.power_of_error.sel(forecast="runs/two").sum("wavenumber")
    assert np.allclose(mean_square, dataset.rmse_latitude_weighted.sel(forecast="runs/two") ** 2, rtol=1e-10)
    truth_square = (saved.truth**2 * weights).mean(("window", "height", "width"))
    assert np.allclose(dataset.power_of_truth.sum("wavenumber"), truth_square, rtol=1e-6)
    assert dataset.initial_time.values[0] == np.datetime64("1979-01-25T06:00")

    # the first region goes across the date line: 135, 180 and 225 degrees east of Greenwich
    assert list(dataset.region.values) == ["pacific", "south"]
    assert list(dataset.region_edges.values) == ["60/130/-20/-130", "-40/-180/-90/180"]
    for name, points in {
        "pacific": {"height": [2, 3, 4], "width": [3, 4, 5]},
        "south": {"height": [0, 1], "width": range(8)},
    }.items():
        inside = metrics["regions"][name]
        assert inside["grid_points"] == len(points["height"]) * len(points["width"])
        parts = [field.isel(points) for field in (forecast, saved.truth)]
        in_region = {"weights": weights.isel(height=points["height"]), **kept}
        for metric, found in {
            "rmse": rmse(*parts, **kept),
            "rmse_latitude_weighted": rmse(*parts, **in_region),
            "mae_latitude_weighted": mae(*parts, **in_region),
            "bias": additive_bias(*parts, **in_region),
        }.items():
            values_TC = found.transpose("lead_time", "channel").to_numpy()
            kept_TC = dataset[f"{metric}_by_region"].sel(forecast="runs/two", region=name)
            assert np.allclose(kept_TC, values_TC, rtol=1e-6, atol=1e-9), (name, metric)
            stated = [channel[f"{metric}_by_lead_time"] for channel in inside["channels"].values()]
            assert np.allclose(np.transpose(stated), values_TC, rtol=1e-6, atol=1e-9), (name, metric)
    in_regions = list(csv.DictReader((out / "metrics_by_region.csv").open()))
    assert len(in_regions) == 2 * 3 * 2 * (HORIZON + 1)
    assert in_regions[0]["edges"] == "60/130/-20/-130"
    assert "| pacific (60/130/-20/-130) | z |" in (out / "table.md").read_text()

    rows = list(csv.DictReader((out / "metrics_by_channel.csv").open()))
    assert len(rows) == 3 * 2 * (HORIZON + 1)
    row = next(r for r in rows if (r["forecast"], r["channel"], r["lead_time"]) == ("runs/two", "t", "2"))
    assert row["units"] == "K"
    assert float(row["acc"]) == pytest.approx(metrics["channels"]["t"]["acc_by_lead_time"][1], rel=1e-6)
    assert "| t | K |" in (out / "table.md").read_text()
    assert (out / "table.tex").read_text().count(r"\begin{tabular}") == 3
    page = (out / "report.html").read_text()
    assert "By channel" in page
    assert "By region" in page
    assert "pacific (60/130/-20/-130): z [m**2 s**-2]" in page
    assert 'id="rmse_by_channel"' in page
    for figure in ("rmse_by_region", "rmse_by_date", "zonal_spectra"):
        assert f'id="{figure}"' in page
    assert 'id="acc"' in page

    # the leaderboard ranks by the error that promotions compare
    lengths = ("--warm-up", str(WARM_UP), "--horizon", str(HORIZON), "--starts", "every 3")
    ranked = command("mcrnn.leaderboard", "data/two.zarr", *lengths, "--out", "board")
    assert ranked.returncode == 0, ranked.stderr
    board = json.loads((root / "board/leaderboard.json").read_text())
    assert (
        "closed-loop RMSE over the standard deviation, weighted by area, channels weighted z 3, test split"
        in board["title"]
    )
    found = {row["model"]: row["error"] for row in board["rows"]}
    key = "rmse_closed_loop_normalized_latitude_weighted"
    assert found["runs/two"] == pytest.approx(metrics[key], rel=1e-9)
    assert found["persistence"] == pytest.approx(metrics["baselines"]["persistence"][key], rel=1e-9)


def test_units_of_channels_are_those_of_the_store_where_it_says(two_units: FieldStore) -> None:
    def units(*known: str, joined: str = "m2 s-2, K") -> list[str]:
        two_units.attributes.update(channel_units=list(known), units=joined)
        return two_units.units_of(("t", "z"))

    assert two_units.units_of(("t", "z")) == ["K", "m**2 s**-2"]
    assert units("m2 s-2", "K") == ["K", "m2 s-2"]
    assert units() == ["K", "m2 s-2"]  # a store of before
    assert units(joined="K") == ["K", "K"]
    assert units(joined="a, b, c") == ["a, b, c"] * 2  # it cannot be told


@pytest.mark.soak
@pytest.mark.usefixtures("database")
def test_a_model_that_blows_up_is_named_so_and_one_window_has_no_interval(
    command: CommandRunner, root: Path, store: FieldStore
) -> None:
    save(root / "runs/wild/model", store, scale=40.0)
    series = root / "data/one.zarr"
    made = ("--train=2", "--val=1", "--test=1", "--frames=14", "--resolution=16", "--seed=2")
    assert command("data_prep.navier_stokes", str(series), *made).returncode == 0
    arguments = ("--store", str(series), "--other-data", "--warm-up=3", "--horizon=10", "--out", "out")
    result = command("mcrnn.evaluate", "runs/wild", *arguments, COLUMNS="200")
    assert result.returncode == 0, result.stderr
    assert "minconvgru (blows up at lead time" in result.stdout
    assert "too few for a confidence interval" in result.stdout
    (metrics,) = json.loads((root / "out/metrics.json").read_text())
    assert metrics["rmse_closed_loop_interval"] is None
    assert "(blows up at lead time" in (root / "out/table.md").read_text()
    assert trained_model.load(LocalFolder(root / "runs/wild/model"))
