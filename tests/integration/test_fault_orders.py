"""A search comes to its champion whatever goes wrong meanwhile, and in whatever order."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.support.cluster_command import ClusterCommand
from tests.support.lab import Lab, answers, prepare, write
from tests.support.postgres import PostgresServer, create_database
from tests.support.processes import full_disk, wait_for
from tests.support.s3_server import error

pytestmark = [pytest.mark.integration, pytest.mark.soak]

ORDERS = [int(seed) for seed in os.environ.get("MCRNN_TEST_ORDERS", "").split()] or range(20)
"""Seeds of the orders."""
ORDERS_OF_A_LAB = 5
"""Orders that share a cluster, a tracking server and a database, one after another."""
OUTAGE = float(os.environ.get("MCRNN_TEST_OUTAGE_SECONDS", "60"))
"""Seconds for which object storage is away, and for which the disk is full."""
TRIALS, EPOCHS = 22, 4
SECONDS_OF_EPOCH, WHILE_DISK_IS_FULL = 1.0, OUTAGE / EPOCHS
"""Least time that an epoch takes, so that the trials of the fastest machine last until all has gone wrong."""
PATIENCE = 900
"""Seconds after which something that should happen on the slowest machine counts as not happening."""
MISSES = (
    r"(does not answer \(.*\); work goes on, and what it misses is sent later|answers again; what it missed is sent)"
)
KNOWN_WARNINGS = re.compile(
    "|".join(
        [
            r"S3 (does not answer \(.*\); asked again for 15 min|answers again; work goes on)",
            r"the study's database (does not answer \(.*\); asked again for 15 min|answers again; work goes on)",
            rf"('s3://lab/mcrnn/searches/o\d+'|MLflow) {MISSES}",
            r"the run of '.*' was deleted in MLflow; it is (left alone|recorded anew)",
            r"the experiment 'mcrnn-o\d+' was deleted in MLflow; .*",
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
        study_url: the study's database on that server.
        seed: of what is left to chance.
    """

    def __init__(self, lab: Lab, postgres: PostgresServer, study_url: str, seed: int) -> None:
        import mlflow

        assert lab.cluster is not None
        self.lab, self.postgres, self.study_url, self.rng = lab, postgres, study_url, random.Random(seed)
        self.name = f"o{seed}"
        self.folder = f"searches/{self.name}"
        self.stranger = f"{self.folder}/trials/.DS_Store"
        settings = {"trials": TRIALS, "scheduler": "none", "storage": study_url}
        file = write(lab.laptop, self.name, search=settings, train={"epochs": EPOCHS})
        self.driver = ClusterCommand(lab.cluster, lab.laptop, "mcrnn.tune", file.name)
        self.client = mlflow.MlflowClient(lab.uri)
        self.seconds_of_epoch = SECONDS_OF_EPOCH
        lab.s3.fault = self.slow
        self.damaged: set[int] = set()
        """Numbers of the trials whose end is a file that cannot be read."""

    def slow(self, environ: dict[str, Any]) -> None:
        """Take a while for what a trial writes once an epoch; a fault of the S3 server."""
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("/metrics.jsonl"):
            time.sleep(self.seconds_of_epoch)

    @property
    def ended(self) -> set[int]:
        """Numbers of the trials whose training has ended."""
        return self._having("end.json") - self.damaged

    @property
    def started(self) -> set[int]:
        """Numbers of the trials that have been started."""
        return self._having("record.json")

    def _having(self, file: str) -> set[int]:
        """Numbers of the trials in whose folders there is such a file."""
        folders = (
            key.removeprefix(f"{self.folder}/trials/").split("/") for key in self.lab.keys(f"{self.folder}/trials/")
        )
        return {int(rest[0]) for rest in folders if rest[1:] == [file]}

    def wait_for_another_end(self) -> None:
        """Wait until one more trial has ended."""
        before = len(self.ended)
        self.driver.wait_until(lambda: len(self.ended) > before, PATIENCE, "another trial ends")

    @property
    def experiments(self) -> list[str]:
        """Ids of its experiments that are not deleted."""
        name = re.compile(rf"mcrnn-{self.name}( \(\d+\))?")
        return [each.experiment_id for each in self.client.search_experiments() if name.fullmatch(each.name)]

    def runs(self, kind: str) -> list[Any]:
        """The runs of a kind that are not deleted, in experiments that are not."""
        experiments = self.experiments
        if not experiments:
            return []
        return list(self.client.search_runs(experiments, f"tags.`mcrnn.kind` = '{kind}'", max_results=1000))

    def delete_run(self) -> None:
        """Delete in MLflow the run of a trial, or that of the search itself."""
        kind = self.rng.choice(["trial", "search"])
        self.driver.wait_until(lambda: self.runs(kind), PATIENCE, f"there is a run of a {kind}")
        self.client.delete_run(self.rng.choice(self.runs(kind)).info.run_id)

    def delete_experiment(self) -> None:
        """Delete the experiment in MLflow."""
        (experiment,) = self.experiments
        self.client.delete_experiment(experiment)

    def leave_stranger(self) -> None:
        """Put a file among the trials that is none of the search's."""
        self.lab.s3.client().put_object(Bucket="lab", Key=f"mcrnn/{self.stranger}", Body=b"\0\0\0\1Bud1")

    def damage_trial(self) -> None:
        """Let one trial raise an error, until the damaged file is removed or the trial has failed."""
        number, said = self._damage_next()
        if self.rng.random() < 0.5:
            self._mend(number)
        else:
            self.driver.wait_until(
                lambda: f"trial {number} failed: {said}" in self.driver.output, PATIENCE, "it has failed"
            )

    def _damage_next(self) -> tuple[int, str]:
        """Damage the end of the trial that starts next; returns its number, and how its error begins."""
        said = "DamagedFileError: "
        while True:
            number = max(self.started) + 1
            assert number < TRIALS, "all trials were started before one was to raise an error"
            self.damaged.add(number)
            self.lab.s3.client().put_object(Bucket="lab", Key=self._end_of(number), Body=b"{")
            metrics = f"{self.folder}/trials/{number:04d}/metrics.jsonl"

            def is_past(metrics: str = metrics, line: str = f"trial {number}: {said}") -> bool:
                return line in self.driver.output or bool(self.lab.keys(metrics))

            self.driver.wait_until(is_past, PATIENCE, f"trial {number} starts")
            if f"trial {number}: {said}" in self.driver.output:
                return number, said
            self._mend(number)  # it had just begun, and has seen nothing of it

    def _end_of(self, number: int) -> str:
        return f"mcrnn/{self.folder}/trials/{number:04d}/end.json"

    def _mend(self, number: int) -> None:
        self.lab.s3.client().delete_object(Bucket="lab", Key=self._end_of(number))
        self.damaged.remove(number)

    def lose_node(self) -> None:
        """End the machine that trains at once; another one comes."""
        assert self.lab.cluster is not None
        self.lab.cluster.remove_worker()
        self.lab.cluster.add_worker()

    def lose_s3(self) -> None:
        """Let object storage be away for a while."""
        self.lab.s3.fault = lambda environ: error("503 Service Unavailable", "SlowDown")
        time.sleep(OUTAGE)
        self.lab.s3.fault = self.slow

    def restart_postgres(self) -> None:
        """End PostgreSQL without a goodbye, and start it again."""
        self.postgres.stop("immediate")
        time.sleep(2)
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


