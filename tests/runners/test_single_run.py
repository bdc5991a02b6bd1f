"""The command of a single training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mcrnn.config.sections import Configuration
from mcrnn.runners import single_run
from mcrnn.storage import retry
from mcrnn.storage.lease import HeldError, Lease
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.presence import PROCESS_FILE, Presence
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import LEASE_FILE, RunFolder
from tests.commands.test_commands import CONFIGURATION
from tests.data_prep.test_append import NoTracking


@pytest.mark.parametrize("error", [None, ValueError("a bug"), KeyboardInterrupt()])
def test_end_of_a_training_does_not_wait_for_storage_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    patience: dict[str, float] = {}

    def train(*_: Any) -> None:
        patience["training"] = retry._patience
        if error is not None:
            raise error

    lease: Any = SimpleNamespace(lost=False, check=lambda: None)
    config = SimpleNamespace(train=SimpleNamespace(workers=1, epochs=2))
    run: Any = SimpleNamespace(config=config, run_name="r", folder=RunFolder(LocalFolder(tmp_path)))
    sync: Any = SimpleNamespace(update=lambda *_: None, close=lambda: None)
    monkeypatch.setattr(single_run, "_train_here", train)
    monkeypatch.setattr(Presence, "end", lambda *_: patience.setdefault("presence", retry._patience))
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        single_run._train(run, SimpleNamespace(), Console(), sync, {}, lease)  # type: ignore[arg-type]
    assert patience == {"training": retry.PATIENCE_UNDER_WAY, "presence": 0}


class TakenOver(Lease):
    """A lease that another process takes over at once, as after a long suspension."""

    def acquire(self) -> None:
        super().acquire()
        self.lost = True


def test_run_is_trained_by_one_process_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_run, "RunSync", NoTracking)
    monkeypatch.setattr(single_run.Tracker, "open", NoTracking)
    storage, config = Storage.open(str(root)), Configuration.model_validate(CONFIGURATION)
    folder = RunFolder(storage.location("runs/small"))
    refused = pytest.raises(HeldError, match=r"another training \(process .* wait until it ends, or stop it")
    with Lease(folder.location, LEASE_FILE, "training"), refused:
        single_run.run(config, storage, new=False)
    assert not folder.location.sizes()

    with monkeypatch.context() as suspended:
        suspended.setattr(single_run, "Lease", TakenOver)
        with pytest.raises(HeldError, match="has taken over"):
            single_run.run(config, storage, new=False)
    assert not folder.checkpoints.sizes()
    assert not folder.read_metrics()
    assert PROCESS_FILE not in folder.location.sizes()
    assert LEASE_FILE in folder.location.sizes()  # it is the other process's
