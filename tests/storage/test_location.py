"""One conformance suite for all places where bytes live, and how trouble is named."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import s3fs

from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location, check, has_conditional_writes
from mcrnn.storage.root import Storage
from mcrnn.storage.s3 import S3Prefix
from tests.support.s3_server import S3Server, error


def test_what_is_written_is_read_listed_and_deleted(place: Location) -> None:
    assert place.sizes() == {}
    place.write("a", b"one")
    place.write("deep/er/b", b"three")
    assert place.read("a") == b"one"
    assert place.child("deep").read("er/b") == b"three"
    assert place.sizes() == {"a": 3, "deep/er/b": 5}
    assert place.sizes_of(["deep/er/b", "a/c", "missing"]) == {"deep/er/b": 5}
    assert place.sizes_of(["deep/er/b"]) == {"deep/er/b": 5}
    assert place.sizes_of(["missing"]) == {}
    place.write("a", b"")
    assert place.read("a") == b""
    place.delete("a")
    place.delete("a")
    assert place.sizes() == {"deep/er/b": 5}
    place.clear()
    assert place.sizes() == {}


def test_missing_key_is_told_apart(place: Location) -> None:
    place.write("a", b"")
    for key in ("b", "c/d", "a/b"):
        with pytest.raises(FileNotFoundError):
            place.read(key)


def test_create_writes_once(place: Location) -> None:
    assert place.create("lock", b"first")
    assert not place.create("lock", b"second")
    assert place.read("lock") == b"first"


def test_folders_are_listed_without_what_is_in_them(place: Location) -> None:
    assert place.folders() == []
    for key in ("b/x", "a/deep/y", "a/z", "file"):
        place.write(key, b"")
    assert place.folders() == ["a", "b"]
    assert place.child("a").folders() == ["deep"]
    assert place.child("a/deep").folders() == []


def test_content_is_read_with_its_age(place: Location) -> None:
    place.write("deep/a", b"one")
    content, age = place.read_with_age("deep/a")
    assert content == b"one"
    assert 0 <= age < 30
    with pytest.raises(FileNotFoundError):
        place.read_with_age("b")
    if isinstance(place, LocalFolder):
        os.utime(place.path / "deep/a", (time.time() - 100, time.time() - 100))
        assert 100 <= place.read_with_age("deep/a")[1] < 130


def test_age_on_s3_is_told_by_the_clock_of_the_service(s3: S3Server) -> None:
    written, now = "Thu, 01 Jan 2026 12:00:00 GMT", "Thu, 01 Jan 2026 12:01:40 GMT"
    s3.fault = lambda environ: ("200 OK", [("Last-Modified", written), ("Date", now)], b"one")
    assert S3Prefix("lab/x").read_with_age("a") == (b"one", 100)


def test_check_leaves_nothing(place: Location) -> None:
    check(place)
    assert place.sizes() == {}


def test_lost_answer_does_not_hide_conditional_writes(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    create, answers = type(place).create, [True]

    def create_and_lose_the_first_answer(self: Location, key: str, data: bytes) -> str | None:
        version = create(self, key, data)
        return create(self, key, data) if answers and answers.pop() else version  # the request is repeated

    monkeypatch.setattr(type(place), "create", create_and_lose_the_first_answer)
    assert has_conditional_writes(place)
    assert place.sizes() == {}


def test_storage_that_refuses_every_conditional_write_has_none(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(place), "create", lambda self, key, data: None)
    assert not has_conditional_writes(place)


def test_names_are_relative_to_the_root_unless_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    local = Storage.open("root")
    assert local.location("data/x.zarr") == LocalFolder(tmp_path / "root/data/x.zarr")
    assert local.location("/else/x.zarr") == LocalFolder(Path("/else/x.zarr"))
    assert local.location("s3://lab/x.zarr") == S3Prefix("lab/x.zarr")
    remote = Storage.open("s3://lab/mcrnn/")
    assert remote.location("data/x.zarr") == S3Prefix("lab/mcrnn/data/x.zarr")
    assert remote.location("/else/x.zarr") == LocalFolder(Path("/else/x.zarr"))


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCRNN_STORAGE", str(tmp_path / "there"))
    assert Storage.open().location("x") == LocalFolder(tmp_path / "there/x")
    monkeypatch.setenv("MCRNN_STORAGE", "s3://lab/mcrnn")
    assert Storage.open().location("x").url == "s3://lab/mcrnn/x"


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "gs://bucket/x"])
def test_unknown_urls_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="neither a folder nor a URL of the form s3://"):
        Storage.open().location(url)


def answer_all(status: str, code: str, **headers: str) -> Any:
    return lambda environ: error(status, code, **headers)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answer_all("403 Forbidden", "InvalidAccessKeyId"), "wrong key for 's3://lab/x'"),
        (answer_all("403 Forbidden", "SignatureDoesNotMatch"), "wrong key for 's3://lab/x'"),
        (answer_all("400 Bad Request", "ExpiredToken"), "credentials for 's3://lab/x' have expired"),
        (answer_all("403 Forbidden", "AccessDenied"), "no permission for PutObject on 's3://lab/x'"),
        (
            answer_all("301 Moved Permanently", "PermanentRedirect", x_amz_bucket_region="eu-west-1"),
            r"wrong region for 's3://lab/x': the bucket is in eu-west-1; set AWS_DEFAULT_REGION \(now us-east-1\)",
        ),
        (answer_all("400 Bad Request", "AuthorizationHeaderMalformed"), "wrong region for 's3://lab/x'"),
        (answer_all("400 Bad Request", "KMS.DisabledException"), "refuses PutObject on 's3://lab/x': told to .KMS.Dis"),
    ],
)
def test_refusals_of_the_service_are_named(s3: S3Server, fault: Any, message: str) -> None:
    s3.fault = fault
    with pytest.raises(UserError, match=message) as raised:
        check(S3Prefix("lab/x"))
    assert "\n" not in str(raised.value)


def test_missing_bucket_is_named(s3: S3Server) -> None:
    with pytest.raises(UserError, match="there is no bucket 'nowhere' at http"):
        check(S3Prefix("nowhere/x"))
    with pytest.raises(UserError, match="there is no bucket 'nowhere'"):
        S3Prefix("nowhere/x").read("key")


def test_service_that_never_recovers_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcrnn.storage.s3_errors.ATTEMPTS", 2)
    s3.fault = answer_all("503 Slow Down", "ServiceUnavailable")
    with pytest.raises(UserError, match="it is overloaded or down"):
        check(S3Prefix("lab/x"))


def test_unreachable_endpoint_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcrnn.storage.s3_errors.ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach http://127\.0\.0\.1:9 for 's3://lab/x'"):
        check(S3Prefix("lab/x"))


def test_missing_credentials_are_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="no credentials for 's3://lab/x': set AWS_ACCESS_KEY_ID"):
        check(S3Prefix("lab/x"))


def test_profile_of_the_configuration_is_used(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    check(S3Prefix("lab/x"))
    monkeypatch.setenv("AWS_PROFILE", "other")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="no AWS profile 'other'"):
        check(S3Prefix("lab/x"))


def test_one_failure_in_ten_goes_unnoticed(s3: S3Server) -> None:
    def fault(environ: dict[str, Any]) -> Any:
        if s3.requests % 10 == 3:
            return error("500 Internal Server Error", "InternalError")
        return error("503 Slow Down", "SlowDown") if s3.requests % 10 == 7 else None

    s3.fault = fault
    place = S3Prefix("lab/x")
    for i in range(40):
        place.write(f"{i}", bytes([i]))
    assert [place.read(f"{i}") for i in range(40)] == [bytes([i]) for i in range(40)]
    assert len(place.sizes()) == 40


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_named_and_leaves_nothing_half_written(small_disk: Path) -> None:
    place = LocalFolder(small_disk)
    place.write("kept", b"x" * 1_000_000)
    with pytest.raises(UserError, match="No space left on device"):
        place.write("large", b"x" * 3_000_000)
    assert place.sizes() == {"kept": 1_000_000}
    place.delete("kept")
    place.write("large", b"x" * 1_500_000)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/x.*: File exists"):
        LocalFolder(tmp_path / "file").write("x", b"")


def test_file_that_disappears_while_a_folder_is_listed_is_not_in_it(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"abc")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")  # it has a name, and is not there
    assert LocalFolder(tmp_path).sizes() == {"kept": 3}
