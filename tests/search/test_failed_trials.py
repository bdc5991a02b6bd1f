"""What an error in one trial means for the trial and for its search: reported, tried again, or the end of both."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from optuna.trial import TrialState
from ray import cloudpickle

from mcrnn.errors import DamagedFileError, DiskError, NotEnoughMemoryError, UserError
from mcrnn.runners.ray_train import root_cause
from mcrnn.search import trials
from mcrnn.search.packing import TrialShare
from mcrnn.search.trial_report import TrialFailedError, TrialReport, error_of
from mcrnn.search.trial_runner import _resources_of
from mcrnn.search.trials import TrialContext, is_mistake, run_trial
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.retry import ServiceUnavailableError
from mcrnn.tracking.run_folder import RunEnd, RunFolder, SearchFolder
from mcrnn.training.session import End
from tests.support.studies import result, search, study_in


class Actor:
    """Runs a trial whose training raises an error, and keeps what it reports."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int = 2) -> None:
        self.folder, self.reports = SearchFolder(LocalFolder(folder)), []
        context: Any = SimpleNamespace(
            folder=self.folder, concurrency=concurrency, share=TrialShare(0), training_run=lambda *_: None
        )
        self.context = cast(TrialContext, context)
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(trials, "enable_retries", lambda: None)
        monkeypatch.setattr(trials.tune, "report", lambda found: self.reports.append(TrialReport.of(found)))

    def run(self, error: Exception, **proposal: Any) -> TrialReport:
        def train(*_: Any, **options: Any) -> None:
            raise error

        self.monkeypatch.setattr(trials, "_train_and_report", train)
        run_trial({"number": 3, "values": {}} | proposal, context=self.context)
        return self.reports[-1]


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Actor:
    return Actor(tmp_path, monkeypatch)


def test_mistake_of_the_user_is_reported_and_ends_the_search(actor: Actor) -> None:
    report = actor.run(UserError("train.device is cuda, but there is no GPU"))
    assert report.mistake == "trial-3: train.device is cuda, but there is no GPU"


def test_any_other_error_is_raised_for_tune_to_try_again_and_names_the_file_with_its_traceback(
    actor: Actor, tmp_path: Path
) -> None:
    file = tmp_path / "trials/0003/error.txt"
    with pytest.raises(TrialFailedError) as raised:
        actor.run(RuntimeError("CUDA error: an illegal memory access\nCUDA kernel errors might be reported later"))
    assert str(raised.value) == f"RuntimeError: CUDA error: an illegal memory access (see {file})"
    assert "CUDA kernel errors might be reported later" in file.read_text()
    assert actor.reports == []


def test_full_disk_is_an_error_of_the_trial_also_where_its_traceback_cannot_be_kept(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mcrnn.storage.local.write_atomically", full)
    try:
        LocalFolder(Path("/checkpoints")).write("state", b"")
    except UserError as error:
        with pytest.raises(TrialFailedError, match="DiskError: cannot write '/checkpoints/state': No space left on"):
            actor.run(error)
    assert actor.reports == []


def test_damaged_file_of_one_trial_is_an_error_of_this_trial(actor: Actor) -> None:
    with pytest.raises(TrialFailedError, match=r"DamagedFileError: 's/trials/0003/end.json' is damaged"):
        actor.run(DamagedFileError("'s/trials/0003/end.json' is damaged: it is not JSON"))
    assert actor.reports == []


def test_object_storage_that_stays_away_from_one_trial_is_an_error_of_this_trial(actor: Actor) -> None:
    with pytest.raises(TrialFailedError, match="ServiceUnavailableError: S3 does not answer"):
        actor.run(ServiceUnavailableError("S3 does not answer"))
    assert actor.reports == []


@pytest.mark.parametrize("kind", [DamagedFileError, DiskError, ServiceUnavailableError, UserError])
def test_error_of_a_worker_of_ray_train_is_of_the_same_kind_as_without_workers(
    tmp_path: Path, kind: type[UserError]
) -> None:
    raised = RuntimeError("training failed")
    raised.worker_failures = {0: ray.exceptions.RayTaskError("train", "Traceback ...", kind("it is away"))}  # type: ignore[attr-defined]
    run: Any = SimpleNamespace(folder=RunFolder(LocalFolder(tmp_path / "run")))
    cause = root_cause(run, raised)
    assert isinstance(cause, Exception)
    assert (type(cause), str(cause)) == (kind, "it is away")
    assert is_mistake(cause) == (kind is UserError)


def test_lost_workers_are_left_to_tune(actor: Actor) -> None:
    error = RuntimeError("training failed")
    error.worker_failures = {0: ray.exceptions.ActorDiedError()}  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="training failed"):
        actor.run(error)


