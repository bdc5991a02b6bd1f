"""A file that is uploaded in parts comes back whole, whatever has been killed."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import pytest

import mcrnn.storage.parts as parts_module
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.parts import UploadedParts, part_name


class CountingFolder(LocalFolder):
    """A folder that counts what is written, and can be told to fail at a request."""

    written = 0
    requests = 0
    fail_at: int | None = None

    def _request(self) -> None:
        cls = type(self)
        cls.requests += 1
        if cls.requests == cls.fail_at:
            raise KeyboardInterrupt

    def write(self, key: str, data: bytes) -> None:
        self._request()
        type(self).written += len(data)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / key).write_bytes(data)  # without waiting for the disk

    def delete(self, key: str) -> None:
        self._request()
        super().delete(key)


@pytest.fixture
def counting(tmp_path: Path) -> CountingFolder:
    class Fresh(CountingFolder):
        """Counts of its own for each test."""

    return Fresh(tmp_path / "parts")


def append(file: Path, size: int, draw: random.Random) -> int:
    """Append bytes to a file, which hardly compress; returns its size."""
    with file.open("ab") as opened:
        opened.write(draw.randbytes(size))
    return file.stat().st_size


def downloaded(folder: Location, file: Path, start: int = 0) -> bytes:
    parts = UploadedParts(file, folder)
    parts.find()
    parts.download(start)
    return file.read_bytes()


def test_file_comes_back_as_it_was(place: Location, tmp_path: Path) -> None:
    draw, file = random.Random(0), tmp_path / "file"
    parts = UploadedParts(file, place)
    for _ in range(30):
        parts.upload(append(file, draw.randrange(1, 2000), draw))
        parts.upload(file.stat().st_size)  # nothing new
    assert downloaded(place, tmp_path / "again") == file.read_bytes()
    assert len(place.sizes()) < 20


def test_what_is_sent_grows_with_the_file_and_not_with_its_square(counting: CountingFolder, tmp_path: Path) -> None:
    draw, file = random.Random(0), tmp_path / "file"
    parts, sent = UploadedParts(file, counting), []
    for _ in range(2):
        for _ in range(1000):
            parts.upload(append(file, 700, draw))
        sent.append(type(counting).written)
    levels = 4
    assert sent[1] < 2.4 * sent[0]
    assert sent[1] < levels * file.stat().st_size * 1.1
    assert len(counting.sizes()) <= 7 * levels


def test_part_that_is_large_is_not_sent_again(
    counting: CountingFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "LARGEST_MERGED", 40_000)
    draw, file = random.Random(0), tmp_path / "file"
    parts = UploadedParts(file, counting)
    for _ in range(10):
        parts.upload(append(file, 40_000, draw))
    assert type(counting).written < 10.1 * 40_000


@pytest.mark.parametrize("start", [0, 1, 1500, 9_000, 20_000])
def test_download_from_an_offset_gives_the_bytes_behind_it(tmp_path: Path, start: int) -> None:
    draw, file, folder = random.Random(0), tmp_path / "file", LocalFolder(tmp_path / "parts")
    parts = UploadedParts(file, folder)
    for _ in range(20):
        parts.upload(append(file, 1000, draw))
    again = downloaded(folder, tmp_path / "again", start)
    assert len(again) == 20_000
    assert again[start:] == file.read_bytes()[start:]


def test_upload_goes_on_from_a_partial_download(tmp_path: Path) -> None:
    """Merging then needs bytes that only the parts hold."""
    draw, file, folder = random.Random(0), tmp_path / "file", LocalFolder(tmp_path / "parts")
    parts = UploadedParts(file, folder)
    for _ in range(7):
        parts.upload(append(file, 1000, draw))
    parts = UploadedParts(tmp_path / "again", folder)
    parts.find()
    parts.download(5500)
    for each in (file, tmp_path / "again"):
        append(each, 1000, random.Random(1))
    parts.upload(8000)
    assert parts.parts == [(0, 8000)]
    assert downloaded(folder, tmp_path / "third") == file.read_bytes()


def test_kill_at_any_request_loses_nothing_that_was_sent(counting: CountingFolder, tmp_path: Path) -> None:
    sizes, requests = [800] * 20, 0
    for fail_at in range(1, 60):
        folder = type(counting)(tmp_path / str(fail_at))
        type(counting).requests, type(counting).fail_at = 0, fail_at
        draw, file, sent = random.Random(0), tmp_path / f"file-{fail_at}", 0
        parts = UploadedParts(file, folder)
        for size in sizes:
            end = append(file, size, draw)
            try:
                parts.upload(end)
            except KeyboardInterrupt:
                parts = UploadedParts(tmp_path / f"again-{fail_at}", folder)
                assert parts.find() in (sent, end)
                parts.download()
                assert parts.file.read_bytes() == file.read_bytes()[: parts.end]
                parts = UploadedParts(file, folder)
                parts.find()
                parts.upload(end)
            sent = end
        requests = type(counting).requests
        assert downloaded(folder, tmp_path / f"end-{fail_at}") == file.read_bytes()
        assert len(folder.sizes()) < 10  # superseded parts are deleted by the process that goes on
    assert requests < 60  # so that each of them has been killed


def test_parts_of_two_processes_do_not_hide_each_other(tmp_path: Path) -> None:
    """A process that was taken for dead has sent one more part while another one goes on."""
    folder, file = LocalFolder(tmp_path / "parts"), tmp_path / "file"
    for part in ((0, 100), (100, 150), (100, 140), (140, 200)):
        folder.write(part_name(part), gzip.compress(bytes(part[1] - part[0])))
    parts = UploadedParts(file, folder)
    assert parts.find() == 200
    assert parts.parts == [(0, 100), (100, 140), (140, 200)]


def test_file_that_another_process_extends_can_be_read(tmp_path: Path) -> None:
    draw, file, folder = random.Random(0), tmp_path / "file", LocalFolder(tmp_path / "parts")
    writing, reading = UploadedParts(file, folder), UploadedParts(tmp_path / "again", folder)
    for _ in range(7):
        writing.upload(append(file, 1000, draw))
    reading.find()
    writing.upload(append(file, 1000, draw))  # merges all that was found
    reading.download()
    assert reading.file.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: folder.delete(part_name((100, 200))), "the part that starts at byte 100 is missing"),
        (lambda folder: folder.write(part_name((100, 200)), b"abc"), "is damaged"),
        (lambda folder: folder.write(part_name((100, 200)), gzip.compress(bytes(100))[:-9]), "is damaged"),
        (lambda folder: folder.write(part_name((100, 200)), gzip.compress(bytes(99))), "does not hold the bytes"),
    ],
)
def test_damaged_parts_are_named(tmp_path: Path, damage: Any, said: str) -> None:
    folder = LocalFolder(tmp_path / "parts")
    for start in (0, 100, 200):
        folder.write(part_name((start, start + 100)), gzip.compress(bytes(100)))
    damage(folder)
    with pytest.raises(UserError, match=said):
        downloaded(folder, tmp_path / "file")
