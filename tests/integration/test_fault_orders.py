"""A search comes to its champion whatever goes wrong meanwhile, and in whatever order."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cluster_command import ClusterCommand
from tests.support.lab import Lab, answers, prepare, write
from tests.support.postgres import PostgresServer, create_database
from tests.support.processes import full_disk, wait_for
from tests.support.s3_server import error

pytestmark = [pytest.mark.integration, pytest.mark.soak]

OUTAGE = float(os.environ.get("MCRNN_TEST_OUTAGE_SECONDS", "60"))
"""Seconds for which object storage is away, and for which the disk is full."""
SECONDS_OF_EPOCH, WHILE_DISK_IS_FULL = 0.3, OUTAGE / 30
"""Least time that an epoch takes, so that the trials of the fastest machine last until all has gone wrong."""
NAME, TRIALS, EPOCHS = "o", 22, 20
FOLDER = f"searches/{NAME}"
END = re.compile(rf"{FOLDER}/trials/(\d+)/end\.json")
STRANGER = f"{FOLDER}/trials/.DS_Store"
MISSES = (
    r"(does not answer \(.*\); work goes on, and what it misses is sent later|answers again; what it missed is sent)"
)
KNOWN_WARNINGS = re.compile(
    "|".join(
        [
            r"S3 (does not answer \(.*\); asked again for 15 min|answers again; work goes on)",
            r"the study's database (does not answer \(.*\); asked again for 15 min|answers again; work goes on)",
            rf"('s3://lab/mcrnn/{FOLDER}'|MLflow) {MISSES}",
            r"the run of '.*' was deleted in MLflow; it is (left alone|recorded anew)",
            rf"the experiment 'mcrnn-{NAME}' was deleted in MLflow; .*",
            r"the process of trial \d+ was lost; it goes on from its checkpoint",
            r"trial \d+: DamagedFileError: .*; it goes on from its checkpoint",
            r"trial \d+ failed: DamagedFileError: .*",
        ]
    )
)
MOST_WARNINGS = 30


class DisturbedSearch:
    """A search on a cluster, with its files on S3 and its study in PostgreSQL, to which things happen.

    Args:
        lab: object storage, the tracking server, and a cluster that has been started.
        postgres: the server with the study, and with the tracking server's database.
        driver: the command that runs the search.
        seed: of what is left to chance.
    """

    def __init__(self, lab: Lab, postgres: PostgresServer, driver: ClusterCommand, seed: int) -> None:
        import mlflow

        self.lab, self.postgres, self.driver, self.rng = lab, postgres, driver, random.Random(seed)
        self.client = mlflow.MlflowClient(lab.uri)
        self.seconds_of_epoch = SECONDS_OF_EPOCH
        self.damaged: set[int] = set()
        """Numbers of the trials whose end is a file that cannot be read."""

    def slow(self, environ: dict[str, Any]) -> None:
        """Take a while for what a trial writes once an epoch; a fault of the S3 server."""
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("/metrics.jsonl"):
            time.sleep(self.seconds_of_epoch)

    @property
    def ended(self) -> set[int]:
        """Numbers of the trials whose training has ended."""
        ends = map(END.fullmatch, self.lab.keys(f"{FOLDER}/trials/"))
        return {int(end[1]) for end in ends if end} - self.damaged

    @property
    def started(self) -> set[int]:
        """Numbers of the trials that have been started."""
        records = re.compile(rf"{FOLDER}/trials/(\d+)/record\.json")
        return {int(found[1]) for found in map(records.fullmatch, self.lab.keys(f"{FOLDER}/trials/")) if found}

    def wait_for_another_end(self) -> None:
        """Wait until one more trial has ended."""
        before = len(self.ended)
        self.driver.wait_until(lambda: len(self.ended) > before, 240, "another trial ends")

    def runs(self, kind: str) -> list[Any]:
        """The runs of a kind that are not deleted, in experiments that are not."""
        experiments = [each.experiment_id for each in self.client.search_experiments()]
        return list(self.client.search_runs(experiments, f"tags.`mcrnn.kind` = '{kind}'", max_results=1000))

    def delete_run(self) -> None:
        """Delete in MLflow the run of a trial, or that of the search itself."""
        kind = self.rng.choice(["trial", "search"])
        self.driver.wait_until(lambda: self.runs(kind), 120, f"there is a run of a {kind}")
        self.client.delete_run(self.rng.choice(self.runs(kind)).info.run_id)

    def delete_experiment(self) -> None:
        """Delete the experiment in MLflow."""
        (experiment,) = [each for each in self.client.search_experiments() if each.name.startswith(f"mcrnn-{NAME}")]
        self.client.delete_experiment(experiment.experiment_id)

    def leave_stranger(self) -> None:
        """Put a file among the trials that is none of the search's."""
        self.lab.s3.client().put_object(Bucket="lab", Key=f"mcrnn/{STRANGER}", Body=b"\0\0\0\1Bud1")

    def damage_trial(self) -> None:
        """Let one trial raise an error, until the damaged file is removed or the trial has failed."""
        number, said = self._damage_next()
        if self.rng.random() < 0.5:
            self._mend(number)
        else:
            self.driver.wait_until(lambda: f"trial {number} failed: {said}" in self.driver.output, 240, "it has failed")

    def _damage_next(self) -> tuple[int, str]:
        """Damage the end of the trial that starts next; returns its number, and how its error begins."""
        said = "DamagedFileError: "
        while True:
            number = max(self.started) + 1
            assert number < TRIALS, "all trials were started before one was to raise an error"
            self.damaged.add(number)
            self.lab.s3.client().put_object(Bucket="lab", Key=self._end_of(number), Body=b"{")
            metrics = f"{FOLDER}/trials/{number:04d}/metrics.jsonl"

            def is_past(metrics: str = metrics, line: str = f"trial {number}: {said}") -> bool:
                return line in self.driver.output or bool(self.lab.keys(metrics))

            self.driver.wait_until(is_past, 120, f"trial {number} starts")
            if f"trial {number}: {said}" in self.driver.output:
                return number, said
            self._mend(number)  # it had just begun, and has seen nothing of it

    def _end_of(self, number: int) -> str:
        return f"mcrnn/{FOLDER}/trials/{number:04d}/end.json"

    def _mend(self, number: int) -> None:
        self.lab.s3.client().delete_object(Bucket="lab", Key=self._end_of(number))
        self.damaged.remove(number)

    def lose_node(self) -> None:
        """End the machine that trains at once; another one comes."""
        assert self.lab.cluster is not None
        self.lab.cluster.remove_worker()
        time.sleep(5)
        self.lab.cluster.add_worker()

    def lose_s3(self) -> None:
        """Let object storage be away for a while."""
        self.lab.s3.fault = lambda environ: error("503 Service Unavailable", "SlowDown")
        time.sleep(OUTAGE)
        self.lab.s3.fault = self.slow

    def restart_postgres(self) -> None:
        """End PostgreSQL without a goodbye, and start it again."""
        self.postgres.stop("immediate")
        time.sleep(5)
        self.postgres.start()

    def fill_disk(self) -> None:
        """Let the driver write into no file for a while."""
        self.seconds_of_epoch = WHILE_DISK_IS_FULL
        with full_disk(self.driver.pid):
            time.sleep(OUTAGE)
        self.seconds_of_epoch = SECONDS_OF_EPOCH

    def kill_driver(self) -> None:
        """Kill the driver, and give its command again."""
        self.driver.kill()
        self.driver.start()


