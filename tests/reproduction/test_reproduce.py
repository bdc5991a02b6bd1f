"""The tables of the paper, on a tiny store: trained in parts, taken up, evaluated, and shared by processes."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from mcrnn.config.loading import load_configuration
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.errors import UserError
from mcrnn.evaluation.kept_scores import SCORES
from mcrnn.models import parameter_count
from mcrnn.reproduction import driver
from mcrnn.reproduction.estimate import Cost, RemainingTime, StopWatch, estimate, estimate_table
from mcrnn.reproduction.plan import PAPER_FILES, Setting, check_names, read_setting
from mcrnn.reproduction.table import CLOSED_LOOP, Row
from mcrnn.runners import single_run
from mcrnn.storage.lease import HeldError
from mcrnn.storage.presence import Presence
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import RunEnd, RunFolder
from mcrnn.training.session import End
from tests.commands.test_commands import CONFIGURATION, refused
from tests.conftest import CommandRunner
from tests.data_prep.test_append import NoTracking, append, folder, opened  # noqa: F401  a fixture
from tests.support.registered_models import describe, register, save

TABLE = CONFIGURATION | {
    "model": {"hidden_size": 4, "layers": 1},
    "train": {"epochs": 2, "batch_size": 2, "teacher_forcing_steps": 4, "seed": 1},
    "space": {
        "model.architecture": {"choice": ["convgru", "minconvgru"]},
        "model.decode": [{"choice": ["hidden"], "when": {"model.architecture": "convgru"}}],
        "train.seed": {"choice": [1, 2]},
    },
}


@pytest.fixture
def file(root: Path) -> str:
    """A file of two architectures and two seeds, as those of the paper are."""
    (root / "table.yaml").write_text(yaml.safe_dump(TABLE))
    return str(root / "table.yaml")


@pytest.mark.usefixtures("database")
def test_table_takes_up_what_is_trained_and_continues_the_rest(command: CommandRunner, root: Path, file: str) -> None:
    storage = Storage.open(str(root))
    register(storage, "mine", save(root / "found", *describe(root)))
    paused = load_configuration(file, ["model.architecture=convgru"])  # the second epoch is left
    history = single_run.complete(paused, storage, Console(quiet=True), new=False, target=1).read_metrics()
    single = load_configuration(file, ["model.architecture=minconvgru"])
    single_run.complete(single, storage, Console(quiet=True), new=False)

    first = command("mcrnn.reproduce", file)
    assert first.returncode == 0, first.stderr
    assert "3 of 4 trainings are to be done: about " in first.stdout
    assert "training 2 of 4, about " in first.stdout
    assert "evaluating the models of small, about " in first.stdout
    assert RunFolder(storage.location("runs/small-convgru-seed-1")).read_metrics()[0] == history[0]
    rows = {row["row"]: row for row in read_csv(root / "reports/reproduce-small/table.csv")}
    assert list(rows) == ["convgru", "minconvgru", "models:/mine@champion", "persistence", "climatology"]
    metrics = json.loads((root / "reports/reproduce-small/metrics.json").read_text())
    one, other = (each for each in metrics if each["architecture"] == "convgru")
    assert float(rows["convgru"]["rmse_closed_loop"]) == pytest.approx((one[CLOSED_LOOP] + other[CLOSED_LOOP]) / 2)
    steps = zip(one["rmse_by_lead_time"][1:], other["rmse_by_lead_time"][1:], strict=True)
    deviation = statistics.mean(abs(a - b) / 2 for a, b in steps)  # of two seeds at each step, then over the steps
    assert float(rows["convgru"]["rmse_closed_loop_std"]) == pytest.approx(deviation)
    teacher_forced = (one["rmse_teacher_forced_mean_of_steps"] + other["rmse_teacher_forced_mean_of_steps"]) / 2
    assert float(rows["convgru"]["rmse_teacher_forced"]) == pytest.approx(teacher_forced)
    persistence = metrics[0]["baselines"]["persistence"][CLOSED_LOOP]
    assert float(rows["persistence"]["rmse_closed_loop"]) == pytest.approx(persistence)
    assert "| convgru | " in (root / "reports/reproduce-small/table.md").read_text()
    assert r"\toprule" in (root / "reports/reproduce-small/table.tex").read_text()

    RunFolder(storage.location("runs/small-minconvgru-seed-2")).write_end(RunEnd(End.DIVERGED, ""))
    again = command("mcrnn.reproduce", file, "--beside", "runs/small-convgru-seed-1")
    assert again.returncode == 0, again.stderr
    assert "all 4 trainings are done" in again.stdout
    assert "epoch" not in again.stdout
    assert "1 (1 diverged)" in again.stdout
    names = [row["row"] for row in read_csv(root / "reports/reproduce-small/table.csv")]
    assert names[2] == "runs/small-convgru-seed-1"


def test_table_goes_on_with_the_frames_of_its_start_when_others_were_appended(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(single_run, "RunSync", NoTracking)
    monkeypatch.setattr(single_run.Tracker, "open", NoTracking)
    content = TABLE | {
        "data": {"store": "out.zarr", "variables": ["z"], "sequence_length": 4},
        "train": {"epochs": 2, "teacher_forcing_steps": 2},
        "validation": {"warm_up": 2, "horizon": 3},
    }
    (folder / "table.yaml").write_text(yaml.safe_dump(content))
    storage, before = Storage.open(str(folder)), opened(folder)

    def read() -> Setting:
        return read_setting("table.yaml", storage, (), ["convgru"])

    quiet = Console(quiet=True)
    single_run.complete(read().trainings[1].config, storage, quiet, new=False, target=1)
    append("b.nc")
    setting = read()
    assert [each.epochs_left for each in setting.trainings] == [2, 1]
    assert setting.store.digest == setting.identity.store_digest == before.digest != opened(folder).digest
    assert read_setting("table.yaml", storage, (), ["minconvgru"]).store.digest == before.digest
    remaining = RemainingTime([setting], [dict.fromkeys(setting.rows, Cost(1, 1, 1, 1))])
    assert list(driver._complete_one_by_one([setting], remaining, storage, quiet)) == [0]
    failures: list[str] = []
    table = driver._evaluate(setting, [], storage, failures)
    assert not failures
    assert [each["store_digest"] for each in table.metrics] == 2 * [before.digest]
    assert [each.end for each in read().trainings] == [End.FINISHED, End.FINISHED]
    # a part of the file goes on with the frames of its own start, as when its trainings were started one by one
    since = read_setting("table.yaml", storage, (), ["minconvgru"]).trainings[0]
    content = since.config.model_dump(mode="json") | {"store_digest": opened(folder).digest}
    since.folder.location.write("configuration.json", json.dumps(content).encode())
    assert read_setting("table.yaml", storage, (), ["minconvgru"]).store.digest == opened(folder).digest
    file = folder / f"runs/{setting.trainings[0].config.name}/configuration.json"
    file.write_text(file.read_text().replace(before.digest, 64 * "0"))  # as of a store that was built anew since
    with pytest.raises(UserError, match="was started with another configuration: store_digest is"):
        read()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines))


def test_files_of_the_paper_have_its_sizes_and_the_names_of_single_trainings(root: Path) -> None:
    storage = Storage.open(str(root))
    short = ("data.store=data/tiny.zarr", "data.coarsen=1", "validation.warm_up=5", "validation.horizon=8")
    frames = ("data.sequence_length=8", "train.teacher_forcing_steps=5")
    setting = read_setting(PAPER_FILES[0], storage, [*short, *frames])  # 16 x 16, as in the paper
    shape = FieldDescription.of(setting.store, setting.trainings[0].config.data).frame_shape
    sizes = {row: parameter_count(each[0].config.model, shape) for row, each in setting.rows.items()}
    expected = {"convgru": 171_813, "convlstm": 182_524, "minconvgru": 175_460, "minconvlstm": 175_449}
    assert sizes == expected | {"minconvexplstm": 175_449}
    assert [each.config.train.seed for each in setting.trainings[:6]] == [1234] * 5 + [1235]
    assert "-sequence_length-8-" in setting.trainings[0].config.name
    for path in PAPER_FILES:
        single = load_configuration(path, ["model.architecture=minconvlstm", "train.seed=1236"])
        assert single.name == f"{Path(path).stem}-minconvlstm-seed-1236"


def test_what_cannot_be_reproduced_is_refused_before_training(command: CommandRunner, root: Path, file: str) -> None:
    storage = Storage.open(str(root))
    part = read_setting(file, storage, ["train.epochs=3", "train.device=cpu"], ["minconvgru"], 1)
    assert [each.config.name for each in part.trainings] == ["small-epochs-3-minconvgru-seed-1"]
    with pytest.raises(UserError, match="has no architecture 'mincongru'; did you mean 'minconvgru'"):
        read_setting(file, storage, (), ["mincongru"])
    with pytest.raises(UserError, match="there is no store"):
        read_setting(PAPER_FILES[2], storage)
    other = load_configuration(file, ["model.architecture=convgru", "train.learning_rate=0.5"])
    part.trainings[0].folder.claim({**other.model_dump(), "store_digest": part.store.digest})
    assert "was started with another configuration" in refused(
        command, "mcrnn.reproduce", file, "--set", "train.epochs=3"
    )
    with pytest.raises(UserError, match="several of these files have a training named 'small-minconvgru-seed-1'"):
        check_names([read_setting(file, storage, (), ["minconvgru"]), read_setting(file, storage)])
    save(root / "other", *describe(root, data={"store": "data/tiny.zarr"}))
    assert "was trained on other data than small" in refused(command, "mcrnn.reproduce", file, "--beside", "other")


def test_trainings_of_another_process_are_left_to_it(root: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = read_setting(file, Storage.open(str(root)))
    other = read_setting(file, Storage.open(str(root)), ["name=other"])
    trained = []

    def complete(config: Configuration, *_: Any, **__: Any) -> None:
        if config.name == setting.trainings[0].config.name and len(trained) < 7:
            raise HeldError("another process has it")
        trained.append(config.name)

    monkeypatch.setattr(driver, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(single_run, "complete", complete)
    remaining: Any = None
    settings, storage = [setting, other], Storage.open(str(root))
    assert list(driver._complete_one_by_one(settings, remaining, storage, Console(quiet=True))) == [1, 0]
    names = [each.config.name for each in [*setting.trainings, *other.trainings]]
    assert trained == [*names[1:], names[0]]


@pytest.mark.usefixtures("database")
def test_models_are_scored_while_another_process_trains(root: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(str(root))
    setting = read_setting(file, storage, (), ["minconvgru"])
    first, complete = setting.trainings[0].config.name, single_run.complete
    kept: list[int] = []

    def complete_others(config: Configuration, *arguments: Any, **options: Any) -> None:
        if config.name == first and len(kept) < 3:
            kept.append(len(storage.location(SCORES).sizes()))
            raise HeldError("another process has it")
        complete(config, *arguments, **options)

    monkeypatch.setattr(driver, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(single_run, "complete", complete_others)
    remaining = RemainingTime([setting], [estimate(setting)])
    assert list(driver._complete_one_by_one([setting], remaining, storage, Console(quiet=True))) == [0]
    before, *after = kept
    assert before == 0
    assert after[0] == after[1] > 0


def test_row_that_another_process_has_ended_meanwhile_has_no_estimate(root: Path, file: str) -> None:
    setting = read_setting(file, Storage.open(str(root)), (), (), 1)
    cost = Cost(step_seconds=10, steps_per_epoch=50, validation_seconds=100, evaluation_seconds=30)
    costs = dict.fromkeys(setting.rows, cost)
    assert estimate_table(setting, costs).row_count == 2
    setting.trainings[0].folder.write_end(RunEnd(End.FINISHED, ""))
    assert estimate_table(setting, costs).row_count == 1


def test_table_without_a_model_is_reported_after_the_next_one(
    root: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.open(str(root))
    settings = [read_setting(file, storage, [f"name={name}"], ["convgru"], 1) for name in ("one", "other")]
    settings[0].trainings[0].folder.write_end(RunEnd(End.DIVERGED, ""))
    settings[1].trainings[0].folder.write_end(RunEnd(End.FINISHED, ""))  # and its model is missing
    monkeypatch.setattr(driver, "is_synced", lambda _: True)
    diverged, missing = driver.reproduce(settings, "r", storage)
    assert diverged.startswith("all trainings of one diverged")
    assert missing.startswith("no model of other can be loaded:\n")
    assert not (root / "reports").exists()


def test_preview_measures_and_writes_nothing(root: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage.open(str(root))
    before = sorted(root.rglob("*"))
    assert driver.reproduce([read_setting(file, storage, (), (), 1)], "r", storage, preview=True) == []
    assert "2 of 2 trainings are to be done: about " in capsys.readouterr().out
    assert sorted(root.rglob("*")) == before


def test_time_left_follows_from_steps_and_is_corrected_by_what_trainings_took(root: Path, file: str) -> None:
    watch = StopWatch()
    watch.times, watch.reported = [0.0, 5.0, 6.0, 7.0, 8.0], 11.0
    assert (watch.step_seconds, watch.validation_seconds) == (1.0, 3.0)  # the first two steps are slow
    watch.times = [0.0]  # diverged at the first step
    assert watch.step_seconds == 11.0
    setting = read_setting(file, Storage.open(str(root)))
    cost = Cost(step_seconds=10, steps_per_epoch=50, validation_seconds=100, evaluation_seconds=30)
    remaining = RemainingTime([setting], [dict.fromkeys(setting.rows, cost)])
    assert remaining.seconds(setting.trainings) == 4 * 2 * 600
    assert remaining.describe() == "about 82 min"
    assert remaining.describe_evaluation(setting) == "evaluating the models of small, about 120 s"
    remaining.training.note(1200, 2400)
    assert remaining.describe() == "about 164 min"
    remaining.evaluation.note(60, 600)
    assert remaining.describe() == "about 180 min"
    remaining.note_evaluation(setting, 1800)
    assert remaining.describe() == "about 160 min"
    assert remaining.describe_evaluation(setting) == "evaluating the models of small, about 27 min"
    failed = RemainingTime([setting], [dict.fromkeys(setting.rows, cost)])
    failed.note_evaluation(setting, None)
    assert failed.describe() == "about 80 min"
    first, *others = setting.rows
    for row in others:  # they were trained, and perhaps evaluated, before
        for training in setting.rows[row]:
            training.folder.write_end(RunEnd(End.FINISHED, ""))
    partly = RemainingTime([setting], [{first: cost}])
    partly.note_evaluation(setting, 1800)
    assert partly.evaluation.ratio() == 1


def test_other_terminals_are_named_where_no_other_process_works(
    root: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = read_setting(file, Storage.open(str(root)))
    cost = Cost(step_seconds=10, steps_per_epoch=50, validation_seconds=100, evaluation_seconds=30)
    remaining = RemainingTime([setting], [dict.fromkeys(setting.rows, cost)])
    cpu = torch.device("cpu")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    advice = remaining.advice(cpu)
    assert advice is not None
    assert advice.startswith("this machine has 2 cores: the same command in a second terminal shares the trainings")
    with Presence(setting.trainings[2].folder.location, {}, lambda _: None):
        assert remaining.advice(cpu) is None
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert remaining.advice(cpu) is None


def test_row_of_diverged_trainings_has_no_errors() -> None:
    assert Row("convgru", None, None, diverged=2).cells(0.5) == ["convgru", "", "(2 diverged)", "", "", "", ""]
    row = Row("convlstm", (0.04, 0.001), (0.2, 0.012), 182_524, 5, training_seconds=60)
    assert row.cells(0.1) == ["convlstm", "182,524", "5", "0.0400 ± 0.0010", "0.200 ± 0.012", "2.00", "60 s"]
    assert Row("convlstm", (712.4, 12.3), (1234.5, 0.2)).cells(1.0)[3:5] == ["712 ± 12", "1234 ± 0"]
