from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mcrnn.search.journal import Journal
from mcrnn.search.study import open_study, search_trials
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from tests.support.studies import play, result, search


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of six trials, of which five have ended."""
    folder = tmp_path_factory.mktemp("written")
    play(folder, search(sampler="random"), stop_after=5)
    return folder


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 20, 50, 90, 137, 163, 200])
def test_journal_that_was_cut_off_is_repaired_with_one_warning(
    written: Path, tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(written, tmp_path / "search")
    journal = Journal.open(LocalFolder(folder))
    content = journal.file.read_bytes()
    journal.file.write_bytes(content[:-cut])
    plan = search(sampler="random")
    study = open_study(journal, plan)
    whole_lines_were_cut = content[:-cut].endswith(b"\n")
    completed = cut == 1
    assert capsys.readouterr().err.count("warning") == (0 if whole_lines_were_cut or completed else 1)
    searcher = StudySearcher(study, plan)
    number = 0
    while isinstance(searcher.suggest(str(number)), dict):
        searcher.on_trial_complete(str(number), result(0.5))
        number += 1
    trials = search_trials(optuna.load_study(study_name="search", storage=journal.storage()))
    assert [trial.number for trial in trials] == list(range(6))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)


def test_line_that_lacks_nothing_but_its_end_is_kept(written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written, tmp_path / "search")
    journal = Journal.open(LocalFolder(folder))
    content = journal.file.read_bytes()
    journal.file.write_bytes(content[:-1])
    journal.storage()
    assert journal.file.read_bytes() == content
