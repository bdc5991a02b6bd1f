"""The log of a search's driver: what went wrong is in the folder, and named in one line."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from mcrnn.errors import DiskError, LoggedError, UserError
from mcrnn.search.driver_log import DriverLog
from mcrnn.search.superseded_files import Deletion
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.retry import LOGGER, ServiceUnavailableError, print_warning
from mcrnn.tracking.run_folder import DRIVER_LOG


def text_of(place: Location) -> str:
    return place.read(DRIVER_LOG).decode()


def test_unexpected_error_is_one_line_that_names_the_file_with_the_traceback(place: Location) -> None:
    with (
        pytest.raises(LoggedError, match=r"^ZeroDivisionError: division by zero \(see searches/s/driver.log\)"),
        DriverLog(place, "searches/s"),
    ):
        _ = 1 / 0
    assert "Traceback" in text_of(place)
    assert "_ = 1 / 0" in text_of(place)


def test_error_of_a_user_stays_and_is_logged_without_passwords(tmp_path: Path) -> None:
    place = LocalFolder(tmp_path)
    for number in (1, 2):
        with pytest.raises(UserError, match="secret"), DriverLog(place, "s"):
            raise UserError(f"no. {number}: postgresql://lab:secret@db cannot be used")
    assert "secret" not in text_of(place)
    assert "no. 1: postgresql://lab:***@db" in text_of(place)
    assert "no. 2" in text_of(place)


def test_search_without_trouble_has_no_log_and_an_interruption_is_none(tmp_path: Path) -> None:
    with DriverLog(LocalFolder(tmp_path), "s"):
        pass
    with pytest.raises(KeyboardInterrupt), DriverLog(LocalFolder(tmp_path), "s"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_in_the_log_with_the_traceback_of_their_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, sent = LocalFolder(tmp_path), dict[str, Any]()
    with DriverLog(place, "s") as log:
        log.put = sent.__setitem__
        print_warning("something is odd")
        assert list(sent) == [DRIVER_LOG]
        sent[DRIVER_LOG]()
        assert "something is odd" in text_of(place)
        with Deletion("folder").tolerated():
            raise NotADirectoryError("a stray file")
    print_warning("after the search")
    assert "NotADirectoryError: a stray file" in text_of(place)
    assert "in test_warnings_are_in_the_log" in text_of(place)
    assert "after the search" not in text_of(place)
    said = capsys.readouterr().err
    assert "warning: files in 'folder' that the search needs no more cannot be deleted: a stray file" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", [DiskError("the disk is full"), UserError("403 Forbidden"), OSError("no room")])
def test_log_that_cannot_be_written_for_a_while_keeps_nothing_else_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(location: LocalFolder, key: str, data: bytes) -> None:
        raise error

    place, box, sent = LocalFolder(tmp_path), Outbox("the folder", lambda line: None), list[str]()
    with DriverLog(place, "s") as log:
        log.put = box.put
        with monkeypatch.context() as patch:
            patch.setattr(LocalFolder, "write", refuse)
            print_warning("the first")
            box.put("journal", lambda: sent.append("journal"))
            box.wait(5)
        assert sent == ["journal"]
        assert list(tmp_path.iterdir()) == []
        print_warning("the second")
        box.wait(5)
        assert "the first" in text_of(place)
        assert "the second" in text_of(place)
    box.close()


def test_outage_keeps_nobody_who_warns_and_costs_no_earlier_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, away, read = LocalFolder(tmp_path), threading.Event(), LocalFolder.read
    place.write(DRIVER_LOG, b"of an earlier start\n")

    def wait_and_give_up(location: LocalFolder, key: str) -> bytes:
        if away.wait(20):
            raise ServiceUnavailableError("S3 does not answer")
        return read(location, key)

    box = Outbox("the folder", lambda line: None)
    with DriverLog(place, "s") as log:
        log.put = box.put
        with monkeypatch.context() as patch:
            patch.setattr(LocalFolder, "read", wait_and_give_up)
            warning = threading.Thread(target=print_warning, args=["S3 is away"], daemon=True)
            warning.start()
            warning.join(5)
            assert not warning.is_alive()
            assert "S3 is away" in capsys.readouterr().err
            away.set()
            box.wait(5)
        assert text_of(place) == "of an earlier start\n"
    assert text_of(place).startswith("of an earlier start\n")
    assert "S3 is away" in text_of(place)
    box.close()


def test_warning_is_on_the_terminal_before_it_is_logged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", lambda *_, **__: printed.append(capsys.readouterr().err))
    print_warning("S3 is away")
    assert printed == ["warning: S3 is away\n"]
