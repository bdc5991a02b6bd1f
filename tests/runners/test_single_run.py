"""The command of a single training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mcrnn.runners import single_run
from mcrnn.storage import retry
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.presence import Presence
from mcrnn.tracking.run_folder import RunFolder


@pytest.mark.parametrize("error", [None, ValueError("a bug"), KeyboardInterrupt()])
def test_end_of_a_training_does_not_wait_for_storage_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    patience: dict[str, float] = {}

    def train(*_: Any) -> None:
        patience["training"] = retry._patience
        if error is not None:
            raise error

    config = SimpleNamespace(train=SimpleNamespace(workers=1, epochs=2))
    run: Any = SimpleNamespace(config=config, run_name="r", folder=RunFolder(LocalFolder(tmp_path)))
    sync: Any = SimpleNamespace(update=lambda *_: None, close=lambda: None)
    monkeypatch.setattr(single_run, "_train_here", train)
    monkeypatch.setattr(Presence, "end", lambda *_: patience.setdefault("presence", retry._patience))
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        single_run._train(run, SimpleNamespace(), Console(), sync, {})  # type: ignore[arg-type]
    assert patience == {"training": retry.PATIENCE_UNDER_WAY, "presence": 0}
