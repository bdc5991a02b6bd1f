"""`mcrnn.report` as a user calls it."""

from __future__ import annotations

from pathlib import Path

from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import PAGE_FILE, RunFolder
from tests.commands.test_commands import refused
from tests.commands.test_status_and_stop import fill, storage, with_storage  # noqa: F401
from tests.conftest import CommandRunner


def test_page_of_a_search_that_has_not_ended(root: Path, command: CommandRunner, storage: Storage) -> None:  # noqa: F811
    folder, _ = fill(storage, "first")
    result = with_storage(command, storage)("mcrnn.report", "first")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip().endswith(f"searches/first/{PAGE_FILE}")
    page = folder.location.read(PAGE_FILE).decode()
    assert "Best of every architecture" in page
    assert f"--storage {storage.name}" not in page  # MCRNN_STORAGE leads there


def test_page_in_a_file_of_its_own_leaves_the_folder_alone(root: Path, command: CommandRunner) -> None:
    folder, _ = fill(Storage.open(str(root)), "first")
    before = folder.location.sizes()
    result = command("mcrnn.report", "first", "--out", "first.html")
    assert (result.returncode, result.stdout) == (0, "first.html\n")
    assert "Best of every architecture" in (root / "first.html").read_text()
    assert folder.location.sizes() == before
    assert "cannot write" in refused(command, "mcrnn.report", "first", "--out", "nowhere/first.html")


def test_there_is_a_page_of_searches_only(root: Path, command: CommandRunner) -> None:
    RunFolder(Storage.open(str(root)).location("runs/one")).claim({"train": {"epochs": 1}})
    assert "is a run and no search" in refused(command, "mcrnn.report", "one")
    assert "there is no search" in refused(command, "mcrnn.report", "other")
