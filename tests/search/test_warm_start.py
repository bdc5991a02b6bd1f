"""What a search learns from the trials of earlier ones (`search.warm_start`)."""

from __future__ import annotations

import gc
from pathlib import Path

from optuna.trial import TrialState

from mcrnn.config.space import Search, Space, SpaceEntry
from mcrnn.search.journal import Journal
from mcrnn.search.search_run import _open_earlier
from mcrnn.search.study import finished_trials, open_study, study_in_database
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from tests.support.s3_server import S3Server
from tests.support.studies import ASHA, epochs_of, play, result, search, study_in


def test_earlier_trials_that_fit_are_learnt_from_and_do_not_count(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    play(tmp_path / "a", search(trials=6))
    before = study_in(tmp_path / "a", search(trials=6))
    plan = search(trials=4)
    study = study_in(tmp_path / "b", plan, [before])
    learnt = [t for t in study.get_trials() if "from" in t.user_attrs]
    assert len(learnt) == 6
    assert {t.value for t in learnt} == {t.value for t in before.get_trials()}
    assert finished_trials(study) == []
    assert len(play(tmp_path / "b", plan)) == 4
    # a space that is narrower takes what it could have drawn itself
    entries = plan.space.entries | {"model.hidden_size": [SpaceEntry.model_validate({"int": [4, 8], "step": 4})]}
    narrow = Search(Space(plan.space.base, entries), plan.search)
    fitting = [t for t in before.get_trials() if t.params["model.hidden_size"] <= 8]
    assert len(study_in(tmp_path / "c", narrow, [before]).get_trials(states=[TrialState.COMPLETE])) == len(fitting)


def test_earlier_trials_that_were_stopped_are_learnt_from(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    plan = search(asha=ASHA)
    lengths = epochs_of(tmp_path / "a", plan, [0.5, 0.6, 0.4, 0.7, 0.3, 0.8], restart=False)
    before = study_in(tmp_path / "a", plan)
    assert min(lengths) < max(lengths) == 4
    StudySearcher(before, plan).conclude()
    learnt = study_in(tmp_path / "b", search(), [before]).get_trials(states=[TrialState.COMPLETE])
    assert sorted(round(t.value or 0, 6) for t in learnt) == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def test_earlier_search_in_a_database_is_found_by_its_folder(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    url = f"sqlite:///{tmp_path}/studies.db"
    plan = search(storage=url)
    play(tmp_path / "a", plan)
    found = study_in_database(url, LocalFolder(tmp_path / "a"))
    assert found is not None
    assert len(found.get_trials()) == plan.search.trials
    assert study_in_database(url, LocalFolder(tmp_path / "b")) is None


def test_earlier_search_on_object_storage_is_learnt_from(s3: S3Server, tmp_path: Path) -> None:
    """What was downloaded of the earlier search must be there for as long as its study is read."""
    (tmp_path / "data").mkdir()
    storage = Storage.open("s3://lab/root")
    plan = search(trials=4)
    folder = storage.location("searches/earlier")
    journal = Journal.open(folder)
    searcher = StudySearcher(open_study(journal, plan), plan)
    while isinstance(searcher.suggest("t"), dict):
        searcher.on_trial_complete("t", result(0.5))
    journal.upload()
    del journal, searcher
    before = _open_earlier("earlier", storage.location("searches"), None)
    gc.collect()
    study = study_in(tmp_path, search(trials=4), [before])
    assert len([t for t in study.get_trials() if "from" in t.user_attrs]) == 4
