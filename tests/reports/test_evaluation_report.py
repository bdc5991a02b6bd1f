"""Evaluation sets, baselines and the report, through the command as a user runs it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from mcrnn.config.sections import Configuration, DataConfig
from mcrnn.data.description import FieldDescription
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation.climatology import Climatology
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.scoring import score
from mcrnn.models import trained_model
from mcrnn.models.forecaster import build_model
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.commands.test_commands import CONFIGURATION, refused
from tests.conftest import CommandRunner
from tests.data_prep.test_netcdf import LATITUDE, SPLITS, convert, field, write, yearly  # noqa: F401  a fixture

pytestmark = pytest.mark.usefixtures("database")

MODEL = {"architecture": "minconvgru", "hidden_size": 4, "layers": 1, "prediction": "increment"}


def save(
    folder: Path,
    store: FieldStore,
    *,
    scale: float = 0.1,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    channel_weights: dict[str, float] | None = None,
    **model: Any,
) -> None:
    """A model with random weights, the decoder's times `scale`; of increments, so that 0 is persistence."""
    content = CONFIGURATION | {
        "data": {"store": f"data/{store.name.rsplit('/', 1)[-1]}", "coarsen": 2} | (data or {}),
        "model": MODEL | model,
        "train": {"seed": seed},
        "validation": CONFIGURATION["validation"] | {"channel_weights": channel_weights},
    }
    config = Configuration.model_validate(content)
    described = FieldDescription.of(store, config.data)
    torch.manual_seed(seed)
    network = build_model(config.model, described.frame_shape, described.padding)
    with torch.no_grad():
        for weight in network.decoder.parameters():
            weight.mul_(scale)
    trained_model.save(LocalFolder(folder), config, described, network.state_dict())


@pytest.fixture
def series(command: CommandRunner, root: Path, yearly: tuple[Path, np.ndarray]) -> FieldStore:  # noqa: F811
    convert(command, f"{yearly[0]}/*.nc", "data/z.zarr", "--variable", "z", "--boundary", "cylinder", *SPLITS)
    return FieldStore.open(LocalFolder(root / "data/z.zarr"))


# -------------------------------------------------------------------------------- evaluation sets and baselines


def test_windows_of_a_series_start_as_the_rule_says(series: FieldStore) -> None:
    data = DataConfig(store="data/z.zarr", coarsen=2)

    def starts(rule: str | None) -> np.ndarray:
        return EvaluationSet.of(series, data, warm_up=8, horizon=20, starts=rule).windows[1].numpy()

    dates = series.dates("test")
    assert dates is not None
    frames = len(dates)
    biweekly = starts(None)
    last_given = [dates[start + 7] for start in biweekly]
    assert {date.strftime("%a %H:%M") for date in last_given} == {"Mon 00:00", "Thu 00:00"}
    assert len(biweekly) == pytest.approx(184 / 3.5, abs=3)
    assert np.array_equal(starts("all"), np.arange(frames - 28))
    assert np.array_equal(starts("every 40"), np.arange(0, frames - 28, 40))
    assert np.array_equal(starts("apart"), np.arange(0, frames - 28, 29))
    with pytest.raises(UserError, match="not 'sometimes'"):
        starts("sometimes")


def test_rule_for_series_is_refused_for_samples(store: FieldStore) -> None:
    with pytest.raises(UserError, match="has samples, each evaluated from its first frame"):
        EvaluationSet.of(store, DataConfig(store="x"), warm_up=4, horizon=5, starts="all")