FAULTS: dict[str, Callable[[DisturbedSearch], None]] = {
    "run deleted": DisturbedSearch.delete_run,
    "experiment deleted": DisturbedSearch.delete_experiment,
    ".DS_Store": DisturbedSearch.leave_stranger,
    "trial raises": DisturbedSearch.damage_trial,
    "node killed": DisturbedSearch.lose_node,
    "S3 away": DisturbedSearch.lose_s3,
    "PostgreSQL restarted": DisturbedSearch.restart_postgres,
    "disk full": DisturbedSearch.fill_disk,
    "driver killed": DisturbedSearch.kill_driver,
}


def assert_told_once(study_url: str, output: str, failures: int) -> None:
    """Each trial has ended in the study, and its end was printed at most once by all starts of the driver."""
    import optuna

    (name,) = optuna.get_all_study_names(study_url)
    trials = optuna.load_study(study_name=name, storage=study_url).get_trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    states = [trial.state.name for trial in trials]
    assert set(states) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert states.count("FAIL") == failures
    assert {trial.user_attrs["end"] for trial in trials} <= {"finished", "diverged", "failed"}
    printed = re.findall(r"^\[\d+/\d+\] trial (\d+) ", output, re.MULTILINE)
    assert len(printed) == len(set(printed)), output


