"""`mcrnn.status` and `mcrnn.stop` as a user calls them, on folders of searches and runs, on disk, S3 and databases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mcrnn.search.journal import Journal
from mcrnn.search.study import open_study
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.status import _View
from mcrnn.stop import stop
from mcrnn.storage import presence as presence_module
from mcrnn.storage.presence import Presence, StopRequest, whoami
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import RunEnd, RunFolder, SearchFolder
from tests.commands.test_commands import refused
from tests.conftest import CommandRunner
from tests.support.processes import Start, wait_for
from tests.support.studies import ASHA, ERRORS, run_part, search


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, root: Path) -> Storage:
    """A storage root, which commands are to be told."""
    if request.param == "local":
        return Storage.open(str(root))
    request.getfixturevalue("s3")
    return Storage.open("s3://lab/mcrnn")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[StopRequest]:
    """The requests that a process of this test has heard."""
    monkeypatch.setattr(presence_module, "SECONDS_BETWEEN_POLLS", 0.1)
    return []


def fill(storage: Storage, name: str, database: str | None = None) -> tuple[SearchFolder, StudySearcher]:
    """A search of which one trial runs, one has been trained to its end, and others are paused."""
    plan = search(trials=6, asha=ASHA, storage=database)
    folder = SearchFolder(storage.location(f"searches/{name}"))
    folder.claim(json.loads(json.dumps(plan.content() | {"name": plan.name})))
    journal = Journal.open(folder.location)
    searcher = StudySearcher(open_study(journal, plan), plan)
    reached = [0] * 6
    while not searcher.index.ranked():
        number = (proposal := searcher.suggest("t"))["number"]
        reached[number] = run_part(searcher, proposal, ERRORS[number], reached[number], 4)
    searcher.suggest("last")
    journal.upload()
    return folder, searcher


def with_storage(command: CommandRunner, storage: Storage) -> CommandRunner:
    """Commands on this storage root."""
    return lambda *words: command(*words, MCRNN_STORAGE=storage.name)


def shown(command: CommandRunner, *words: str) -> Any:
    """What a command prints as JSON."""
    result = command("mcrnn.status", *words, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_empty_root_has_nothing(command: CommandRunner, root: Path) -> None:
    result = command("mcrnn.status")
    assert (result.returncode, result.stdout) == (0, f"there are no searches and no runs in '{root}'\n")
    assert shown(command) == []
    assert "there is no storage folder" in refused(command, "mcrnn.status", "--storage", str(root / "nowhere"))
    assert not (root / "nowhere").exists()


def test_search_is_shown_and_stopped_wherever_it_is(
    command: CommandRunner, storage: Storage, heard: list[StopRequest]
) -> None:
    (folder, searcher), run = fill(storage, "first"), with_storage(command, storage)
    tried, best = searcher.index.ended + len(searcher.progress.paused), min(ERRORS[: searcher.index.next_number - 1])
    (running,) = (trial.number for trial in searcher.running.values())
    with Presence(folder.location, {"source": "read s.yaml"}, heard.append) as presence:
        (one,) = shown(run)
        assert (one["state"], one["done"], one["budget"], one["best"]) == ("running", tried, 6, best)
        seen = shown(run, "first")
        states = [trial["state"] for trial in seen["trials"]]
        assert states.count("running") == seen["running"] == 1
        assert {"running", "paused"} < set(states)
        table = run("mcrnn.status", "searches/first").stdout
        assert "search first" in table
        assert f"{tried} of 6 trials, best {best:.4f}" in table
        assert f"on {presence._facts['host']} ({os.getpid()}), last sign of life" in table
        assert "read s.yaml" in table

        said = run("mcrnn.stop", "first", "--trial", str(running))
        assert said.returncode == 0, said.stderr
        assert f"trial {running} of 'first'" in said.stdout
        wait_for(lambda: heard == [StopRequest(whoami(), running)])
        assert run("mcrnn.stop", "first").returncode == 0
        assert shown(run)[0]["state"] == "stopping"
        wait_for(lambda: heard[1:] == [StopRequest(whoami())])
        assert "has no trial 99; its trials are 0 to" in refused(run, "mcrnn.stop", "first", "--trial", "99")
    assert shown(run)[0]["state"] == "finished"
    line = refused(run, "mcrnn.stop", "first")
    assert line == "error: the search 'first' does not run: it is finished; there is nothing to stop"
    for module in ("mcrnn.status", "mcrnn.stop"):
        assert "there is no search and no run 'fist'" in (line := refused(run, module, "fist"))
        assert "did you mean 'first'?" in line


def test_study_in_a_database_is_shown_with_its_password_from_the_environment(
    command: CommandRunner, root: Path, postgres_url: str, heard: list[StopRequest]
) -> None:
    folder, searcher = fill(Storage.open(str(root)), "first", postgres_url)
    assert "secret" not in (root / "searches/first/configuration.json").read_text()
    with Presence(folder.location, {}, heard.append):
        result = command("mcrnn.status", "first", "--json", PGPASSWORD="secret")
        assert result.returncode == 0, result.stderr
        seen = json.loads(result.stdout)
        tried = searcher.index.ended + len(searcher.progress.paused)
        assert (seen["state"], seen["done"], seen["running"]) == ("running", tried, 1)
        assert len(seen["trials"]) == searcher.index.next_number
    result = command("mcrnn.status", "first", PGPASSWORD="", PGPASSFILE="/dev/null")
    assert result.returncode == 2
    assert "PGPASSWORD or ~/.pgpass" in result.stderr


def test_search_of_an_earlier_version_is_shown(command: CommandRunner, root: Path) -> None:
    folder, _ = fill(Storage.open(str(root)), "first")
    assert shown(command)[0]["state"] == "interrupted"
    assert {trial["state"] for trial in shown(command, "first")["trials"]} >= {"interrupted", "paused"}
    assert "does not run; there is nothing to stop" in refused(command, "mcrnn.stop", "first")
    folder.location.write("lock.json", b"{}")
    assert shown(command)[0]["state"] == "running"
    folder.location.delete("lock.json")
    folder.write_summary({})
    assert shown(command)[0]["state"] == "finished"


def test_damaged_folder_does_not_hide_the_others(command: CommandRunner, root: Path) -> None:
    fill(Storage.open(str(root)), "first")
    (root / "searches/broken").mkdir()
    (root / "searches/broken/configuration.json").write_text("{")
    (root / "searches/empty").mkdir()
    (root / "searches/.DS_Store").touch()
    assert {each["name"]: each["state"] for each in shown(command)} == {"first": "interrupted", "broken": "unreadable"}
    assert "unreadable" in command("mcrnn.status").stdout
    line = refused(command, "mcrnn.status", "broken")
    assert line == f"error: '{root}/searches/broken/configuration.json' is damaged: it is not JSON"


def test_run_is_shown_and_stopped(command: CommandRunner, root: Path, heard: list[StopRequest]) -> None:
    folder = RunFolder(Storage.open(str(root)).location("runs/one"))
    folder.claim({"name": "one", "data": {"store": "x"}, "model": {}, "train": {"epochs": 5}})
    folder.write_metrics([{"epoch": 1, "best": 0.5, "seconds": 2.0}, {"epoch": 2, "best": 0.4, "seconds": 2.0}])
    assert [shown(command, "one")[key] for key in ("state", "done", "budget")] == ["interrupted", 2, 5]
    with Presence(folder.location, {}, heard.append) as presence:
        presence.progress = {"done": 2, "budget": 5, "best": 0.4, "hours": 4 / 3600}
        presence.write()
        (one,) = shown(command)
        assert (one["kind"], one["state"], one["rate_per_hour"], one["seconds_left"]) == ("run", "running", 1800, 6)
        assert "2 of 5 epochs, best 0.4000, time left about 6 s" in command("mcrnn.status", "one").stdout
        line = refused(command, "mcrnn.stop", "one", "--trial", "1")
        assert line == "error: 'one' is a run and has no trials; leave --trial out to stop it"
        assert command("mcrnn.stop", "runs/one").returncode == 0
        wait_for(lambda: heard == [StopRequest(whoami())])
    folder.write_end(RunEnd("diverged", ""))
    assert shown(command, "runs/one")["state"] == "diverged"


def test_trial_that_cannot_be_stopped_is_named(command: CommandRunner, root: Path, heard: list[StopRequest]) -> None:
    folder, _ = fill(Storage.open(str(root)), "first")
    ended = next(each["number"] for each in _trials(command) if each["state"] == "finished")
    with Presence(folder.location, {}, heard.append):
        line = refused(command, "mcrnn.stop", "first", "--trial", str(ended))
        assert line == f"error: trial {ended} of 'first' has ended already (finished)"
    assert heard == []


def _trials(command: CommandRunner) -> Any:
    return shown(command, "first")["trials"]


def test_watching_follows_until_the_end(command: CommandRunner, root: Path, start: Start) -> None:
    folder, _ = fill(Storage.open(str(root)), "first")
    with Presence(folder.location, {}, lambda _: None):
        process = start("mcrnn.status", "first", "--watch", "--json")
        first = json.loads(process.stdout.readline())
        assert first["state"] == "running"
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["state"] == "finished"
    with Presence(folder.location, {}, lambda _: None):
        process = start("mcrnn.status", "--watch")
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def silence(root: Path, search: str, **different: Any) -> None:
    """Make the last sign of life of a search two minutes old, and change what its process has written down."""
    file = root / f"searches/{search}/process.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | different))
    os.utime(file, (time.time() - 120, time.time() - 120))


def test_silent_search_is_asked_to_stop_unless_its_process_is_gone(command: CommandRunner, root: Path) -> None:
    folder, _ = fill(Storage.open(str(root)), "first")
    presence = Presence(folder.location, {}, lambda _: None)
    presence.write()
    silence(root, "first")
    asked = command("mcrnn.stop", "first")
    assert asked.returncode == 0
    assert asked.stderr.startswith("warning: the search 'first' has given no sign of life for ")
    assert json.loads((root / "searches/first/stop.json").read_text())["process"] == presence.id
    program = "from mcrnn.storage.process import process_identity; print(process_identity())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    silence(root, "first", identity=ended.stdout.strip())
    line = refused(command, "mcrnn.stop", "first")
    assert line == "error: the search 'first' does not run: it is lost; there is nothing to stop"


def test_watching_goes_on_while_a_process_is_only_silent(root: Path) -> None:
    storage = Storage.open(str(root))
    folder, _ = fill(storage, "first")
    view = _View(storage, "first")

    def ends_at_state() -> tuple[bool, str]:
        assert view.look_again()
        return view.has_ended, view.found[0].state

    with Presence(folder.location, {}, lambda _: None) as presence:
        silence(root, "first", identity="0" * 32)  # of another machine
        assert ends_at_state() == (False, "lost")
        presence.write()
        assert ends_at_state() == (False, "running")
    assert ends_at_state() == (True, "finished")


def test_search_that_registers_its_model_is_said_to_finish(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage.open(str(root))
    folder, _ = fill(storage, "first")
    with Presence(folder.location, {}, lambda _: None) as presence:
        for phase, effect in (("confirmation", "it saves and ends"), ("registration", "best model and finishes")):
            presence.progress = {"done": 6, "phase": phase}
            presence.write()
            stop("first", storage=storage.name)
            assert capsys.readouterr().out.endswith(f"{effect}\n")