def test_too_little_memory_is_final_only_without_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for concurrency, proposal, retry in ((2, {}, True), (2, {"second_try": True}, False), (1, {}, False)):
        actor = Actor(tmp_path, monkeypatch, concurrency)
        folder = actor.folder.trial(3)
        folder.write_end(RunEnd(End.OUT_OF_MEMORY, "out of memory on cuda:0"))
        report = actor.run(NotEnoughMemoryError("out of memory on cuda:0"), **proposal)
        assert report.end == End.OUT_OF_MEMORY
        assert (report.retry, report.goes_on) == (retry, retry)
        assert (folder.read_end() is None) == retry  # a training with an end would not be tried again
        assert report.mlflow_status == ("KILLED" if retry else "FINISHED")


def test_second_try_has_whole_gpus_and_the_others_their_part() -> None:
    resources = {"CPU": 1, "GPU": 0.25}
    for proposal, gpus in (({"number": 1}, 0.25), ({"number": 1, "second_try": True}, 1)):
        assert _resources_of(resources, proposal).required_resources == {"CPU": 1, "GPU": gpus}
        assert _resources_of(resources, {"proposal": proposal}).required_resources == {"CPU": 1, "GPU": gpus}


def tune_trial(folder: Path, error: Exception | None, **attributes: Any) -> Any:
    """A trial of Tune as far as its error is looked at."""
    if error is None:
        return SimpleNamespace(pickled_error_file=None, **attributes)
    file = folder / "error.pkl"
    file.write_bytes(cloudpickle.dumps(error))
    return SimpleNamespace(pickled_error_file=str(file), **attributes)


def test_error_of_a_trial_is_found_in_what_tune_keeps_of_it(tmp_path: Path) -> None:
    cause = TrialFailedError("RuntimeError: broken (see FILE)")
    raised = ray.exceptions.RayTaskError("train", "Traceback ...", cause)
    for kept, expected in (
        (raised.as_instanceof_cause(), str(cause)), (raised, str(cause)),
        (ray.exceptions.ActorDiedError(), None), (None, None),
    ):  # fmt: skip
        assert error_of(tune_trial(tmp_path, kept)) == expected


OUT_OF_MEMORY = TrialReport.out_of_memory(retry=True).as_result()


def test_trial_that_ran_out_of_memory_beside_others_is_tried_once_more_after_all_others(tmp_path: Path) -> None:
    plan = search(trials=3, sampler="random")
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    searcher.on_trial_complete("a", OUT_OF_MEMORY)
    assert searcher.suggest("c")["number"] == 2
    assert searcher.suggest("d") == first | {"second_try": True}
    assert searcher.suggest("e") is None  # those that run may yet run out of memory, too
    searcher.on_trial_complete("b", OUT_OF_MEMORY)
    assert searcher.suggest("e") == second | {"second_try": True}
    searcher.on_trial_complete("c", result(0.5))
    searcher.on_trial_complete("d", TrialReport.out_of_memory().as_result())
    searcher.on_trial_complete("e", result(0.4))
    assert searcher.suggest("f") == "FINISHED"
    assert [t.user_attrs["end"] for t in searcher.study.get_trials()] == ["out of memory", "finished", "finished"]


@pytest.mark.parametrize("running", [True, False], ids=["its second try runs", "it waits for it"])
def test_second_try_is_the_last_also_where_the_search_was_killed_before_it_ended(tmp_path: Path, running: bool) -> None:
    plan = search(trials=3, sampler="random")
    searcher = StudySearcher(study_in(tmp_path, plan), plan)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    searcher.on_trial_complete("a", OUT_OF_MEMORY)
    if running:
        searcher.suggest("c")
        searcher.suggest("d")
    searcher = StudySearcher(study_in(tmp_path, plan), plan)  # and then it was killed
    proposals = [searcher.suggest(trial_id) for trial_id in "xyz"]
    assert [proposal["number"] for proposal in proposals] == [1, 2, 0]
    assert [proposals[0], proposals[2]] == [second, first | {"second_try": True}]
    for trial_id in "xyz":
        searcher.on_trial_complete(trial_id, result(0.5))
    assert all(t.state == TrialState.COMPLETE for t in searcher.study.get_trials())
