"""A search whose folder was deleted starts anew, also where its study is in a database, which still has the old one."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
import yaml

from mcrnn.config.loading import load_search
from mcrnn.search.search_run import SearchRun, open_search
from mcrnn.search.study import study_in_database
from mcrnn.storage.root import Storage
from tests.support.lab import SEARCH


def opened(root: Path, url: str, *, new: bool = False) -> SearchRun:
    content = SEARCH | {"search": SEARCH["search"] | {"storage": url}}
    (root / "s.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with open_search(load_search(str(root / "s.yaml")), Storage.open(str(root)), new=new) as search_run:
        return search_run


def test_search_whose_folder_was_deleted_starts_anew_and_says_so(
    root: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = opened(root, database_url)
    first.study.ask()
    waiting = len(first.study.trials)
    assert opened(root, database_url).study.study_name == first.study.study_name
    assert capsys.readouterr().err == ""

    for count in (2, 3):
        shutil.rmtree(root / "searches/s")
        again = opened(root, database_url)
        assert again.study.study_name == f"{first.study.study_name} ({count})"
        assert all(trial.state == optuna.trial.TrialState.WAITING for trial in again.study.trials)
        said = capsys.readouterr().err
        assert "warning: the folder of the search 's' was deleted, but the database has its study" in said
        again.study.ask()
        # the same command continues the new one, and others learn from it
        continued = opened(root, database_url)
        assert continued.study.study_name == again.study.study_name
        assert any(trial.state == optuna.trial.TrialState.RUNNING for trial in continued.study.trials)
        found = study_in_database(database_url, again.folder.location)
        assert found is not None
        assert found.study_name == again.study.study_name
        assert capsys.readouterr().err == ""
    old = optuna.load_study(study_name=first.study.study_name, storage=database_url)
    assert len(old.trials) == waiting


def test_search_beside_another_has_a_study_of_its_own(
    root: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = opened(root, database_url), opened(root, database_url, new=True)
    assert second.name == "s-2"
    assert {first.study.study_name, second.study.study_name} == {
        f"s:{root}/searches/s",
        f"s:{root}/searches/s-2",
    }
    assert capsys.readouterr().err == ""