def test_climatology_of_dates_knows_the_season_and_the_hour(command: CommandRunner, root: Path) -> None:
    # a field that depends on the day of the year and the hour: the mean over 31 days takes nothing off the hour, and
    # of the season's wave sin(31 w) / (31 sin(w)) with w half a day, which is 0.988
    folder = root / "seasons"
    folder.mkdir()
    hours = 6.0 * np.arange(1096 * 4)
    wave = 100 * np.sin(2 * np.pi * hours / 24 / 365.25)
    values = wave + 10 * (hours % 24) + 0 * field(len(hours)).transpose(1, 2, 0)
    write(folder / "all.nc", values.transpose(2, 0, 1).astype(np.float32), hours)
    convert(command, f"{folder}/*.nc", "data/seasons.zarr", "--variable", "z", "--boundary", "cylinder", *SPLITS)
    store = FieldStore.open(LocalFolder(root / "data/seasons.zarr"))
    climatology = Climatology.of(store, "test", DataConfig(store="x"))
    found = climatology.at(torch.tensor([0, 400]), slice(0, 8))[:, :, 0, 0, 0].numpy()
    first = (365 + 366 + 181) * 4
    for row, start in zip(found, (0, 400), strict=True):
        times = first + start + np.arange(8)
        w = np.pi / 365.25
        expected = np.sin(31 * w) / (31 * np.sin(w)) * wave[times] + 10 * (hours[times] % 24)
        assert np.allclose(row, expected, atol=1.5)  # leap years shift the days a little
    assert climatology.at(torch.tensor([0]), slice(2, 3)).shape == (1, 1, 1, 6, 8)


