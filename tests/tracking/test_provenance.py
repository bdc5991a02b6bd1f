"""The line that says which file a command has read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import mcrnn
from mcrnn.tracking.provenance import source_line
from tests.conftest import PROJECT


def test_file_is_named_with_its_place_digest_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = PROJECT / "search_spaces/ns.yaml"
    digest = hashlib.sha256(shipped.read_bytes()).hexdigest()[:12]
    ends = f", sha256 {digest}; mcrnn {mcrnn.__version__}"
    assert source_line("search_spaces/ns.yaml") == f"read {shipped} (shipped with the package){ends}"
    # a changed file of the same name, as a job finds it with --working-dir
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces/ns.yaml").write_text("name: mine\n")
    digest = hashlib.sha256(b"name: mine\n").hexdigest()[:12]
    own = f"read {tmp_path}/search_spaces/ns.yaml, sha256 {digest}; mcrnn {mcrnn.__version__}"
    assert source_line("search_spaces/ns.yaml") == own
