"""What happens to searches: kills, signals, mistakes, losers; the same command finishes them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mcrnn.search.study import state_of
from tests.conftest import CommandRunner
from tests.support.processes import Start, wait_for
from tests.support.searches import TRIALS, journal, tried, write

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]

TRIALS_OF_SOAK = 20


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    """What the trials tried and found, without times."""
    return kept(json.loads((root / "searches" / name / "summary.json").read_text()))


def kept(summary: dict[str, Any]) -> list[dict[str, Any]]:
    names = ("trial", "end", "values", "epoch", "best", "rmse_closed_loop")
    return [{key: row.get(key) for key in names} for row in summary["trials"]]


def assert_whole(root: Path, name: str, trials: int) -> None:
    """All trials once, none left running anywhere."""
    import mlflow

    states = [state_of(t).name for t in journal(root, name).get_trials(deepcopy=False)]
    assert len(states) == trials
    assert set(states) <= {"COMPLETE", "PRUNED"}
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(f"mcrnn-{name}")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = [run.info.run_name for run in runs if run.data.tags.get("mcrnn.kind") == "trial"]
    assert sorted(names) == sorted(f"trial-{number}" for number in range(trials))


def of_ray(folder: Path | None, starting: str) -> list[psutil.Process]:
    """Processes of Ray in this folder whose command begins so."""
    found = []
    for each in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(each.info["cmdline"] or [])
        if (each.info["environ"] or {}).get("RAY_TMPDIR") == str(folder) and starting in line:
            found.append(each)
    return found


def kill_at(
    what: str,
    start: Start,
    command: CommandRunner,
    root: Path,
    ray_folder: Path | None,
    name: str,
    seed: int,
    trials: int,
) -> subprocess.CompletedProcess[str]:
    """Kill something at a random moment of a search, and finish it with the same command."""
    rng = random.Random(seed)
    file = write(root, name, search={"trials": trials})
    process = start("mcrnn.tune", file)
    after = rng.randrange(1, trials - 4)
    wait_for(lambda: tried(root, name) >= after, process)
    time.sleep(rng.uniform(0, 0.5))
    if what == "driver":
        process.send_signal(signal.SIGKILL)
    elif what == "cluster":
        for each in [*of_ray(ray_folder, "gcs_server"), *of_ray(ray_folder, "raylet")]:
            each.kill()
        process.send_signal(signal.SIGKILL)
    else:
        trial = of_ray(ray_folder, "ray::ImplicitFunc")
        assert trial
        trial[0].kill()
    if what != "trial":
        process.communicate()
        return command("mcrnn.tune", file)
    out, err = process.communicate(timeout=250)
    return subprocess.CompletedProcess(file, process.returncode, out, err)


def undisturbed(command: CommandRunner, root: Path, trials: int) -> list[dict[str, Any]]:
    result = command("mcrnn.tune", write(root, "undisturbed", search={"trials": trials}))
    assert result.returncode == 0, result.stderr
    assert_whole(root, "undisturbed", trials)
    return rows(root, "undisturbed")


@pytest.mark.long(65)
def test_killed_search_ends_as_the_undisturbed_one(
    command: CommandRunner, root: Path, start: Start, shared_ray: str
) -> None:
    expected = undisturbed(command, root, TRIALS)
    assert {row["end"] for row in expected} == {"finished", "stopped"}
    # two runs with the same seed are the same
    result = kill_at("driver", start, command, root, None, "driver", 1, TRIALS)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert_whole(root, "driver", TRIALS)
    assert rows(root, "driver") == expected
    # losers leave no checkpoints, and three models stay
    folder = root / "searches/driver/trials"
    assert not list(folder.glob("*/checkpoints"))
    assert len(list(folder.glob("*/model"))) == 3


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("what", "times"), [("driver", 10), ("cluster", 3), ("trial", 3)])
def test_many_kills(command: CommandRunner, root: Path, start: Start, ray_folder: Path, what: str, times: int) -> None:
    expected = undisturbed(command, root, TRIALS_OF_SOAK)
    for seed in range(times):
        name = f"{what}-{seed}"
        result = kill_at(what, start, command, root, ray_folder, name, seed, TRIALS_OF_SOAK)
        assert result.returncode == 0, result.stderr
        assert_whole(root, name, TRIALS_OF_SOAK)
        assert rows(root, name) == expected


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_removals_of_the_node_that_trains(
    command: CommandRunner, root: Path, start: Start, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    expected = undisturbed(command, root, TRIALS_OF_SOAK)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        node = cluster.add_node(num_cpus=1)
        for seed in range(3):
            rng = random.Random(seed)
            name = f"node-{seed}"
            process = start("mcrnn.tune", write(root, name, search={"trials": TRIALS_OF_SOAK}))
            after = rng.randrange(1, TRIALS_OF_SOAK - 4)
            wait_for(lambda: tried(root, name) >= after, process)  # noqa: B023
            time.sleep(rng.uniform(0, 0.5))
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(num_cpus=1)
            _, err = process.communicate(timeout=280)
            assert process.returncode == 0, err
            assert "Traceback" not in err
            assert_whole(root, name, TRIALS_OF_SOAK)
            assert rows(root, name) == expected
    finally:
        cluster.shutdown()


@pytest.mark.soak
def test_ctrl_c_stops_after_saving_and_a_second_driver_is_refused(
    command: CommandRunner, root: Path, start: Start, shared_ray: str
) -> None:
    file = write(root, "s", search={"trials": 60})
    process = start("mcrnn.tune", file)
    wait_for(lambda: tried(root, "s") >= 2, process)
    second = command("mcrnn.tune", file)
    assert second.returncode == 2
    assert "another search (process" in second.stderr
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "interrupted; the same command continues"
    started = len(journal(root, "s").get_trials(deepcopy=False))
    assert started < 60
    again = command("mcrnn.tune", file, "--set", f"search.trials={started + 2}")
    assert again.returncode == 0, again.stderr
    assert_whole(root, "s", started + 2)


def test_mistake_in_a_configuration_stops_the_search_with_its_message(
    command: CommandRunner, root: Path, shared_ray: str
) -> None:
    # deterministic algorithms are not there for everything: here a setting that only training finds out
    file = write(root, "s", train={"device": "cuda"})
    result = command("mcrnn.tune", file)
    assert result.returncode == 2
    assert "train.device is cuda" in result.stderr or "GPU" in result.stderr
    assert "Traceback" not in result.stderr
    assert tried(root, "s") == 0


@pytest.mark.long(40)
def test_confirmation_trains_the_best_again_and_takes_the_best_seed(
    command: CommandRunner, root: Path, shared_ray: str
) -> None:
    file = write(root, "s", search={"trials": 6, "confirm": {"configurations": 3, "seeds": 2}})
    for stranger in (".DS_Store", "notes/model/a"):
        (root / "searches/s/trials" / stranger).parent.mkdir(parents=True, exist_ok=True)
        (root / "searches/s/trials" / stranger).touch()
    result = command("mcrnn.tune", file)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    assert not [path for path in (root / "searches/s").rglob("checkpoints") if path.is_dir()]
    assert (root / "searches/s/trials/notes/model/a").exists()
    summary = json.loads((root / "searches/s/summary.json").read_text())
    assert len(summary["confirmed"]) == 3
    assert [row["seeds"] for row in summary["confirmed"]] == [2, 2, 1]
    winner, second, _ = summary["confirmed"]
    assert winner["mean"] <= second["mean"]
    assert winner["interval"][0] < winner["mean"] < winner["interval"][1]
    assert summary["best"] == winner["best"]
    assert "confirmation: 3 trainings of 3 configurations" in result.stdout
    assert "confirmation: 2 trainings of 2 configurations" in result.stdout
    assert "over 2 seeds; the best of 3 configurations that competed, of 6 trials" in result.stdout
    figures = {path.name for path in (root / "searches/s/figures").iterdir()}
    assert {"history.png", "slices.png", "parallel_coordinates.png"} <= figures
    more = command("mcrnn.tune", file, "--set", "search.confirm.seeds=3")
    assert more.returncode == 0, more.stderr
    assert "confirmation: 2 trainings of 2 configurations" in more.stdout
    again = command("mcrnn.tune", file, "--set", "search.confirm.seeds=3")
    assert again.returncode == 0, again.stderr
    assert "trials to run" not in again.stdout


def test_preview_starts_and_writes_nothing(command: CommandRunner, root: Path, database: Path) -> None:
    before = database.read_bytes()
    result = command("mcrnn.tune", write(root, "s"), "--preview")
    assert result.returncode == 0, result.stderr
    assert f"{TRIALS} trials by tpe, early stopping by asha" in result.stdout
    assert "floating-point operations" in result.stdout
    assert not (root / "searches").exists()
    assert database.read_bytes() == before