def test_score_depends_neither_on_the_batch_size_nor_on_the_memory(
    store: FieldStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(root / "m", store)
    model = trained_model.load(LocalFolder(root / "m"))
    model.network.double()  # in float32, some processors round a batch otherwise, and the closed loop makes that larger
    evaluation_set = EvaluationSet.of(store, model.config.data, warm_up=4, horizon=6)
    one, all_ = (score(model, evaluation_set, batch_size=size)[0] for size in (1, 4))
    assert evaluation_set.batch_size() == 32
    monkeypatch.setenv("MCRNN_MEMORY", "1e-6")
    monkeypatch.setattr("mcrnn.evaluation.metrics.VALUES_AT_A_TIME", 1)
    with_little = EvaluationSet.of(store, model.config.data, warm_up=4, horizon=6)
    assert with_little.batch_size() == 1
    little, _ = score(model, with_little)
    for name in ("squared", "absolute", "bias", "variance", "power"):
        assert np.allclose(getattr(one, name), getattr(all_, name), rtol=1e-6), name
        assert np.allclose(getattr(one, name), getattr(little, name), rtol=1e-6), name


def test_scores_on_a_sphere_are_those_of_the_forecasts(series: FieldStore, root: Path) -> None:
    save(root / "m", series)
    model = trained_model.load(LocalFolder(root / "m"))
    evaluation_set = EvaluationSet.of(series, model.config.data, warm_up=4, horizon=3, starts="every 60")
    scores, _ = score(model, evaluation_set)
    assert scores.power is not None
    assert scores.weighted is not None
    assert np.allclose(scores.power[2].sum(-1), scores.weighted.mean(0), rtol=1e-10)  # Parseval, by area
    weights = latitude_weights(LATITUDE.reshape(3, 2).mean(1))[:, None]
    for index in (0, 5):
        start = int(evaluation_set.windows[1][index])
        frames = evaluation_set.split.windows(torch.tensor([0]), torch.tensor([start]), 8)
        forecast = model.forecast(frames[:, :4], 4)[0, :, 0].double().numpy()
        truth = frames[0, 4:, 0].double().numpy()
        mean = evaluation_set.climatology.at(torch.tensor([start]), slice(4, 8))[0, :, 0].double().numpy()
        assert scores.weighted is not None
        assert scores.correlation is not None
        weighted = (weights * (forecast - truth) ** 2).mean((1, 2))
        assert np.allclose(scores.weighted[index, 3:, 0], weighted, rtol=1e-5)
        a, b = forecast - mean, truth - mean
        acc = (weights * a * b).sum((1, 2)) / np.sqrt((weights * a**2).sum((1, 2)) * (weights * b**2).sum((1, 2)))
        assert np.allclose(scores.correlation[index, 3:, 0], acc, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------- the report


def test_report_has_all_that_it_promises_and_one_bad_model_does_not_lose_the_others(
    command: CommandRunner, root: Path, store: FieldStore
) -> None:
    for seed in (1, 2):
        save(root / f"runs/gru-{seed}/model", store, seed=seed)
    save(root / "runs/lstm/model", store, architecture="convlstm")
    (root / "runs/broken/model").mkdir(parents=True)
    (root / "runs/broken/model/config.json").write_text("{}")
    arguments = ["runs/*", "runs/none", "--out", "out", "--save-forecasts", "all"]
    result = command("mcrnn.evaluate", *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "broken" in result.stderr
    assert "runs/none" in result.stderr
    assert "2 seeds" in result.stdout
    out = root / "out"
    names = {path.name for path in out.iterdir()}
    expected = {"metrics.json", "metrics.csv", "table.tex", "table.md", "forecasts.zarr", "report.html", "forecast.mp4"}
    for figure in ("rmse", "spectra", "cost_parameters", "cost_multiply_adds", "forecast_convlstm"):
        expected |= {f"{figure}.png", f"{figure}.pdf"}
    assert expected <= names
    metrics = json.loads((out / "metrics.json").read_text())
    assert {m["model"] for m in metrics} == {"runs/gru-1", "runs/gru-2", "runs/lstm"}

    # the forecasts give the figures again
    saved = xr.open_zarr(out / "forecasts.zarr").load()
    lstm = next(m for m in metrics if m["model"] == "runs/lstm")
    error = saved.forecast.sel(model="convlstm") - saved.truth
    by_lead = np.sqrt((error**2).mean(("window", "channel", "height", "width")))
    assert np.allclose(by_lead, lstm["rmse_by_lead_time"], rtol=1e-5)
    held = saved.given.isel(given_frame=-1, input_channel=0) - saved.truth.isel(channel=0)
    by_lead = np.sqrt((held**2).mean(("window", "height", "width")))
    assert np.allclose(by_lead, lstm["baselines"]["persistence"]["rmse_by_lead_time"], rtol=1e-5)
    climatology = store.load("train", 2).mean((0, 1))
    missed = np.sqrt(((saved.truth.values - climatology) ** 2).mean((0, 2, 3, 4)))
    assert np.allclose(missed, lstm["baselines"]["climatology"]["rmse_by_lead_time"], rtol=1e-5)
    lines = (out / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 6
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.count("data:image/png;base64,") == 6
    assert "2 seeds" in page

    # again: the same scores, from what was kept
    again = command("mcrnn.evaluate", "runs/gru-1", "runs/gru-2", "runs/lstm", "--out", "again")
    assert again.returncode == 0, again.stderr
    assert json.loads((root / "again/metrics.json").read_text()) == metrics


def test_evaluation_is_a_run_with_the_report_as_artifacts(
    command: CommandRunner, root: Path, store: FieldStore, shared_ray: str
) -> None:
    import mlflow

    save(root / "runs/one/model", store)
    (root / "reports/one").mkdir(parents=True)
    (root / "reports/one/private.txt").write_text("is no part of the report")
    result = command("mcrnn.evaluate", "runs/one", "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert "scoring on 2 workers with one CPU each" in result.stdout
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mcrnn-evaluations")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "metrics.json", "forecasts.zarr", "rmse.pdf", "forecast.mp4"} <= artifacts
    assert "private.txt" not in artifacts
    assert (root / "reports/one/report.html").exists()


@pytest.mark.soak
def test_report_goes_to_s3_where_the_root_is_there(
    command: CommandRunner, root: Path, store: FieldStore, s3: Any
) -> None:
    save(root / "runs/one/model", store)
    client = s3.client()
    for file in [*(root / "runs").rglob("*"), *(root / "data").rglob("*")]:
        if file.is_file():
            client.put_object(Bucket="lab", Key=f"r/{file.relative_to(root)}", Body=file.read_bytes())
    result = command("mcrnn.evaluate", "runs/o*", "--storage", "s3://lab/r")
    assert result.returncode == 0, result.stderr
    keys = {item["Key"] for item in client.list_objects_v2(Bucket="lab", Prefix="r/reports/one/")["Contents"]}
    assert "r/reports/one/report.html" in keys
    assert not (root / "reports").exists()


def test_other_data_is_refused_with_both_digests_or_said_in_the_report(
    command: CommandRunner, root: Path, store: FieldStore
) -> None:
    save(root / "runs/one/model", store)
    other = ["data/other.zarr", "--train=4", "--val=2", "--test=3", "--frames=14", "--resolution=16", "--seed=9"]
    assert command("data_prep.navier_stokes", *other).returncode == 0
    line = refused(command, "mcrnn.evaluate", "runs/one", "--store", "data/other.zarr")
    digest = FieldStore.open(LocalFolder(root / "data/other.zarr")).digest
    assert store.digest[:12] in line
    assert digest[:12] in line
    allowed = command("mcrnn.evaluate", "runs/one", "--store", "data/other.zarr", "--other-data", "--out", "out")
    assert allowed.returncode == 0, allowed.stderr
    assert "is evaluated on other data than it was trained on" in allowed.stdout
    assert "is evaluated on other data than it was trained on" in (root / "out/report.html").read_text()


def test_what_cannot_be_evaluated_is_one_line(command: CommandRunner, root: Path, store: FieldStore) -> None:
    save(root / "runs/one/model", store)
    assert "a warm-up of 10 and a horizon of 50 needs samples of 61 frames" in refused(
        command, "mcrnn.evaluate", "runs/one", "--warm-up=10", "--horizon=50"
    )
    (root / "runs/empty").mkdir()
    (root / "runs/empty/configuration.json").write_text("{}")
    assert "runs/empty" in refused(command, "mcrnn.evaluate", "runs/empty")
    assert "no model is named like 'runs/x*'" in refused(command, "mcrnn.evaluate", "runs/x*")
    assert "there is no model 'nothing' in the registry" in refused(
        command, "mcrnn.evaluate", "models:/nothing@champion"
    )
    assert "--device tpu cannot be used" in refused(command, "mcrnn.evaluate", "runs/one", "--device=tpu")
    assert "--save-forecasts is a number" in refused(command, "mcrnn.evaluate", "runs/one", "--save-forecasts=few")
    shutil.rmtree(root / "data/tiny.zarr/test/field/c")
    assert "test/field" in refused(command, "mcrnn.evaluate", "runs/one")


def test_values_that_are_not_finite_are_refused(command: CommandRunner, root: Path, store: FieldStore) -> None:
    save(root / "runs/one/model", store)
    array = zarr.open_array(root / "data/tiny.zarr/test/field", mode="r+")
    (shard,) = [path for path in (root / "data/tiny.zarr/test/field/c").rglob("*") if path.is_file()]
    content = shard.read_bytes()
    for place in itertools.product(range(4), range(14), (0,), range(0, 16, 5), range(0, 16, 5)):
        array[place] = np.nan
        if len(shard.read_bytes()) == len(content):  # so that nothing but the values gives it away
            break
        shard.write_bytes(content)
    else:
        raise AssertionError("no value leaves the size of the object as it was")
    for name in ("one", "*"):
        message = refused(command, "mcrnn.evaluate", f"runs/{name}")
        assert "test/field" in message
        assert "has values that are not finite" in message


def test_long_closed_loop_that_blows_up_is_noted(command: CommandRunner, root: Path, store: FieldStore) -> None:
    save(root / "runs/wild/model", store, scale=40.0)
    result = command("mcrnn.evaluate", "runs/wild", "--warm-up=3", "--horizon=10", "--out", "out")
    assert result.returncode == 0, result.stderr
    assert "note: runs/wild blows up at lead time" in result.stdout
    assert "blows up" in (root / "out/report.html").read_text()


def test_wildcards_name_folders_and_registered_models(root: Path, store: FieldStore) -> None:
    from mcrnn.evaluation.selection import expand

    storage = Storage.open(str(root))
    for name in ("clstm-1", "clstm-2", "gru"):
        save(root / f"runs/{name}/model", store)
    assert expand("runs/*lstm*", storage) == ["runs/clstm-1", "runs/clstm-2"]
    assert expand("runs/gru", storage) == ["runs/gru"]
    assert expand("r*/g?u", storage) == ["runs/gru"]
    with pytest.raises(UserError, match="no model is named like"):
        expand("models:/x*@champion", storage)