def assert_champion(search: DisturbedSearch) -> None:
    """The best trial is registered, and its run is there."""
    summary = json.loads(search.lab.files(f"{FOLDER}/summary.json")[f"{FOLDER}/summary.json"])
    assert [row["trial"] for row in summary["trials"]] == list(range(TRIALS))
    wait_for(lambda: answers(search.lab.uri), seconds=60)
    champion = search.client.get_model_version_by_alias(f"mcrnn-{NAME}", "champion")
    assert (int(champion.version), champion.run_id) == (summary["version"], summary["run_id"])
    run = search.client.get_run(champion.run_id)
    assert (run.info.lifecycle_stage, run.info.status) == ("active", "FINISHED")
    assert search.client.get_experiment(run.info.experiment_id).lifecycle_stage == "active"
    assert run.info.run_name == f"trial-{summary['best_trial']}"


def assert_says_little(output: str) -> None:
    """What went wrong is said in a few lines that are known, without tracebacks and passwords."""
    assert "Traceback" not in output, output
    assert "mcrnn:secret" not in output, output
    warnings = [line.removeprefix("warning: ") for line in output.splitlines() if line.startswith("warning: ")]
    assert [line for line in warnings if not KNOWN_WARNINGS.fullmatch(line)] == []
    assert len(warnings) <= MOST_WARNINGS, "\n".join(warnings)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(20))
def test_search_comes_to_its_champion_whatever_goes_wrong_in_whatever_order(
    lab: Lab, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    study_url = create_database(postgres.url, "study")
    lab.start_mlflow(create_database(postgres.url, "tracking"))
    prepare(lab)
    settings = {"trials": TRIALS, "scheduler": "none", "storage": study_url}
    file = write(lab.laptop, NAME, search=settings, train={"epochs": EPOCHS})
    driver = ClusterCommand(lab.start_cluster(), lab.laptop, "mcrnn.tune", file.name)
    search = DisturbedSearch(lab, postgres, driver, seed)
    order = list(FAULTS)
    search.rng.shuffle(order)
    lab.s3.fault = search.slow
    started = time.monotonic()
    try:
        driver.start()
        for fault in order:
            search.wait_for_another_end()
            ended = len(search.ended)
            print(f"{time.monotonic() - started:.0f} s: {fault}, {ended} trials have ended", flush=True)
            assert ended < TRIALS - 2, "the trials are too fast, or the outages too long"
            FAULTS[fault](search)
        code = driver.wait(600)
    finally:
        driver.kill()
        print(f"{time.monotonic() - started:.0f} s: the end\n{driver.output}", flush=True)
    assert code == 0
    assert_says_little(driver.output)
    assert_told_once(study_url, driver.output, len(search.damaged))
    assert_champion(search)
    assert STRANGER in lab.keys(STRANGER)
