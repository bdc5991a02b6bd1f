"""A search that is taken up from a snapshot knows what its journal says, whatever the snapshot says."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mcrnn.search import journal as journal_module
from mcrnn.search.journal import Journal, SnapshotStorage
from mcrnn.search.study import STUDY
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location

pytestmark = pytest.mark.filterwarnings("ignore:The reported value is ignored")


@pytest.fixture(autouse=True, scope="module")
def _frequent_checkpoints() -> Iterator[None]:
    """Checkpoints after few lines, and no waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "LOGS_BETWEEN_CHECKPOINTS", 20)
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a journal with a snapshot."""
    folder = tmp_path_factory.mktemp("template")
    written(LocalFolder(folder))
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> LocalFolder:
    """A copy of it."""
    return LocalFolder(shutil.copytree(template, tmp_path / "search"))


def study_of(journal: Journal) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(0)
    return optuna.create_study(study_name=STUDY, storage=journal.storage(), sampler=sampler, load_if_exists=True)


def extend(journal: Journal, study: optuna.Study, events: int, seed: int) -> None:
    """Let random things happen to a study, with checkpoints and uploads as a search makes them."""
    draw = random.Random(seed)
    running = [optuna.Trial(study, t._trial_id) for t in study.trials if t.state == TrialState.RUNNING]
    for _ in range(events):
        if not running or draw.random() < 0.3:
            if draw.random() < 0.2:
                study.enqueue_trial({"rate": 0.5})
            if draw.random() < 0.1:
                value = draw.choice([float("inf"), 0.5])
                study.add_trial(optuna.trial.create_trial(value=value, user_attrs={"from": "earlier"}))
            running.append(study.ask())
            running[-1].suggest_float("rate", 0.1, 1.0, log=True)
            running[-1].suggest_int("layers", 2, 8, step=2)
            if draw.random() < 0.5:
                running[-1].suggest_categorical("choice", ["a", 1, None, 2.5])
        trial = draw.choice(running)
        trial.report(draw.choice([draw.random(), float("nan")]), draw.randrange(50))
        trial.set_user_attr(draw.choice(["paused", "values"]), {"n": draw.random(), "text": 'ü\t"\n'})
        study.set_user_attr("hours", draw.random())
        if draw.random() < 0.2:
            running.remove(trial)
            state = draw.choice([TrialState.PRUNED, TrialState.FAIL, None])
            study.tell(trial, None if state else draw.random(), state)
        journal.checkpoint()
        if draw.random() < 0.2:
            journal.upload()
    journal.upload()


def states(storage: Any) -> dict[str, Any]:
    """All that Optuna has replayed, without what belongs to the process."""
    content = dict(vars(storage._replay_result))
    for name in ("_worker_id_prefix", "_worker_id_to_owned_trial_id", "_last_created_trial_id_by_this_process"):
        content.pop(name, None)
    content["_studies"] = {number: vars(study) for number, study in content["_studies"].items()}
    content["_trials"] = {number: repr(trial) for number, trial in content["_trials"].items()}  # so that nan equals nan
    return content


def replayed(journal: Journal) -> SnapshotStorage:
    """The storage of a journal whose snapshot is not used."""
    journal._snapshot_file.unlink(missing_ok=True)
    storage = journal.storage()
    assert isinstance(storage, SnapshotStorage)
    assert storage.journal_file.unsaved == storage.journal_file.logs
    return storage


def written(folder: Location, events: int = 90, seed: int = 0) -> Journal:
    journal = Journal.open(folder)
    extend(journal, study_of(journal), events, seed)
    return journal


def test_snapshot_gives_the_state_that_the_journal_gives(place: Location) -> None:
    written(place, events=60)
    for seed in range(1, 3):  # it is taken up and goes on, twice
        journal = Journal.open(place)
        extend(journal, study_of(journal), 25, seed)
        journal = Journal.open(place)
        storage = journal.storage()
        assert isinstance(storage, SnapshotStorage)
        assert storage.journal_file.unsaved < 60 < storage.journal_file.logs
        if journal._parts is not None:
            journal._parts.download()
        assert states(storage) == states(replayed(journal))


def test_kinds_of_parameters_come_back(folder: LocalFolder) -> None:
    trial = next(t for t in study_of(Journal.open(folder)).trials if "choice" in t.params)
    assert trial.distributions == {
        "rate": FloatDistribution(0.1, 1.0, log=True),
        "layers": IntDistribution(2, 8, step=2),
        "choice": CategoricalDistribution(["a", 1, None, 2.5]),
    }
    assert isinstance(trial.params["layers"], int)


@pytest.mark.parametrize("seed", range(24))
def test_snapshot_that_is_torn_or_changed_is_not_believed(folder: LocalFolder, seed: int) -> None:
    journal, draw = Journal.open(folder), random.Random(seed)
    content = bytearray(journal._snapshot_file.read_bytes())
    if seed % 4 == 0:
        del content[draw.randrange(len(content)) :]
    elif seed % 4 == 1:
        at = draw.randrange(len(content))
        del content[at : at + draw.randrange(1, 300)]
    elif seed % 4 == 2:
        content += draw.randbytes(draw.randrange(1, 300)) + b"\n"
    else:
        content = bytearray(draw.randbytes(1000))
    journal._snapshot_file.write_bytes(content)
    storage = Journal.open(folder).storage()
    assert states(storage) == states(replayed(journal))


def test_snapshot_that_lacks_a_line_is_not_believed(folder: LocalFolder) -> None:
    """An older line of the same trial would count in its place."""
    journal = Journal.open(folder)
    lines = journal._snapshot_file.read_bytes().splitlines(keepends=True)
    keys = [line.split(b"\t")[0] for line in lines]
    last_of = {key: index for index, key in enumerate(keys) if key.isdigit() and keys.count(key) > 1}
    del lines[min(last_of.values())]
    journal._snapshot_file.write_bytes(b"".join(lines))
    storage = Journal.open(folder).storage()
    assert states(storage) == states(replayed(journal))


def test_checkpoint_writes_what_has_changed(folder: LocalFolder) -> None:
    journal = Journal.open(folder)
    study = study_of(journal)
    before, ended = journal._snapshot.end, [t.number for t in study.trials if t.state.is_finished()]
    extend(journal, study, 30, seed=1)
    new = journal._snapshot_file.read_bytes()[before:].splitlines()
    keys = [line.split(b"\t")[0] for line in new]
    assert keys.count(b"checkpoint") > 3
    assert not {b"%d" % number for number in ended[:-10]} & set(keys)


def test_snapshot_of_another_journal_is_not_used(folder: LocalFolder, tmp_path: Path) -> None:
    one, other = Journal.open(folder), written(LocalFolder(tmp_path / "other"), seed=1)
    one._snapshot_file.write_bytes(other._snapshot_file.read_bytes())
    storage = Journal.open(folder).storage()
    assert states(storage) == states(replayed(one))


@pytest.mark.parametrize("cut", [1, 2, 17, 100, 200, 1000, 5000])
def test_snapshot_is_used_as_far_as_the_journal_goes_that_was_cut_off(folder: LocalFolder, cut: int) -> None:
    journal = Journal.open(folder)
    journal.file.write_bytes(journal.file.read_bytes()[:-cut])
    again = Journal.open(folder)
    storage = again.storage()
    assert isinstance(storage, SnapshotStorage)
    assert storage.journal_file.unsaved < storage.journal_file.logs
    assert states(storage) == states(replayed(journal))
    again = Journal.open(folder)
    extend(again, study_of(again), 20, seed=5)  # the snapshot, which was ahead of the journal, is extended
    assert states(Journal.open(folder).storage()) == states(replayed(journal))


def test_two_processes_do_not_mix_their_checkpoints(folder: LocalFolder) -> None:
    first, second = Journal.open(folder), Journal.open(folder)
    studies = study_of(first), study_of(second)
    extend(second, studies[1], 30, seed=1)
    extend(first, studies[0], 30, seed=2)
    assert states(Journal.open(folder).storage()) == states(replayed(first))
