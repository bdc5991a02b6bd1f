"""The files of a run and a search: their names stay, for folders of earlier versions, and so does what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcrnn.errors import DamagedFileError, UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.tracking.run_folder import RunEnd, RunFolder, SearchFolder, free_name


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(LocalFolder(tmp_path / "run"))


def test_empty_folder_has_nothing(folder: RunFolder) -> None:
    assert folder.read_configuration() is None
    assert folder.read_record() is None
    assert folder.read_end() is None
    assert folder.read_metrics() == []
    assert folder.read_sync_state() == {}


def test_what_is_written_is_read_again_from_files_of_the_known_names(folder: RunFolder, tmp_path: Path) -> None:
    folder.claim({"name": "run"})
    folder.write_record("run", tags={"a": "b"}, params={"train": {"epochs": 2}})
    folder.write_metrics([{"epoch": 1, "best": 0.5}, {"epoch": 2, "best": 0.4}])
    folder.write_sync_state({"sent": 2})
    folder.write_end(RunEnd("finished", ""))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "configuration.json", "record.json", "metrics.jsonl", "run.json", "end.json"
    }  # fmt: skip
    record = folder.read_record()
    assert record is not None
    assert (record["name"], record["tags"], record["params"]) == ("run", {"a": "b"}, {"train": {"epochs": 2}})
    assert folder.read_metrics() == [{"epoch": 1, "best": 0.5}, {"epoch": 2, "best": 0.4}]
    assert folder.read_sync_state() == {"sent": 2}
    assert folder.read_end() == RunEnd("finished", "")
    assert json.loads((tmp_path / "run/end.json").read_bytes()) == {"end": "finished", "message": ""}
    folder.delete_end()
    assert folder.read_end() is None


@pytest.mark.parametrize("content", [b"", b"{", b"\0\0\0", b"\xff\xfe"])
def test_damaged_file_is_named(folder: RunFolder, content: bytes) -> None:
    for name, read in (
        ("record.json", folder.read_record), ("end.json", folder.read_end), ("run.json", folder.read_sync_state),
    ):  # fmt: skip
        folder.location.write(name, content)
        with pytest.raises(DamagedFileError, match=f"/run/{name}' is damaged: it is not JSON"):
            read()


def test_metrics_are_read_up_to_a_line_that_was_cut_off_and_damage_before_it_is_named(folder: RunFolder) -> None:
    folder.location.write("metrics.jsonl", b'{"epoch": 1}\n{"epoch": 2}')
    assert folder.read_metrics() == [{"epoch": 1}, {"epoch": 2}]
    folder.location.write("metrics.jsonl", b'{"epoch": 1}\n{"epo')
    assert folder.read_metrics() == [{"epoch": 1}]
    for damaged in (b'{"epoch": 1}\n{"epo\n', b'{"epoch": 1}\n\0\0\n{"epoch": 3}\n'):
        folder.location.write("metrics.jsonl", damaged)
        with pytest.raises(DamagedFileError, match=r"^line 2 of '.*/run/metrics.jsonl' is damaged$"):
            folder.read_metrics()


def test_record_is_written_once_so_that_its_run_is_found_again(folder: RunFolder) -> None:
    folder.write_record("first", tags={})
    before = folder.read_record()
    folder.write_record("second", tags={})
    assert folder.read_record() == before


def test_another_configuration_is_refused_unless_only_its_budget_differs(folder: RunFolder) -> None:
    folder.claim({"name": "run", "train": {"epochs": 2, "workers": 1}})
    folder.claim({"name": "run", "train": {"epochs": 2, "workers": 2}}, ("train.workers",))
    with pytest.raises(UserError, match=r"train.epochs is 3, was 2\. Start a new one"):
        folder.claim({"name": "run", "train": {"epochs": 3, "workers": 9}}, ("train.workers",))
    assert folder.read_configuration() == {"name": "run", "train": {"epochs": 2, "workers": 2}}


def test_passwords_are_neither_recorded_nor_compared(folder: RunFolder, tmp_path: Path) -> None:
    url = "postgresql://lab@db/mcrnn?password="
    # an earlier version has recorded the password
    (tmp_path / "run").mkdir()
    (tmp_path / "run/configuration.json").write_text(json.dumps({"search": {"storage": f"{url}geheim"}}))
    folder.claim({"search": {"storage": f"{url}another-geheim"}})
    folder.write_record("run", tags={"a": f"{url}geheim"}, files={"search.json": {"storage": f"{url}geheim"}})
    assert folder.read_configuration() == {"search": {"storage": f"{url}***"}}
    for file in (tmp_path / "run").iterdir():
        assert "geheim" not in file.read_text(), file


def test_new_takes_the_first_name_that_is_free(tmp_path: Path) -> None:
    parent = LocalFolder(tmp_path)
    assert free_name(parent, "run", new=True) == "run"
    for name in ("run", "run-2"):
        RunFolder(parent.child(name)).claim({})
    assert free_name(parent, "run", new=True) == "run-3"
    assert free_name(parent, "run", new=False) == "run"


def test_folders_below_a_search(tmp_path: Path) -> None:
    search = SearchFolder(LocalFolder(tmp_path / "s"))
    assert search.name == "s"
    assert search.trial(7).url == str(tmp_path / "s/trials/0007")
    assert search.trial(7).model.url == str(tmp_path / "s/trials/0007/model")
    assert search.trial(7).checkpoints.url == str(tmp_path / "s/trials/0007/checkpoints")
    assert search.retraining("trial-7-seed-1").url == str(tmp_path / "s/confirmation/trial-7-seed-1")
    assert search.baseline("persistence").url == str(tmp_path / "s/baselines/persistence")
    search.write_summary({"best": 0.5})
    assert json.loads((tmp_path / "s/summary.json").read_bytes()) == search.read_summary() == {"best": 0.5}
