"""What a machine of a cluster lacks for a build: the sources that were planned, and the folder of the store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data_prep import source_identity
from data_prep.machines import ELSEWHERE, MISSING, OTHER, Needs, Problem, find_problems
from data_prep.source_identity import glance, identify
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix
from tests.support.s3_server import S3Server, error

WITNESS = "witness"
PIECE = bytes(range(256)) * 256


def needs(location: Location, *urls: str) -> Needs:
    location.write(WITNESS, b"mcrnn")
    identities = [identify(url, ["z"]) for url in urls]
    return Needs(location, tuple((source, glance(source)) for source in identities))


def test_files_are_compared_by_stamp_or_a_part_of_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store = tmp_path / "a.nc", tmp_path / "a.zarr"
    file.write_bytes(PIECE * 100)  # 6.5 MB, of which 1 MB is looked at
    (store / "z/c").mkdir(parents=True)
    for name in ("zarr.json", "z/c/0", "z/c/1"):
        (store / name).write_bytes(b"1")
    planned = needs(LocalFolder(tmp_path / "store"), str(file), str(store))

    def found() -> list[Problem]:
        return find_problems(planned, WITNESS)

    with monkeypatch.context() as patch:  # a source whose stamp is the same is not read
        patch.setattr(source_identity, "_hash_local", lambda *arguments: (0, "of the store"))
        assert found() == [(OTHER, str(store))]
    copy = tmp_path / "copy"
    shutil.copy(file, copy)
    copy.rename(file)
    os.utime(file, (0, 0))
    assert found() == []
    file.write_bytes(PIECE * 99 + PIECE[::-1])
    assert found() == [(OTHER, str(file))]
    file.write_bytes(PIECE * 99)
    (store / "z/c/1").unlink()
    assert found() == [(OTHER, str(file)), (OTHER, str(store))]
    file.unlink()
    shutil.rmtree(store)
    assert found() == [(MISSING, str(file)), (MISSING, str(store))]
    assert sorted(planned.location.sizes()) == [WITNESS]


def test_objects_are_compared_by_their_etags_and_reasons_are_those_of_s3(s3: S3Server) -> None:
    client, url = s3.client(), "s3://lab/a.nc"
    client.put_object(Bucket="lab", Key="a.nc", Body=b"1")
    planned = needs(S3Prefix("lab/store"), url)
    assert find_problems(planned, WITNESS) == []
    client.put_object(Bucket="lab", Key="a.nc", Body=b"2")
    assert find_problems(planned, "other") == [(ELSEWHERE, "s3://lab/store"), (OTHER, url)]
    client.delete_object(Bucket="lab", Key="a.nc")
    assert find_problems(planned, WITNESS) == [("there is no {}", url)]
    s3.fault = lambda environ: error("403 Forbidden", "InvalidAccessKeyId")
    (of_folder, where), (of_source, what) = find_problems(planned, WITNESS)
    assert (where, what) == ("s3://lab/store", url)
    assert of_folder.startswith("wrong key for {}: ")
    assert "{}" in of_source


def test_a_package_that_a_format_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.grib"
    file.write_bytes(b"GRIB")
    planned = needs(LocalFolder(tmp_path / "store"), str(file))
    monkeypatch.setitem(__import__("sys").modules, "cfgrib", None)  # as Python sees a package that cannot be imported
    ((reason, what),) = find_problems(planned, WITNESS)
    assert what == str(file)
    assert "pip install 'mcrnn[grib]'" in reason
