"""A search and a run are seen and stopped from another terminal, and what goes wrong in their driver is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcrnn.stop import stop
from tests.conftest import CommandRunner
from tests.support.processes import Start, free_port, wait_for
from tests.support.searches import write
from tests.support.training_runs import CONTENT

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


@pytest.mark.long(30)
def test_trial_and_search_are_stopped_from_another_terminal(
    command: CommandRunner, root: Path, start: Start, shared_ray: str
) -> None:
    """Trials without end, so that only stops end them; the search finishes with what its stopped trials have."""
    settings = {"trials": 2, "concurrency": 2, "scheduler": "none", "cover": None}
    file = write(root, "s", search=settings, train={"epochs": 100_000, "checkpoint_minutes": 10})
    process = start("mcrnn.tune", file)

    def seen() -> dict[str, Any]:
        result = command("mcrnn.status", "s", "--json")
        assert result.returncode == 0, result.stderr
        content: dict[str, Any] = json.loads(result.stdout)
        return content

    def state_of(trial: int) -> str:
        return {row["number"]: row["state"] for row in seen()["trials"]}[trial]

    wait_for(lambda: len(list((root / "searches/s/trials").glob("*/metrics.jsonl"))) == 2, process)
    now = seen()
    assert (now["state"], now["budget"], now["running"]) == ("running", 2, 2)
    assert all(row["epoch"] >= 1 and row["error"] > 0 for row in now["trials"])
    assert f"read {root}/{file}, sha256 " in now["process"]["source"]
    assert command("mcrnn.stop", "s", "--trial", "0").returncode == 0
    wait_for(lambda: state_of(0) == "stopped", process)
    assert (root / "searches/s/trials/0000/model").exists()

    assert command("mcrnn.stop", "s").returncode == 0
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "interrupted; the same command continues")
    assert "has asked trial 0 to stop by python -m mcrnn.stop" in out
    (line,) = (line for line in out.splitlines() if "has asked for a stop" in line)
    assert line.endswith("has asked for a stop by python -m mcrnn.stop; it saves and ends")
    assert list((root / "searches/s/trials/0001/checkpoints").iterdir())
    assert (seen()["state"], state_of(1)) == ("interrupted", "interrupted")
    assert not (root / "searches/s/driver.log").exists()

    process = start("mcrnn.tune", file)  # which the request of before does not end
    wait_for(lambda: state_of(1) == "running", process)
    assert command("mcrnn.stop", "s", "--trial", "1").returncode == 0
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    summary = json.loads((root / "searches/s/summary.json").read_text())
    assert [row["end"] for row in summary["trials"]] == ["stopped", "stopped"]
    assert summary["best"] == min(row["best"] for row in summary["trials"])
    assert (seen()["state"], seen()["done"]) == ("finished", 2)


@pytest.mark.soak
def test_search_is_stopped_before_its_first_trial_and_while_it_confirms(
    command: CommandRunner, root: Path, start: Start, ray_folder: Path
) -> None:
    """Its command goes on each time from where it was. Its own Ray starts later than a request is heard."""
    settings = {"trials": 2, "concurrency": 2, "scheduler": "none", "cover": None}
    confirm = {"configurations": 2, "seeds": 2}
    file = write(root, "s", search=settings | {"confirm": confirm}, train={"epochs": 30})
    folder = root / "searches/s"

    def ended() -> str:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err.strip()) == (130, "interrupted; the same command continues"), (out, err)
        return out

    process = start("mcrnn.tune", file)
    wait_for((folder / "process.json").exists, process)
    stop("s", storage=str(root))  # in this process, so that it comes before the first trial
    assert "has asked for a stop by python -m mcrnn.stop" in ended()
    assert not list((folder / "trials").glob("*/metrics.jsonl"))

    process = start("mcrnn.tune", file)
    wait_for(lambda: list((folder / "confirmation").rglob("metrics.jsonl")), process)
    said = command("mcrnn.stop", "s")
    assert (said.returncode, said.stderr) == (0, "")
    assert "it saves and ends" in said.stdout
    ended()
    assert json.loads(command("mcrnn.status", "s", "--json").stdout)["state"] == "interrupted"
    assert not (folder / "summary.json").exists()

    process = start("mcrnn.tune", file)
    out, err = process.communicate(timeout=280)
    assert (process.returncode, err) == (0, ""), out
    assert [row["end"] for row in json.loads((folder / "summary.json").read_text())["trials"]] == ["finished"] * 2


def test_run_is_stopped_from_another_terminal_and_continues(command: CommandRunner, root: Path, start: Start) -> None:
    content = CONTENT | {"train": CONTENT["train"] | {"epochs": 100_000}}
    (root / "run.yaml").write_text(yaml.safe_dump(content))
    process = start("mcrnn.train", "run.yaml")
    folder = root / "runs" / content["name"]
    wait_for(lambda: (folder / "metrics.jsonl").exists(), process)
    assert command("mcrnn.stop", content["name"]).returncode == 0
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "has asked for a stop by python -m mcrnn.stop; it saves and ends" in out
    assert list((folder / "checkpoints").iterdir())
    (seen,) = json.loads(command("mcrnn.status", "--json").stdout)
    assert (seen["kind"], seen["state"], seen["budget"]) == ("run", "interrupted", 100_000)
    assert seen["done"] >= 1


def test_error_of_the_driver_is_kept_and_shown(command: CommandRunner, root: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    failed = command("mcrnn.tune", write(root, "s"), MLFLOW_TRACKING_URI=uri)
    assert failed.returncode == 2
    (line,) = failed.stderr.strip().splitlines()
    log = (root / "searches/s/driver.log").read_text()
    assert "Traceback" in log
    assert line.removeprefix("error: ") in log
    (seen,) = json.loads(command("mcrnn.status", "--json").stdout)
    assert (seen["state"], seen["message"]) == ("failed", line.removeprefix("error: "))
    assert f"ended by: {seen['message'][:40]}" in command("mcrnn.status", "s").stdout