def assert_told_once(search: DisturbedSearch) -> None:
    """Each trial has ended in the study, and its end was printed at most once by all starts of the driver."""
    import optuna

    (name,) = [each for each in optuna.get_all_study_names(search.study_url) if each.startswith(f"{search.name}:")]
    trials = optuna.load_study(study_name=name, storage=search.study_url).get_trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    states = [trial.state.name for trial in trials]
    assert set(states) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert states.count("FAIL") == len(search.damaged)
    assert {trial.user_attrs["end"] for trial in trials} <= {"finished", "diverged", "failed"}
    printed = re.findall(r"^\[\d+/\d+\] trial (\d+) ", search.driver.output, re.MULTILINE)
    assert len(printed) == len(set(printed))


def assert_champion(search: DisturbedSearch) -> None:
    """The best trial is registered, and its run is there."""
    file = f"{search.folder}/summary.json"
    summary = json.loads(search.lab.files(file)[file])
    assert [row["trial"] for row in summary["trials"]] == list(range(TRIALS))
    wait_for(lambda: answers(search.lab.uri), seconds=60)
    champion = search.client.get_model_version_by_alias(f"mcrnn-{search.name}", "champion")
    assert (int(champion.version), champion.run_id) == (summary["version"], summary["run_id"])
    run = search.client.get_run(champion.run_id)
    assert (run.info.lifecycle_stage, run.info.status) == ("active", "FINISHED")
    assert search.client.get_experiment(run.info.experiment_id).lifecycle_stage == "active"
    assert run.info.run_name == f"trial-{summary['best_trial']}"


def assert_says_little(output: str) -> None:
    """What went wrong is said in a few lines that are known, without tracebacks and passwords."""
    assert "Traceback" not in output
    assert "mcrnn:secret" not in output
    warnings = [line.removeprefix("warning: ") for line in output.splitlines() if line.startswith("warning: ")]
    assert [line for line in warnings if not KNOWN_WARNINGS.fullmatch(line)] == []
    assert len(warnings) <= MOST_WARNINGS


def play(search: DisturbedSearch) -> None:
    """Run the search, and let each fault happen once, in random order."""
    order = list(FAULTS)
    search.rng.shuffle(order)
    started, driver = time.monotonic(), search.driver
    try:
        driver.start()
        for fault in order:
            search.wait_for_another_end()
            ended = len(search.ended)
            print(f"{search.name}: {time.monotonic() - started:.0f} s: {fault}, {ended} trials ended", flush=True)
            assert ended < TRIALS - 2, "the trials are too fast, or the outages too long"
            FAULTS[fault](search)
        search.seconds_of_epoch = 0.0
        code = driver.wait(PATIENCE)
    finally:
        driver.kill()
        print(f"{search.name}: {time.monotonic() - started:.0f} s: the end\n{driver.output}", flush=True)
    assert code == 0
    assert_says_little(driver.output)
    assert_told_once(search)
    assert_champion(search)
    assert search.stranger in search.lab.keys(search.stranger)
    print(f"{search.name}: held", flush=True)


@pytest.mark.timeout(5 * 3600)
@pytest.mark.parametrize("seeds", [ORDERS[i : i + ORDERS_OF_A_LAB] for i in range(0, len(ORDERS), ORDERS_OF_A_LAB)])
def test_search_comes_to_its_champion_whatever_goes_wrong_in_whatever_order(
    lab: Lab, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, seeds: Sequence[int]
) -> None:
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    study_url = create_database(postgres.url, "study")
    lab.start_mlflow(create_database(postgres.url, "tracking"))
    prepare(lab)
    lab.start_cluster(forked=True)
    for seed in seeds:
        play(DisturbedSearch(lab, postgres, study_url, seed))
