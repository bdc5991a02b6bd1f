from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from mcrnn.search.attributes import TrialEnd
from mcrnn.search.superseded_files import SupersededFiles
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.s3 import S3Prefix
from mcrnn.tracking.run_folder import SearchFolder
from tests.search.test_trial_index import end
from tests.support import s3_server
from tests.support.s3_server import S3Server


def now(_: str, delete: Callable[[], object]) -> None:
    delete()


def files_of(folder: SearchFolder) -> set[str]:
    """The parts that are there, such as 0003/model."""
    return {"/".join(key.split("/")[:2]) for key in folder.trials.sizes()}


def run_trial(folder: SearchFolder, study: optuna.Study, how: TrialEnd | None, error: float) -> int:
    """Run a trial that writes all its files; it goes on where `how` is None."""
    trial = study.ask()
    run = folder.trial(trial.number)
    for location in (run.location, run.model, run.checkpoints):
        location.write("file", b"x")
    if how is not None:
        end(study, trial, how, error)
    return trial.number


@pytest.mark.parametrize("seed", range(4))
def test_files_are_those_that_a_sweep_would_leave(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, study, draw = SearchFolder(LocalFolder(tmp_path)), optuna.create_study(), random.Random(seed)
    superseded = SupersededFiles(folder, study, keep=3)
    for _ in range(30):
        how = draw.choice([*TrialEnd, TrialEnd.FINISHED, TrialEnd.FINISHED, None])
        number = run_trial(folder, study, how, draw.random())
        with monkeypatch.context() as patch:
            patch.setattr(LocalFolder, "sizes", None)  # nothing is listed
            superseded.trial_ended(number, now)
        left = files_of(folder)
        assert (f"{number:04d}/checkpoints" in left) == (how is None)
        SupersededFiles(folder, study, keep=3).sweep()
        assert files_of(folder) == left
    models = [int(part[:4]) for part in left if part.endswith("model")]
    assert sum(study.trials[number].state.is_finished() for number in models) == 3


def test_sweep_deletes_what_a_killed_search_has_left(tmp_path: Path) -> None:
    folder, study = SearchFolder(LocalFolder(tmp_path)), optuna.create_study()
    for error in (0.5, 0.4, 0.3):
        run_trial(folder, study, TrialEnd.FINISHED, error)
    run_trial(folder, study, None, 0.0)
    SupersededFiles(folder, study, keep=2).sweep()
    kept = {"0000/file", "0001/file", "0001/model", "0002/file", "0002/model"}
    assert files_of(folder) == kept | {"0003/file", "0003/model", "0003/checkpoints"}


def test_files_that_are_not_of_the_search_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, study = SearchFolder(LocalFolder(tmp_path)), optuna.create_study()
    run_trial(folder, study, TrialEnd.FINISHED, 0.5)
    strangers = {".DS_Store", "notes.txt", "notes/model/a", "0/model/a", "-1/checkpoints/a", "٠/model/a", "00/model/a"}
    strangers |= {"0000/.DS_Store", "0000/models/a", "0001/model/a"}
    for key in strangers:
        folder.trials.write(key, b"x")
    SupersededFiles(folder, study, keep=0).sweep()
    assert set(folder.trials.sizes()) == strangers | {"0000/file"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "status", ["403 Forbidden", "400 Bad Request", pytest.param("503 Service Unavailable", marks=pytest.mark.soak)]
)
def test_error_of_object_storage_is_one_warning_and_the_next_sweep_deletes(
    s3: S3Server, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, study = SearchFolder(S3Prefix("lab/mcrnn/searches/s")), optuna.create_study()
    superseded = SupersededFiles(folder, study, keep=1)
    numbers = [run_trial(folder, study, TrialEnd.FINISHED, value) for value in (0.5, 0.4)]
    s3.fault = lambda environ: s3_server.error(status, "ToldTo")
    for number in numbers:
        superseded.trial_ended(number, now)
    superseded.sweep()
    said = capsys.readouterr().err
    assert said.startswith("warning: files in 's3://lab/mcrnn/searches/s' that the search needs no more cannot be ")
    assert said.count("\n") == 1
    s3.fault = None
    SupersededFiles(folder, study, keep=1).sweep()
    assert files_of(folder) == {"0000/file", "0001/file", "0001/model"}


def test_study_that_cannot_be_read_does_not_fail_the_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    folder, study = SearchFolder(LocalFolder(tmp_path / "s")), optuna.create_study(storage=storage)
    superseded = SupersededFiles(folder, study, keep=1)
    number = run_trial(folder, study, TrialEnd.FINISHED, 0.5)
    storage.engine.dispose()
    (tmp_path / "study.db").unlink()
    superseded.trial_ended(number, now)
    assert capsys.readouterr().err.count("warning: ") == 1
    assert files_of(folder) == {"0000/file", "0000/model", "0000/checkpoints"}


def test_model_of_a_trial_is_deleted_when_it_is_no_longer_among_the_best(tmp_path: Path) -> None:
    folder, study = SearchFolder(LocalFolder(tmp_path)), optuna.create_study()
    superseded = SupersededFiles(folder, study, keep=1)
    asked: list[str] = []
    for error in (0.5, 0.4, 0.6):
        superseded.trial_ended(run_trial(folder, study, TrialEnd.FINISHED, error), lambda key, _: asked.append(key))
    assert asked == [
        "checkpoints of 0", "checkpoints of 1", "model of 0", "checkpoints of 2", "model of 2"
    ]  # fmt: skip
